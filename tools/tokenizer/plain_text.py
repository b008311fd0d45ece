"""Text is only text: the form of a tokenizer.json that encodes, in which no text can spell a special token.

The `tokenizers` library leaves special tokens out of the search for added tokens when it is told so
(`encode_special_tokens`), but its models know nothing of them: a Unigram, WordLevel or WordPiece vocabulary that holds
`</s>`, or merges that lead to it, give its id to text that spells it. Here those entries get a name that no text has,
at the same id, and text takes the way around them: other pieces, characters, bytes or the unknown token.
The file that people see stays as it was.
"""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import tokenizers

#: The content of a tokenizer.json.
Parts = dict[str, Any]

#: What control tokens are called, also where a tokenizer.json does not mark them as special.
_CONTROL = re.compile(
    r"</?s>|<(bos|eos|pad|mask|cls|sep)>|\[(CLS|SEP|PAD|MASK|BOS|EOS)\]|"
    r"<\|[^|<>\s]+\|>|<\N{FULLWIDTH VERTICAL LINE}[^<>\s]+\N{FULLWIDTH VERTICAL LINE}>|"
    r"<(start|end)_of_turn>|<unused\d+>",
    re.IGNORECASE,
)
#: What stands for a byte where a model falls back on bytes; it must keep its name, so text that spells it is cut.
_BYTE = r"<(?=0x[0-9A-Fa-f]{2}>)"
#: A text cannot hold this: 128 random bits, drawn anew in each process.
_UNSPELLABLE = f"\0{secrets.token_hex(16)}\0"
_ADD = "give added tokens the ids that follow those of the vocabulary"
#: WordPiece takes time of the third power of a word's length; a longer word is unknown (BERT: 100 characters).
_LONGEST_WORD = 1000


def special_tokens(parts: Parts, end_of_text: str) -> dict[str, int]:
    """The tokens that no text yields, with their ids: the end of text, and what is special, or goes by such a name.

    The unknown token is none of them, for text may be unknown, unless it is the end of text too.
    """
    vocabulary = model_vocabulary(parts)
    added = {token["content"]: token["id"] for token in parts["added_tokens"]}
    known = {**vocabulary, **added}
    special = {token["content"] for token in parts["added_tokens"] if token["special"]} | {end_of_text}
    special |= {token for token in known if _CONTROL.fullmatch(token)}
    special |= set(_of_post_processor(parts["post_processor"]))
    special -= {_unknown(parts)} - {end_of_text}
    return {token: known[token] for token in special if token in known}


def model_vocabulary(parts: Parts) -> dict[str, int]:
    """The model's own tokens, without the added ones."""
    vocabulary = parts["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: index for index, (piece, _) in enumerate(vocabulary)}


def spelled_by_model(parts: Parts) -> set[str]:
    """The tokens that the model can make of text: of BPE, its alphabet and what merges lead to."""
    model = parts["model"]
    tokens = set(model_vocabulary(parts))
    if model["type"] != "BPE" or model["ignore_merges"] or _affixes(model):
        return tokens
    return {token for token in tokens if len(token) == 1} | {left + right for left, right in model["merges"]} & tokens


def encoding_backend(
    parts: Parts, special: dict[str, int], byte_symbols: tuple[str, ...] | None, continues: bool = False
) -> tokenizers.Tokenizer | None:
    """The tokenizer that encodes; None where the one of the file does so as it is.

    Args:
        parts: the content of the tokenizer.json, which is changed.
        special: what no text may yield.
        byte_symbols: of a byte-level vocabulary: an added token that consists of them and is a token of the model too
            would be decoded as the bytes, so text that spells it is encoded as text.
        continues: whether what is encoded goes on from a text: no prefix is put before it, and no space cut off.

    Raises:
        ValueError: the library gives the added tokens other ids.
    """
    before = json.dumps(parts)
    # Of the others the library itself keeps text away.
    spelled = spelled_by_model(parts)
    hidden = {token: f"{_UNSPELLABLE}{index}" for token, index in special.items() if token in spelled}
    unknown = _unknown(parts)
    if unknown in spelled:  # text that spells its name is known; where it is the end of text too, none is left
        hidden[unknown] = f"{_UNSPELLABLE}unknown"
    for token in parts["added_tokens"]:
        content = token["content"]
        symbols = byte_symbols is not None and not content.isascii() and set(content) <= set(byte_symbols)
        token["special"] |= content in special or (symbols and content in spelled)
        token["content"] = hidden.get(content, content)
    _hide(parts["model"], hidden)
    if unknown in special:
        parts["model"] |= {"unk_id": None} if "unk_id" in parts["model"] else {"unk_token": _UNSPELLABLE}
    _make_reliable(parts)
    if parts["model"]["type"] != "BPE" and "<0x41>" in spelled:
        cut = {"type": "Split", "pattern": {"Regex": _BYTE}, "behavior": "Isolated", "invert": False}
        members = [*flat(parts["pre_tokenizer"]), cut]
        parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": members}
    if continues:
        parts["normalizer"] = _without_ends(parts["normalizer"])
        _without_prefix(parts["pre_tokenizer"])
    if json.dumps(parts) == before:
        return None
    backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
    backend.encode_special_tokens = True
    for token in parts["added_tokens"]:
        if (found := backend.token_to_id(token["content"])) != token["id"]:
            raise ValueError(
                f"an added token of this tokenizer has the id {token['id']} and is loaded as {found}; {_ADD}"
            )
    return backend


def reason(message: str) -> str:
    """What an error of the library says, without the name that nobody gave."""
    return "it has no token for one of its characters" if _UNSPELLABLE in message else message


def _hide(model: Parts, hidden: dict[str, str]) -> None:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
        return
    model["vocab"] = {hidden.get(token, token): index for token, index in vocabulary.items()}
    model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if hidden and model["type"] == "BPE":
        cut = len(model["continuing_subword_prefix"] or "")
        model["merges"] = [
            (left, right) for left, right in model["merges"] if not {left, right, left + right[cut:]} & hidden.keys()
        ]


def _make_reliable(parts: Parts) -> None:
    """No chance, no word that takes hours, and no loss in silence.

    BPE leaves out what it does not know without a word; asked for an unknown token that is nowhere, it says so.
    """
    model = parts["model"]
    if model["type"] == "WordPiece":
        model["max_input_chars_per_word"] = min(model["max_input_chars_per_word"], _LONGEST_WORD)
    if model["type"] != "BPE":
        return
    model["dropout"] = None  # the tokens of a text are no matter of chance
    if model["unk_token"] is not None:
        return
    vocabulary = model["vocab"]
    of_bytes = {kind["type"] for kind in (*flat(parts["normalizer"]), *flat(parts["pre_tokenizer"]))}
    symbols = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if not ("ByteLevel" in of_bytes and symbols <= vocabulary.keys() and not _affixes(model)):
        model["unk_token"] = _UNSPELLABLE


def _affixes(model: Parts) -> bool:
    return bool(model["continuing_subword_prefix"] or model["end_of_word_suffix"])


def _unknown(parts: Parts) -> str | None:
    model = parts["model"]
    if "unk_id" not in model:
        return model["unk_token"]
    return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]


def flat(part: Parts | None) -> Iterator[Parts]:
    """A part of the file, or those of a sequence."""
    if part is None:
        return
    members = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders") or part.get("processors")
    if members is None:
        yield part
    for member in members or ():
        yield from flat(member)


def _of_post_processor(part: Parts | None) -> Iterator[str]:
    for processor in flat(part):
        if processor["type"] == "TemplateProcessing":
            for token in processor["special_tokens"].values():
                yield from token["tokens"]
        elif processor["type"] in ("BertProcessing", "RobertaProcessing"):
            yield from (processor["sep"][0], processor["cls"][0])


def _without_ends(normalizer: Parts | None) -> Parts | None:
    """Without what is done to the two ends of a text."""
    if normalizer is None or normalizer["type"] in ("Prepend", "Strip"):
        return None
    if "normalizers" in normalizer:
        kept = [_without_ends(member) for member in normalizer["normalizers"]]
        normalizer["normalizers"] = [member for member in kept if member is not None]
    return normalizer


def _without_prefix(pre_tokenizer: Parts | None) -> None:
    for part in flat(pre_tokenizer):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
