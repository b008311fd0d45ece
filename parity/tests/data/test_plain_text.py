"""Text is only text: whatever it spells, it yields no special token, or it is refused; added tokens come back."""

import copy
import pickle
import random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from parity.suite.robustness import hostile_text
from parity.suite.robustness.hostile_text import HostileText
from parity.suite.robustness.random_tokenizers import draw_tokenizer
from tools.tokenizer import END_OF_TEXT, build_tokenizer, parse_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz<>/|_[]"


def unigram(*special: str, unknown: int | None = 0, **options) -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in special), ("\u2581", -2.0), *((c, -4.0) for c in LETTERS)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=unknown, **options))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def words(unknown: str, *others: str) -> tokenizers.Tokenizer:
    vocabulary = {word: index for index, word in enumerate([unknown, *others])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def pieces(*special: str, **options) -> tokenizers.Tokenizer:
    names = ["[UNK]", *special, *LETTERS, *("##" + letter for letter in LETTERS)]
    vocabulary = {piece: index for index, piece in enumerate(names)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", **options))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    return backend


def merged(*special: str, **options) -> tokenizers.Tokenizer:
    """A BPE whose merges lead to special tokens."""
    vocabulary = {letter: index for index, letter in enumerate([*LETTERS, " ", "</s>"])}
    merges = {}
    for token in special:
        for end in range(2, len(token) + 1):
            vocabulary.setdefault(token[:end], len(vocabulary))
            merges[token[: end - 1], token[end - 1]] = None
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [*merges], **options))
    backend.decoder = decoders.Fuse()
    return backend


def normalized(backend: tokenizers.Tokenizer, normalizer) -> tokenizers.Tokenizer:
    backend.normalizer = normalizer
    return backend


def added(backend: tokenizers.Tokenizer, *tokens: AddedToken | str) -> tokenizers.Tokenizer:
    backend.add_tokens([*tokens])
    return backend


def framed(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """With tokens around a text that are marked as special nowhere but here."""
    ids = [(token, backend.token_to_id(token)) for token in ("begin", "end")]
    backend.post_processor = processors.TemplateProcessing(single="begin $A end", special_tokens=ids)
    return backend


CASES = {
    "unigram": (unigram("</s>"), "a</s>", "\u2581 a < / s >"),
    "unigram, others": (unigram("</s>", "<s>", "<pad>"), "<s><pad>", "\u2581 < s > < p a d >"),
    "unigram, unknown": (unigram("</s>"), "<unk>", "\u2581 < u n k >"),
    "unigram, unknown letters": (unigram("</s>", "\u00e9"), "\u00e9\u00e8</s>", "\u2581 \u00e9 <unk> < / s >"),
    "unigram, unknown is special": (
        added(unigram("</s>"), AddedToken("<unk>", special=True), "hello"),
        "<unk></s>hello", "\u2581 < u n k > < / s > hello",
    ),
    "unigram, normalized": (normalized(unigram("</s>"), normalizers.NFKC()), "\uff1c/s>", "\u2581 < / s >"),
    "words": (words("<unk>", END_OF_TEXT, "a", "[CLS]"), f"a {END_OF_TEXT} [CLS] a", "a <unk> <unk> a"),
    "words, lower case": (normalized(words("<unk>", "<eos>", "a"), normalizers.Lowercase()), "a <EOS> A", "a <unk> a"),
    "words, framed": (framed(words("<unk>", "</s>", "a", "begin", "end")), "begin a end", "<unk> a <unk>"),
    "pieces": (pieces("</s>", "<s>"), "</s> <s>x", "< ##/ ##s ##> < ##s ##> ##x"),
    "merges": (merged("</s>"), "a</s>b", "a </s > b"),
    "merges of merges": (merged("</s>", "<s>", "<s>x"), "<s>x</s>", "<s > x </s >"),
    "merges, unknown": (merged("</s>", "<unk>", unk_token="<unk>"), "<unk>\u00e9", "<unk > <unk>"),
    "words before merges, unknown": (
        merged("</s>", "<unk>", unk_token="<unk>", ignore_merges=True), "<unk>", "<unk >"),
    "words before merges": (merged("</s>", ignore_merges=True), "</s>", "</s >"),
    "added": (added(merged("</s>"), AddedToken("<me>", special=True)), "<me>", "< m e >"),
    "added, lower case": (
        added(normalized(merged("</s>"), normalizers.Lowercase()), AddedToken("<ME>", special=True, normalized=True)),
        "<me><Me>", "< m e > < m e >",
    ),
    "added, not marked": (added(merged("</s>"), "<|me|>", "hello"), "<|me|>hello", "< | m e | > hello"),
    "added, as end of text": (added(merged("ab"), "</s>"), "ab</s>", "ab < / s >"),
    "added, but the model has it": (added(merged("</s>"), "</s>"), "</s>", "</s >"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_text_that_spells_a_special_token_is_other_text(case: str):
    backend, text, wanted = CASES[case]
    tokenizer = parse_tokenizer(backend.to_str())
    before, ids = tokenizer.to_json(), tokenizer.encode(text).tolist()
    assert [tokenizer.backend.id_to_token(token) for token in ids] == wanted.split()
    assert tokenizer.end_of_text_id in tokenizer.special_ids and not tokenizer.special_ids & {*ids}
    assert tokenizer.encode(text, continues=True).tolist() == ids[ids[0] == tokenizer.backend.token_to_id("\u2581") :]
    # The file stays what it was, and decoding still names the token.
    assert tokenizer.to_json() == before and parse_tokenizer(before).encode(text).tolist() == ids
    marker = tokenizer.backend.id_to_token(tokenizer.end_of_text_id)
    assert marker and tokenizer.decode([*ids, tokenizer.end_of_text_id]).endswith(marker)


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.Strip(), normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])],
    ids=["alone", "among others"],
)
def test_what_goes_on_keeps_its_spaces(normalizer: normalizers.Normalizer):
    """They are cut off from the ends of a whole text alone."""
    tokenizer = parse_tokenizer(normalized(build_tokenizer("byte").backend, normalizer).to_str())
    assert bytes(tokenizer.encode(" a ").tolist()) == b"a"
    assert bytes(tokenizer.encode(" a ", continues=True).tolist()) == b" a "


@pytest.mark.parametrize("make", [*CASES, "byte", "bpe:300"])
def test_a_copy_is_the_same(make: str):
    """The library's own flag is lost where its tokenizer is copied or pickled, on the way to another process."""
    tokenizer = parse_tokenizer(CASES[make][0].to_str()) if make in CASES else build_tokenizer(make, ["a b c"] * 9)
    text = CASES[make][1] if make in CASES else f"a{END_OF_TEXT}b"
    ids = tokenizer.encode(text).tolist()
    for other in (copy.copy(tokenizer), copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(text).tolist() == ids and other.to_json() == tokenizer.to_json()
        assert (other.end_of_text_id, other.dtype) == (tokenizer.end_of_text_id, tokenizer.dtype)


REFUSED = {
    "unigram": (unigram("</s>", unknown=1), "a\u00e9", "unk_id"),
    "words": (words(END_OF_TEXT, "a"), "a b", "UNK"),
    "pieces": (words("[SEP]", "a"), "a b", "UNK"),
    "merges": (merged("</s>", unk_token="</s>"), "a\u00e9", "it has no token for one of its characters"),
    "unmerged": (merged("ab", unk_token="</s>"), "a\u00e9", "it has no token for one of its characters"),
    "a letter that is lost in silence": (merged("</s>"), "a\u00e9", "it has no token for one of its characters"),
    "half a pair of surrogates": (merged("</s>"), "a\ud800", "surrogates"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_encoded_is_refused(case: str):
    backend, text, message = REFUSED[case]
    tokenizer = parse_tokenizer(backend.to_str())
    with pytest.raises(ValueError, match=message) as error:
        tokenizer.encode(text)
    assert "\n" not in str(error.value)


def test_a_special_token_that_slips_through_is_refused(monkeypatch):
    """Whatever the library makes of a text: the last look is at the ids."""
    monkeypatch.setattr("tools.tokenizer.tokenizer.encoding_backend", lambda *arguments: None)
    with pytest.raises(ValueError, match="it makes '</s>' of it"):
        parse_tokenizer(unigram("</s>").to_str()).encode("a</s>")


def test_what_the_library_cannot_decode_is_refused():
    """It panics where a space is stripped from both ends of a single one; that is no Exception of Python."""
    backend = added(merged("ab"), "</s>")
    backend.decoder = decoders.Strip(" ", 1, 1)
    tokenizer = parse_tokenizer(backend.to_str())
    with pytest.raises(ValueError, match="cannot decode these ids"):
        tokenizer.decode(tokenizer.encode(" "))


def test_a_word_without_end_takes_no_time():
    """WordPiece looks for pieces in every part of a word, which takes hours where it is long; then it is unknown."""
    tokenizer = parse_tokenizer(pieces("</s>", max_input_chars_per_word=10**9).to_str())
    unknown = tokenizer.backend.token_to_id("[UNK]")
    assert len(tokenizer.encode("acgt" * 250)) == 1000 and unknown not in tokenizer.encode("acgt" * 250)
    for letters in (1001, 200_000):
        assert tokenizer.encode("a" * letters).tolist() == [unknown]


def test_the_tokens_of_a_text_are_no_matter_of_chance():
    tokenizer = parse_tokenizer(merged("hello", dropout=0.5).to_str())
    assert {len(tokenizer.encode("hello")) for _ in range(9)} == {1}


ADDED = (
    "caf\u00e9",
    "\u00fcber",
    "\u4e2d\u6587",
    "\U0001f600",
    "\u00e9",
    "\u0120",
    "\u00a7\u00a7",
    "the",
    "\u0120the",
    "na\u00efve x",
)


@pytest.mark.parametrize("token", ADDED)
@pytest.mark.parametrize("sequence", [False, True])
def test_added_letters_of_byte_level_vocabularies_come_back(token: str, sequence: bool):
    """Also where the token consists of the symbols of bytes, or is one of the model's that the text does not mean."""
    content = build_tokenizer("bpe:300", [f"the caf\u00e9 {token} the "] * 20).to_json()
    backend = added(tokenizers.Tokenizer.from_str(content), AddedToken(token, normalized=False))
    if sequence:
        backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    tokenizer = parse_tokenizer(backend.to_str())
    # Each of the three, and the character that begins with the byte whose symbol is \u00e9.
    text = f"the {token}{token} \u9999 \u00e9t\u00e9 \u0120 caf\u00e9 {token}the"
    ids, stream = tokenizer.encode(text).tolist(), tokenizer.stream_decoder()
    assert tokenizer.decode(ids) == text
    assert "".join([stream.push(index) for index in ids]) + stream.flush() == text


@settings(max_examples=max(12, settings().max_examples // 8))
@given(st.integers(0, 10**9))
def test_hostile_text(number: int):
    """A random tokenizer of any kind and random text, as `python -m parity.suite.robustness.hostile_text` has them."""
    draw = random.Random(number)
    hostile_text.check(draw_tokenizer(draw), draw)


def test_the_fuzzer_finds_a_fault(monkeypatch, capsys):
    monkeypatch.setattr("tools.tokenizer.plain_text._hide", lambda *arguments: None)
    assert hostile_text.run(HostileText(cases=60)) == 1
    told = capsys.readouterr().out
    assert "again: python -m parity.suite.robustness.hostile_text --seed 0 --first" in told
    monkeypatch.undo()
    number = int(told.rsplit("--first ", 1)[1].split()[0])
    assert hostile_text.run(HostileText(first=number, cases=1)) == 0
    assert "1 tokenizers" in capsys.readouterr().out


@pytest.mark.parametrize("pre_tokenizer", [None, pre_tokenizers.Metaspace(prepend_scheme="never")])
def test_a_text_that_spells_a_byte_is_no_byte(pre_tokenizer):
    """A Unigram that falls back on bytes has them by name, and would find the name in a text."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), ("\u2581", -2.0)]
    backend = tokenizers.Tokenizer(models.Unigram([*pieces, ("a", -4.0)], unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    tokenizer = parse_tokenizer(backend.to_str())
    for text in ("a<0xE2>a", "<0x41><0x42>", "\u00e9<0xC3>", "<<0x0A>>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
