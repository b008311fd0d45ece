"""Every tokenizer gives back the text it took, streams it without halves of characters, and names what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from parity.suite.support.fixtures import SHARED
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer, load_tokenizer, parse_tokenizer

GPT2_FILES = (SHARED / "gpt2/vocab.json", SHARED / "gpt2/merges.txt")
needs_gpt2 = pytest.mark.skipif(not GPT2_FILES[0].exists(), reason=f"no GPT-2 files in {SHARED / 'gpt2'}")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["", END_OF_TEXT, f"a{END_OF_TEXT}b", "  two  spaces \n\n\n", "\r\n\t", "e\u0301 \U0001f469\u200d\U0001f680 \u4f60"]
)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return build_tokenizer("bpe:400", stories(200))


@pytest.fixture(scope="module", params=["byte", "bpe", pytest.param("gpt2", marks=needs_gpt2)])
def tokenizer(request: pytest.FixtureRequest, bpe: Tokenizer) -> Tokenizer:
    if request.param == "bpe":
        return bpe
    return build_tokenizer(request.param, files=GPT2_FILES if request.param == "gpt2" else None)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.end_of_text_id not in ids
    assert tokenizer.decode(ids) == text
    (document,) = tokenizer.encode_documents([text])
    assert document.dtype == tokenizer.dtype == np.dtype("<u2")
    np.testing.assert_array_equal(document, ids)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_streaming_equals_decoding(tokenizer: Tokenizer, data: st.DataObject):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    stream = tokenizer.stream_decoder()
    assert "".join([stream.push(token) for token in ids]) + stream.flush() == tokenizer.decode(ids)


@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_the_bytes_of_the_tokens_are_those_of_the_text(tokenizer: Tokenizer, text: str):
    assert b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text).tolist()) == text.encode()


@pytest.mark.parametrize(
    "vocabulary, decoder, expected",
    [
        (
            {"<s>": 0, "\u2581the": 1, "re": 2, "<0xE2>": 3, END_OF_TEXT: 4, "\u2581": 5},
            decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]),
            [b"<s>", b" the", b"re", b"\xe2", END_OF_TEXT.encode(), b" "],
        ),
        ({"the": 0, "##re": 1, END_OF_TEXT: 2}, decoders.WordPiece(), [b" the", b"re", END_OF_TEXT.encode()]),
        ({"the": 0, "re": 1, END_OF_TEXT: 2}, decoders.Metaspace(), [b"the", b"re", END_OF_TEXT.encode()]),
    ],
)
def test_the_bytes_of_a_token_of_a_foreign_tokenizer(vocabulary, decoder, expected):
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    backend.decoder = decoder
    backend.add_special_tokens([END_OF_TEXT])
    tokenizer = parse_tokenizer(backend.to_str())
    assert [tokenizer.token_bytes(token) for token in range(len(vocabulary))] == expected
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.token_bytes(len(vocabulary))


@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_streaming_never_emits_half_a_character(tokenizer: Tokenizer, text: str):
    stream = tokenizer.stream_decoder()
    shown = ""
    for token in tokenizer.encode(text):
        shown += stream.push(int(token))
        assert text.startswith(shown)
    assert shown == text
    assert stream.flush() == ""


def test_the_json_is_the_whole_tokenizer(tokenizer: Tokenizer, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    loaded = load_tokenizer(path)
    assert loaded.to_json() == tokenizer.to_json()
    assert (loaded.vocab_size, loaded.end_of_text_id) == (tokenizer.vocab_size, tokenizer.end_of_text_id)
    text = "One day, \u00e9t\u00e9 came.\n\n  " + END_OF_TEXT
    np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))
    foreign = tokenizers.Tokenizer.from_file(str(path))
    foreign.encode_special_tokens = True
    assert foreign.encode(text).ids == tokenizer.encode(text).tolist()
    assert foreign.decode(foreign.encode(text).ids) == text


def test_end_of_text_decodes_to_its_marker(tokenizer: Tokenizer):
    assert tokenizer.decode([tokenizer.end_of_text_id]) == END_OF_TEXT


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, token: int):
    with pytest.raises(ValueError, match=f"{token} is outside the vocabulary of {tokenizer.vocab_size}"):
        tokenizer.decode([token])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.stream_decoder().push(token)


def test_bytes_are_their_own_ids():
    tokenizer = build_tokenizer("byte")
    assert (tokenizer.vocab_size, tokenizer.end_of_text_id) == (257, 256)
    assert tokenizer.is_bytes
    text = "".join(map(chr, range(0x250)))
    assert tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.backend.encode(text).ids == list(text.encode())
    assert tokenizer.decode(range(256)) == bytes(range(256)).decode("utf-8", "replace")


def test_bpe_is_deterministic_and_has_the_size_asked_for(bpe: Tokenizer):
    again = build_tokenizer("bpe:400", iter(list(stories(200))))
    assert again.to_json() == bpe.to_json()
    assert (bpe.vocab_size, bpe.end_of_text_id) == (400, 399)
    assert len(bpe.encode("Once upon a time there was a")) < 16
    assert not bpe.is_bytes


def test_bpe_without_room_for_merges_is_bytes_in_another_order():
    smallest = build_tokenizer("bpe:257", ["some text"])
    assert smallest.vocab_size == 257
    assert len(smallest.encode("caf\u00e9")) == 5


def test_bpe_of_a_short_text_is_smaller_than_asked_for():
    assert build_tokenizer("bpe:5000", ["ab ab ab"]).vocab_size < 270


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bytes", "did you mean byte"),
        ("gtp2", "did you mean gpt2"),
        ("bpe", "unknown tokenizer 'bpe': give its size, bpe:8000, for example; choose"),
        ("bpe4096", "did you mean bpe:4096"),
        ("sentencepiece", "choose byte, gpt2, bpe:SIZE or a tokenizer.json"),
        ("bpe:256", "bpe:256: SIZE must be a whole number of at least 257"),
        ("bpe:", "SIZE must be"),
        ("bpe:4k", "SIZE must be"),
        ("bpe:-5", "SIZE must be"),
    ],
)
def test_wrong_names(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        build_tokenizer(name)


def test_files_belong_to_gpt2():
    with pytest.raises(ValueError, match="--tokenizer-files belongs to --tokenizer gpt2, not to byte"):
        build_tokenizer("byte", files=(Path("a"), Path("b")))


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        build_tokenizer("nowhere.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.json: not ") as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_end_of_text():
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(ValueError, match="no end-of-text token"):
        parse_tokenizer(backend.to_str())


def test_a_tokenizer_that_prefixes_a_space_encodes_a_document_whole():
    """Each piece of it would get a space of its own."""
    backend = build_tokenizer("bpe:300", ["a b c"] * 9).backend
    for prefixes in (False, True):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixes)
        tokenizer = parse_tokenizer(backend.to_str())
        assert tokenizer.cuts_before_spaces is not prefixes
        assert (tokenizer.decode(tokenizer.encode("a b")) == " a b") is prefixes


def test_a_foreign_tokenizer_neither_truncates_nor_adds():
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "hello": 3, "world": 4, "##s": 5}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    tokenizer = parse_tokenizer(backend.to_str())
    assert tokenizer.end_of_text_id == 2
    assert not tokenizer.cuts_before_spaces
    ids = tokenizer.encode("Hello worlds hello hello hello")
    assert ids.tolist() == [3, 4, 5, 3, 3, 3]
    stream = tokenizer.stream_decoder()
    assert [stream.push(int(token)) for token in ids] == ["hello", " world", "s", " hello", " hello", " hello"]
    assert stream.flush() == ""


def test_a_character_of_byte_tokens_streams_whole():
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"</s>": 256, "\u2581hi": 257}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    replace = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = parse_tokenizer(backend.to_str())
    stream = tokenizer.stream_decoder()
    assert [stream.push(token) for token in [257, *"\u20ac".encode(), 257]] == ["hi", "", "", "\u20ac", " hi"]
    assert [stream.push(0xE2), stream.flush()] == ["", "\ufffd"]
    # A wrong byte takes no whole character along, neither before it nor after it; nor does the half of one.
    ids = [*"\u20ac".encode(), 0xFF, *"\u4e2d\ufffd".encode(), 0xE2, 0x82]
    stream = tokenizer.stream_decoder()
    assert "".join([stream.push(token) for token in ids]) == "\u20ac\ufffd\u4e2d\ufffd"
    assert tokenizer.decode(ids) == "\u20ac\ufffd\u4e2d\ufffd\ufffd\ufffd" and stream.flush() == "\ufffd\ufffd"


def test_text_that_shrinks_is_shown_as_far_as_it_has_grown():
    """Nothing that was shown can be taken back."""
    vocabulary = {token: index for index, token in enumerate(["</s>", "a", "b", "c"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("abc", "X")])
    stream = parse_tokenizer(backend.to_str()).stream_decoder()
    assert [stream.push(token) for token in (1, 2, 3, 1, 2, 1)] == ["a", "b", "", "", "b", "a"]
    assert stream.flush() == ""


def test_a_long_stream_keeps_a_short_window():
    """Of tokens that say nothing at first, blanks that are stripped, and wrong bytes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"</s>": 256, "\u2581": 257, "x": 258, "": 259}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    spaces = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 70, 0)])
    tokenizer = parse_tokenizer(backend.to_str())
    for ids in ([257] * 300 + [258] * 300, [259] * 90 + [257] * 90 + [258] * 90, [0xE2, 258] * 200, [0xE2] * 200):
        stream = tokenizer.stream_decoder()
        assert "".join([stream.push(token) for token in ids]) + stream.flush() == tokenizer.decode(ids)
        assert len(stream._ids) < 100 or ids[0] != 0xE2
