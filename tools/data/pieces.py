"""A stream of text cut into documents, and long ones into pieces, in linear time and constant memory."""

import re
from collections import deque
from collections.abc import Iterable, Iterator

from tools.tokenizer import END_OF_TEXT

#: A piece of a document, and whether the document ends with it.
Piece = tuple[str, bool]

_BLOCK_CHARACTERS = 1 << 16
_PIECE_CHARACTERS = 1 << 16
#: Characters that wait for a place to cut at: a longer word is cut, and so is a longer document that should not be.
LONGEST = 1 << 22
# Where GPT-2's pattern ends a token whatever comes before and after, so that both sides are encoded as the whole is.
_LAST_WORD = re.compile(r".*\S(?=[ \n])", re.DOTALL)
# Letters of scripts that go without spaces, and the most common: no version of Unicode sees them otherwise.
_LETTERS = r"0-9A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_MARKS = r".,;:!?()\u3001\u3002\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
_LAST_BORDER = re.compile(rf".*(?:\S(?=[\t\v\f\r])|[{_LETTERS}](?=[{_MARKS}]))", re.DOTALL)
_MARK = re.compile(rf"[\t\v\f\r{_MARKS}]")


def split_documents(blocks: Iterable[str], whole: bool = False) -> Iterator[Piece]:
    """Cut a stream of text at the <|endoftext|> markers; line breaks around a marker belong to it.

    Time is linear in the text, and memory does not grow with it: whatever waits for LONGEST characters is cut.

    Args:
        blocks: the text, in any pieces.
        whole: never cut inside a document; otherwise long ones are cut where a space or newline follows a word, where
            there is none where another kind of white space, or punctuation, follows one.

    Yields: pieces; documents without any visible character are left out.
    """
    document, carried, after_marker = _OpenDocument(whole), "", False
    for block in blocks:
        *complete, text = (carried + block).split(END_OF_TEXT)
        for end in complete:
            if document.is_empty and len(end) <= _PIECE_CHARACTERS:
                # Most documents: nothing of them has to wait.
                end = end.rstrip("\r\n")
                end = end.lstrip("\r\n") if after_marker else end
                if end and not end.isspace():
                    yield end, True
                after_marker = True
                continue
            yield from document.add(end.lstrip("\r\n") if after_marker and document.is_empty else end)
            yield from document.end(before_marker=True)
            document, after_marker = _OpenDocument(whole), True
        carried = text[len(text) - _begun_marker(text) :]
        text = text[: len(text) - len(carried)]
        yield from document.add(text.lstrip("\r\n") if after_marker and document.is_empty else text)
    yield from document.add(carried)
    yield from document.end()


def document_pieces(text: str, whole: bool = False) -> Iterator[Piece]:
    """The pieces of one document, cut as by `split_documents`, but for markers: there is none in it, only text."""
    document = _OpenDocument(whole)
    yield from document.add(text)
    yield from document.end()


def _begun_marker(text: str) -> int:
    """How many characters at the end of a text may be the beginning of a marker."""
    return next((n for n in range(len(END_OF_TEXT) - 1, 0, -1) if text.endswith(END_OF_TEXT[:n])), 0)


class _OpenDocument:
    """A document that comes block by block and goes piece by piece; what has been looked at is not looked at again."""

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._begun = False
        self._blocks: deque[str] = deque()
        #: Characters in the blocks; how many come before the last place for a cut; how many, to the last visible one.
        self._size = self._cut = self._visible = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it has come yet."""
        return not self._begun and not self._size

    def add(self, text: str) -> Iterator[Piece]:
        """Take more text; the pieces that can go."""
        for start in range(0, len(text), _BLOCK_CHARACTERS):
            yield from self._add_block(text[start : start + _BLOCK_CHARACTERS])

    def _add_block(self, text: str) -> Iterator[Piece]:
        last = self._blocks[-1] if self._blocks else ""
        # Of a gigabyte of spaces one block is kept, many times.
        self._blocks.append(last if last == text else text)
        if seen := text.rstrip():
            self._visible = self._size + len(seen)
        if not self._whole:
            self._find_cut(last[-1:] + text, self._size - len(last[-1:]))
        self._size += len(text)
        if self._cut and self._size > _PIECE_CHARACTERS:
            yield from self._take(self._cut)
        while self._visible and self._size > LONGEST:
            yield from self._take(self._line_end() if self._whole else LONGEST)

    def _find_cut(self, text: str, start: int) -> None:
        # To look for a character alone is fifty times as fast.
        found = _LAST_WORD.match(text) if " " in text or "\n" in text else None
        if found is None and not self._cut and start + len(text) > _PIECE_CHARACTERS and _MARK.search(text):
            found = _LAST_BORDER.match(text)
        if found is not None:
            self._cut = start + found.end()

    def _line_end(self) -> int:
        """Where the last line ends among the first LONGEST characters, or the last word."""
        first = "".join(self._front(LONGEST))
        return first.rfind("\n") + 1 or first.rfind(" ") + 1 or LONGEST

    def _front(self, count: int) -> list[str]:
        """The blocks of the first characters, which stay."""
        blocks, size = [], 0
        for block in self._blocks:
            blocks.append(block[: count - size])
            size += len(blocks[-1])
            if size == count:
                break
        return blocks

    def _take(self, count: int) -> Iterator[Piece]:
        """Let so many characters go."""
        while count:
            piece = "".join(self._front(min(count, LONGEST)))
            count -= len(piece)
            self._drop(len(piece))
            self._begun = True
            yield piece, False

    def _drop(self, count: int) -> None:
        self._size -= count
        self._cut, self._visible = max(self._cut - count, 0), max(self._visible - count, 0)
        while count:
            block = self._blocks.popleft()
            if len(block) > count:
                self._blocks.appendleft(block[count:])
            count -= min(count, len(block))

    def end(self, before_marker: bool = False) -> Iterator[Piece]:
        """The last pieces; line breaks before a marker belong to the marker."""
        while before_marker and self._blocks:
            last = self._blocks.pop()
            kept = last.rstrip("\r\n")
            self._size -= len(last) - len(kept)
            if kept:
                self._blocks.append(kept)
                break
        if self._begun or self._visible:
            yield from self._take(max(self._size - LONGEST, 0))
            yield "".join(self._blocks), True
