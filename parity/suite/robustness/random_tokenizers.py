"""Random tokenizers of every kind: model, normalizer, pre-tokenizer, decoder, and tokens that were added."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

SPECIAL = ("<|endoftext|>", "</s>", "<s>", "<pad>", "[SEP]", "[CLS]", "<|im_start|>", "\u00a7", "a", "\u00e9\u0120")
UNKNOWN = "<unk>"
WORDS = ("un", "on", "once", "caf\u00e9", "\u4e2d\u6587", "stra\u00dfe", "\u0130", "ing", "don't", "x", ".", "do not")
_ENDS = ("<|endoftext|>", "</s>", "[SEP]")
_ADDED = ("caf\u00e9", "\u00e9", "\u0120", "\u4e2d\u6587", "\U0001f600", "new word", "x", "\u00fcber", "<0x41>")
_ALPHABET = "abcdefghilmnopst<>/|[]_\u2581 .'SCLEP\u00e9\u4e2d"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class DrawnTokenizer:
    """What was drawn.

    Args:
        content: of the tokenizer.json.
        special: the tokens that no text may yield.
        kind: byte-level and without loss; as Llama's, without loss after the first word; or any.
    """

    content: str
    special: tuple[str, ...]
    kind: str


def draw_tokenizer(draw: random.Random) -> DrawnTokenizer:
    """A tokenizer of a random kind."""
    kind = draw.choice(["byte-level", "llama", "any", "any"])
    special = tuple(draw.sample(SPECIAL, draw.randint(1, 5)))
    with_bytes = kind == "byte-level" or (kind == "any" and draw.random() < 0.3)
    name = {"byte-level": "BPE", "llama": draw.choice(["BPE", "Unigram"])}.get(kind)
    name = name or draw.choice(["BPE", "Unigram", "WordLevel", "WordPiece"])
    fallback = kind == "llama" or (not with_bytes and draw.random() < 0.4)
    backend = tokenizers.Tokenizer(_model(draw, special, name, with_bytes, fallback))
    {"byte-level": _byte_level, "llama": _llama, "any": _any}[kind](draw, backend, with_bytes)
    for token in special:
        if draw.random() < 0.7:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=draw.random() < 0.3)])
    flags = ("lstrip", "rstrip", "single_word", "normalized") if kind == "any" else ()
    for token in draw.sample(_ADDED, draw.randint(0, 4)):
        if token not in special:
            drawn = {flag: draw.random() < 0.3 for flag in flags}
            backend.add_tokens([AddedToken(token, **{"normalized": False, **drawn})])
    if all(backend.token_to_id(name) is None for name in _ENDS):
        backend.add_tokens(["</s>"])
    end_of_text = next(name for name in _ENDS if backend.token_to_id(name) is not None)
    parts = json.loads(backend.to_str())
    declared = {token["content"] for token in parts["added_tokens"] if token["special"]} | {end_of_text}
    if any(len(token) == 1 for token in declared):  # the symbol of a byte, which all other text is then without
        kind = kind.replace("byte-level", "any")
    return DrawnTokenizer(backend.to_str(), tuple(sorted(declared)), kind)


def _model(draw: random.Random, special: tuple[str, ...], name: str, with_bytes: bool, fallback: bool) -> Any:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) if with_bytes else list(_ALPHABET)
    inside = [token for token in special if draw.random() < 0.7]
    words = draw.sample(WORDS, 6)
    prefix = "##" if name == "WordPiece" else draw.choice(["", "\u2581", "\u0120"])
    pieces = [UNKNOWN, *inside, *symbols, *(_BYTES if fallback else ()), *words, *(prefix + word for word in words)]
    pieces += ["##" + symbol for symbol in symbols] if name == "WordPiece" else []
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    unknown = UNKNOWN if draw.random() < 0.8 else draw.choice([None, special[0]])
    if name == "Unigram":
        scores = [0.0 if piece in (*special, UNKNOWN) else -draw.uniform(1, 9) for piece in vocabulary]
        index = None if unknown is None else vocabulary.get(unknown)
        return models.Unigram([*zip(vocabulary, scores, strict=True)], unk_id=index, byte_fallback=fallback)
    if name == "WordLevel":
        return models.WordLevel(vocabulary, unk_token=unknown or "absent")
    if name == "WordPiece":
        longest = draw.choice([100, 10**6])
        return models.WordPiece(vocabulary, unk_token=unknown or "absent", max_input_chars_per_word=longest)
    merges = []
    for word in [*inside, *words]:
        for end in range(2, len(word) + 1):
            pair = word[: end - 1], word[end - 1]
            if vocabulary.keys() >= {*pair} and pair not in merges:
                vocabulary.setdefault(word[:end], len(vocabulary))
                merges.append(pair)
    flags = {flag: draw.random() < 0.4 for flag in ("fuse_unk", "ignore_merges")}
    return models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=fallback, **flags)


def _byte_level(draw: random.Random, backend: tokenizers.Tokenizer, _with_bytes: bool) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=draw.random() < 0.5)
    backend.decoder = decoders.ByteLevel()


def _llama(draw: random.Random, backend: tokenizers.Tokenizer, _with_bytes: bool) -> None:
    backend.decoder = _llama_decoder(1)
    if draw.random() < 0.5:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=draw.choice(["always", "first"]))
    else:
        prefix, spaces = normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")
        backend.normalizer = normalizers.Sequence([prefix, spaces])


def _llama_decoder(stripped: int) -> Any:
    return decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", stripped, 0)]
    )


def _any(draw: random.Random, backend: tokenizers.Tokenizer, with_bytes: bool) -> None:
    chosen = draw.sample(
        [
            normalizers.Lowercase(), normalizers.NFKC(), normalizers.NFD(), normalizers.Prepend("\u2581"),
            normalizers.Strip(), normalizers.Replace(" ", "\u2581"), normalizers.BertNormalizer(),
            normalizers.StripAccents(),
        ],
        draw.choice([0, 0, 1, 1, 2, 3]),
    )  # fmt: skip
    if chosen:
        backend.normalizer = chosen[0] if len(chosen) == 1 else normalizers.Sequence(chosen)
    splitter = draw.choice(
        [
            pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Digits(), *(_metaspace(draw, scheme) for scheme in ("always", "first", "never")),
        ]
    )  # fmt: skip
    if with_bytes:
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=draw.random() < 0.5, use_regex=draw.random() < 0.5)
    splitter = draw.choice([None, splitter, splitter, pre_tokenizers.Sequence([pre_tokenizers.Digits(), splitter])])
    if splitter is not None:
        backend.pre_tokenizer = splitter
    decoder = draw.choice(_decoders(draw, with_bytes))
    if decoder is not None:
        backend.decoder = decoder


def _metaspace(draw: random.Random, scheme: str) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=draw.random() < 0.5)


def _decoders(draw: random.Random, with_bytes: bool) -> list[Any]:
    strip = decoders.Strip(" ", 1, 0)
    if with_bytes:
        return [decoders.ByteLevel(), decoders.ByteLevel(), decoders.Sequence([decoders.ByteLevel(), strip])]
    return [
        None, strip, _llama_decoder(draw.randint(1, 3)), decoders.WordPiece(cleanup=draw.random() < 0.5),
        decoders.BPEDecoder(), decoders.CTC(pad_token="<pad>"), decoders.Fuse(), decoders.ByteFallback(),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip("\u2581", 2, 0)]),
        *(decoders.Metaspace(prepend_scheme=scheme) for scheme in ("always", "first", "never")),
    ]  # fmt: skip
