"""What is shown is the text of the tokens: prompts, turns and stop strings, for tokenizers that add or drop a space."""

import itertools
import json
from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from spec.sampling import Sampling
from tools.generation.session import RECENT, Session
from tools.tokenizer import Tokenizer, build_tokenizer, parse_tokenizer

GREEDY = Sampling(temperature=0.0)
LETTERS = "once\u2581x. "
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def bpe(*words: str, **options) -> models.BPE:
    vocabulary = {letter: index for index, letter in enumerate(["</s>", *LETTERS, *(BYTES if options else ())])}
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    return models.BPE(vocabulary, merges, **options)


def made(model, before=None, after=None, normalizer=None) -> Tokenizer:
    backend = tokenizers.Tokenizer(model)
    if before is not None:
        backend.pre_tokenizer = before
    if after is not None:
        backend.decoder = after
    if normalizer is not None:
        backend.normalizer = normalizer
    return parse_tokenizer(backend.to_str())


def metaspace(scheme: str) -> Tokenizer:
    words = bpe("\u2581on", "\u2581once", byte_fallback=True)
    return made(
        words,
        pre_tokenizers.Metaspace(prepend_scheme=scheme),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]),
    )


def llama() -> Tokenizer:
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    prefix = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return made(bpe("\u2581on", byte_fallback=True), None, decoders.Sequence(steps), prefix)


def prefixing_bytes() -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(build_tokenizer("bpe:270", ["once on x"] * 9).to_json())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return parse_tokenizer(backend.to_str())


UNIGRAM = [
    ("<unk>", 0.0),
    ("</s>", 0.0),
    ("\u2581", -3.0),
    ("\u2581on", -2.0),
    *((letter, -5.0) for letter in "oncex."),
]
PIECES = ["[UNK]", "[SEP]", "once", "on", "x", ".", "c", *(f"##{letter}" for letter in ("ce", "c", "e", "x", "on"))]
WORDS = ["<unk>", "</s>", "once", "on", "x", "."]
#: Those whose tokens can tell any text after the first word.
EXACT = {
    "byte": lambda: build_tokenizer("byte"),
    "byte-level": prefixing_bytes,
    "always": lambda: metaspace("always"),
    "first": lambda: metaspace("first"),
    "never": lambda: metaspace("never"),
    "llama": llama,
}
OTHERS = {
    "unigram": lambda: made(models.Unigram(UNIGRAM, unk_id=0), pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "pieces": lambda: made(
        models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]"),
        pre_tokenizers.Whitespace(), decoders.WordPiece(),
    ),
    "words": lambda: made(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"),
        pre_tokenizers.Whitespace(),
    ),
    "ends of words": lambda: made(
        models.BPE(
            {token: index for index, token in enumerate(["</s>", "o", "n", "n</w>", "on</w>", "x</w>", ".</w>"])},
            [("o", "n</w>")], end_of_word_suffix="</w>",
        ),
        pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>"),
    ),
}  # fmt: skip
EVERY = {kind: cache(make) for kind, make in {**EXACT, **OTHERS}.items()}


def writing(tokenizer: Tokenizer, *turns: Iterable[int]) -> Session:
    """A session of a model that writes these tokens, whatever it is told; its state is all that it has absorbed."""
    following = itertools.chain(*turns)

    def step(tokens_bt, states):
        return np.eye(1, tokenizer.vocab_size, next(following, 0)), (
            *states,
            *tokens_bt[0].tolist(),
        ) if states else tuple(tokens_bt[0].tolist())

    return Session(step, tokenizer)


def ids_of(session: Session) -> list[int]:
    assert session.states is None or isinstance(session.states, tuple)
    return [*(session.states or ()), *session.pending]


@pytest.mark.parametrize("kind", EVERY)
def test_a_reply_begins_with_its_space(kind: str):
    tokenizer = EVERY[kind]()
    prompt, whole = tokenizer.encode("on").tolist(), tokenizer.encode("on x on . on").tolist()
    session = writing(tokenizer, whole[len(prompt) :])
    session.append("on")
    reply = list(session.write(GREEDY, len(whole) - len(prompt)))
    assert "on" + "".join(reply) == "on x on . on".replace(" .", "." if kind == "pieces" else " .")
    assert ids_of(session) == whole
    assert len([piece for piece in reply if piece]) >= 4, "shown as it comes"


@pytest.mark.parametrize("kind", EXACT)
@given(data=st.data())
def test_turns_are_appended_as_they_are(kind: str, data: st.DataObject):
    """Spaces at both ends of a line and of a reply, empty ones, any stop strings."""
    tokenizer, text = EVERY[kind](), st.text("on x.\n\u00e9\U0001f600", max_size=5)
    lines = data.draw(st.lists(text, min_size=1, max_size=4))
    session = writing(tokenizer)
    session.append("once")
    # A prefix shows before the first word, where the decoder does not take it away.
    shown = tokenizer.decode(ids_of(session))
    assert shown.strip() == "once"
    for line in lines:
        session.append(line)
        reply = tokenizer.encode(data.draw(text), continues=True).tolist()
        session._step = writing(tokenizer, reply)._step
        stop = data.draw(st.lists(st.text("on x\u00e9", min_size=1, max_size=2), max_size=2))
        shown += line + "".join(session.write(GREEDY, len(reply), stop))
    assert tokenizer.decode(ids_of(session)) == shown


@pytest.mark.parametrize(
    ("kind", "tokens", "stop", "shown"),
    [
        ("pieces", ["on", "##c", "##e", "x"], "e x", " onc"),
        ("pieces", ["on", "##ce", "x"], "e", " onc"),
        ("pieces", ["on", "##x", "##on"], "o", " "),
        ("always", ["\u2581once", "\u2581on"], "ce", " on"),
        ("first", ["\u2581once", "\u2581on"], "e o", " onc"),
        ("llama", ["\u2581on", "\u2581on"], "n o", " o"),
        ("words", ["once", "x"], " x", " once"),
        ("words", ["once", "x"], "x", " once "),
    ],
)
def test_after_a_stop_string_the_tokens_are_what_was_shown(kind: str, tokens: list[str], stop: str, shown: str):
    tokenizer = EVERY[kind]()
    vocabulary = tokenizer.backend.get_vocab()
    ids = [vocabulary[token] for token in tokens]
    session = writing(tokenizer, ids)
    session.append("x")
    assert "".join(session.write(GREEDY, 9, [stop])) == shown
    # A space alone is nothing to vocabularies of words.
    assert tokenizer.decode(ids_of(session)) == "x" + (shown.rstrip() if kind in ("words", "pieces") else shown)


@pytest.mark.parametrize(("stop", "left"), [("\u201c", "x "), ("\u201chi", "x "), (" \u201c", "x"), ("hi", "x \u201c")])
def test_after_a_stop_string_no_half_of_a_character_stays(stop: str, left: str):
    """Where a token ends one character and begins another, as GPT-2's for a space and most of a quotation mark."""
    parts = json.loads(build_tokenizer("byte").to_json())
    parts["model"]["vocab"] |= {"\u0120\u00e2": 256, "\u0120\u00e2\u0122": 257}
    parts["model"]["merges"] = [["\u0120", "\u00e2"], ["\u0120\u00e2", "\u0122"]]
    parts["added_tokens"][0]["id"] = 258
    tokenizer = parse_tokenizer(json.dumps(parts))
    whole = tokenizer.encode(" \u201chi").tolist()
    assert tokenizer.decode(whole[:1]) == " \ufffd"
    session = writing(tokenizer, whole)
    session.append("x")
    assert "x" + "".join(session.write(GREEDY, len(whole), [stop])) == left
    assert tokenizer.decode(ids_of(session)) == left


def test_a_long_text_is_shown_from_its_last_tokens_alone(monkeypatch):
    tokenizer = metaspace("always")
    sizes, decode = [], Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: (sizes.append(len(ids)), decode(self, ids))[1])
    reply = tokenizer.encode(" on x\U0001f600 once" * 90, continues=True).tolist()
    session = writing(tokenizer, reply)
    session.append("once " * 900)
    shown = "".join(session.write(GREEDY, len(reply)))
    assert shown == " on x\U0001f600 once" * 90
    # But for the first, which has the prompt.
    assert max(sizes[8:]) <= RECENT and len(session._recent) == RECENT
