"""Documents come out of files whole, the split loses nothing, and cutting long documents changes no token."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.data import pieces as cutting
from tools.data.pieces import Piece, split_documents
from tools.data.split import Split, choose_split, route
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT, Tokenizer, build_tokenizer


def _joined(pieces: Iterator[Piece]) -> list[str]:
    found = [""]
    for text, ends in pieces:
        found[-1] += text
        if ends:
            found.append("")
    assert found.pop() == ""
    return found


@settings(deadline=None)
@given(data=st.data())
def test_cutting_into_pieces_changes_no_document(data: st.DataObject):
    alphabet = st.sampled_from(["a", "word", " ", "\n", "\r\n", ".", "\u00e9", END_OF_TEXT, "<|endof", "text|>", "<"])
    text = "".join(data.draw(st.lists(alphabet, max_size=60)))
    size = data.draw(st.integers(1, 20))
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    expected = _joined(split_documents([text], whole=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_PIECE_CHARACTERS", data.draw(st.integers(0, 30)))
        assert _joined(split_documents(blocks)) == expected
        assert _joined(split_documents(blocks, whole=True)) == expected
    assert [document for document in expected if not document.strip() or END_OF_TEXT in document] == []
    if END_OF_TEXT not in text:
        assert expected == ([text] if text.strip() else [])


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_pieces_are_encoded_as_the_whole_is(bpe: Tokenizer, data: st.DataObject):
    alphabet = st.sampled_from(["a", "word", "'s", "  ", " ", "\n", "\n\n", "\t", ".", "12", "\u00e9", "\u2003", "!?"])
    text = "".join(data.draw(st.lists(alphabet, min_size=1, max_size=60))) + "."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_PIECE_CHARACTERS", 0)
        pieces = [piece for piece, _ in split_documents(text)]
    assert bpe.cuts_before_spaces
    np.testing.assert_array_equal(np.concatenate(bpe.encode_documents(pieces)), bpe.encode(text))


UNBROKEN = {
    "DNA": "ACGTTGCA",
    "tabs": "abc\tde\t",
    "old line ends": "one line\rand\ranother\r".replace(" ", "_"),
    "Chinese": "\u4e2d\u6587\u5b57\u3002",
    "no punctuation": "\u4e2d\u6587\u5b57",
    "spaces": "        ",
    "spaces around a word": " " * 5000 + "word" + " " * 5000,
    "line breaks": "\r\n",
    "tab and space": "a\t ",
    "markers": END_OF_TEXT,
    "empty documents": f"{END_OF_TEXT}\n",
    "cut markers": "<|endoftext<|endoftext",
    "letters as documents": f"a{END_OF_TEXT}",
    "words": "some words ",
}


class _Counting:
    """A pattern, and how many characters it was given."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern, self.characters = pattern, 0

    def match(self, text: str) -> re.Match[str] | None:
        self.characters += len(text)
        return self.pattern.match(text)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("block", [8, 256])
@pytest.mark.parametrize("name", UNBROKEN)
def test_any_text_is_read_in_linear_time_and_constant_memory(
    name: str, block: int, whole: bool, monkeypatch: pytest.MonkeyPatch
):
    longest, copied = 1 << 11, 0
    for constant, value in (("LONGEST", longest), ("_BLOCK_CHARACTERS", 1 << 8), ("_PIECE_CHARACTERS", 1 << 8)):
        monkeypatch.setattr(cutting, constant, value)
    patterns = [_Counting(cutting._LAST_WORD), _Counting(cutting._LAST_BORDER)]
    monkeypatch.setattr(cutting, "_LAST_WORD", patterns[0])
    monkeypatch.setattr(cutting, "_LAST_BORDER", patterns[1])
    add, front = cutting._OpenDocument._add_block, cutting._OpenDocument._front

    def add_and_look(document: cutting._OpenDocument, text: str) -> Iterator[Piece]:
        yield from add(document, text)
        held = {id(each): len(each) for each in document._blocks}
        assert sum(held.values()) <= longest + 2 * block

    def count(document: cutting._OpenDocument, size: int) -> list[str]:
        nonlocal copied
        copied += size
        return front(document, size)

    monkeypatch.setattr(cutting._OpenDocument, "_add_block", add_and_look)
    monkeypatch.setattr(cutting._OpenDocument, "_front", count)
    unit = UNBROKEN[name]
    text = unit * ((1 << 14) // len(unit) + 1)
    pieces = [*split_documents((text[at : at + block] for at in range(0, len(text), block)), whole)]
    assert max((len(piece) for piece, _ in pieces), default=0) <= longest
    # A character is looked at once, and once more beside the next block.
    assert max(pattern.characters for pattern in patterns) <= len(text) * (1 + 2 / block) + 1
    assert copied <= 3 * len(text)
    visible = text.replace(END_OF_TEXT, "") if name != "empty documents" and text.strip() else ""
    assert "".join(piece for piece, _ in pieces) == visible


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return build_tokenizer("bpe:600", ["word word's  words a12 12.\n\n\u00e9 ! ?! \t" * 5, *stories(20)])


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), fraction=st.floats(0.01, 0.99))
def test_the_split_is_where_it_should_be(lengths: list[int], fraction: float):
    total = sum(lengths)
    cut = int(total * (1 - fraction))
    if len(lengths) < 20 and not 0 < cut < total:
        with pytest.raises(ValueError, match=str(fraction)):
            choose_split(lengths, fraction)
        return
    split = choose_split(lengths, fraction)
    train = sum(lengths[: split.documents]) + split.characters
    assert 0 < train < total
    if len(lengths) < 20:
        assert train == cut
        assert split.characters < lengths[split.documents]
    else:
        assert split.characters == 0
        nearest = min(abs(sum(lengths[:count]) - total * (1 - fraction)) for count in range(1, len(lengths)))
        assert abs(train - total * (1 - fraction)) == pytest.approx(nearest)


@given(data=st.data())
def test_routing_loses_nothing(data: st.DataObject):
    texts = data.draw(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=8))
    size = data.draw(st.integers(1, 4))
    pieces = [(text[at : at + size], at + size >= len(text)) for text in texts for at in range(0, len(text), size)]
    count = data.draw(st.integers(0, len(texts) - 1))
    split = Split(count, data.draw(st.integers(0, len(texts[count]) - 1)))
    routed = list(route(pieces, split))
    parts = ["".join(text + "|" * ends for part, text, ends in routed if part == name) for name in ("train", "val")]
    assert "".join(parts) == "".join(text + "|" for text in texts)
    assert len(parts[0].replace("|", "")) == sum(map(len, texts[:count])) + split.characters
    assert [part for part, *_ in routed] == sorted(part for part, *_ in routed)
