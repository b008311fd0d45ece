"""Text in: files or generated stories as a stream of documents, long ones in pieces."""

import codecs
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tools.data.formats import quoted, require_text
from tools.data.parquet import parquet_texts
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT

#: A piece of a document, and whether the document ends with it.
Piece = tuple[str, bool]
Advance = Callable[[int], None]

_BLOCK_BYTES = 1 << 16
_PIECE_CHARACTERS = 1 << 16
#: Characters that wait for a place to cut at: a longer word is cut, and so is a longer document that should not be.
LONGEST = 1 << 22
#: The bytes that a line of .jsonl has at most.
_LINE_BYTES = 1 << 26
# Where GPT-2's pattern ends a token whatever comes before and after, so that both sides are encoded as the whole is.
_LAST_WORD = re.compile(r".*\S(?=[ \n])", re.DOTALL)
# Letters of scripts that go without spaces, and the most common: no version of Unicode sees them otherwise.
_LETTERS = r"0-9A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_MARKS = r".,;:!?()\u3001\u3002\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
_LAST_BORDER = re.compile(rf".*(?:\S(?=[\t\v\f\r])|[{_LETTERS}](?=[{_MARKS}]))", re.DOTALL)
_MARK = re.compile(rf"[\t\v\f\r{_MARKS}]")


@dataclass(frozen=True)
class StorySource:
    """Stories by tools/data/stories.py, each a document."""

    count: int
    seed: int

    @property
    def names(self) -> list[str]:
        """What meta.json calls it."""
        return [f"stories:{self.count}:{self.seed}"]

    @property
    def size(self) -> int:
        """Its length in units of progress."""
        return self.count

    def pieces(self, advance: Advance, whole: bool = False) -> Iterator[Piece]:
        """The documents in pieces, reporting progress in units of `size`; whole forbids cutting a document."""
        for story in stories(self.count, self.seed):
            yield story, True
            advance(1)


@dataclass(frozen=True)
class FileSource:
    """Files of UTF-8 text, documents separated by <|endoftext|>, or .jsonl (.ndjson) with a text field or .parquet with
    such a column: each row is a document, or is left out where nothing of it is visible; titles are their names where
    the paths' own say too little."""

    paths: tuple[Path, ...]
    titles: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return list(self.titles) or [path.name for path in self.paths]

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def pieces(self, advance: Advance, whole: bool = False) -> Iterator[Piece]:
        for path in self.paths:
            rows = _ROWS.get(path.suffix.lower())
            if rows is None:
                pieces = split_documents(_text_blocks(path, advance), whole)
            else:
                pieces = (piece for text in rows(path, advance) for piece in document_pieces(text, whole))
            empty = True
            for piece in pieces:
                empty = False
                yield piece
            if empty:
                raise ValueError(f"{path}: no text in it; name a file that has some")


#: Text that can be read more than once.
Source: TypeAlias = StorySource | FileSource


def open_files(paths: Sequence[Path], flag: str) -> FileSource:
    """Check files that are to be read.

    Args:
        paths: their places.
        flag: what named them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is a directory or a pipe, or of a format that is not read.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; check {flag}")
        if path.is_dir():
            raise ValueError(f"{path} is a directory; name its files: {flag} {quoted(path).rstrip('/')}/*.txt")
        if not path.is_file():
            raise ValueError(
                f"{path}: not a regular file, and the text is read more than once; save it to a file first"
            )
        require_text(path)
    return FileSource(tuple(paths))


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
        for start in range(0, len(text), _BLOCK_BYTES):
            yield from self._add_block(text[start : start + _BLOCK_BYTES])

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


def _text_blocks(path: Path, advance: Advance) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            carried = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - carried + error.start) from error
            # A byte order mark says how the file is stored; it is not text.
            yield text.removeprefix("\ufeff") if offset == 0 else text
            if not block:
                return
            offset += len(block)
            advance(len(block))


def _jsonl_texts(path: Path, advance: Advance) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LINE_BYTES + 1), b""), start=1):
            if len(line) > _LINE_BYTES:
                raise ValueError(
                    f"{path}: line {number} has more than {_LINE_BYTES:,} bytes; "
                    "cut this document into several, or give it as plain text"
                )
            try:
                decoded = line.decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start) from error
            if number == 1:
                decoded = decoded.removeprefix("\ufeff")
            if decoded.strip():
                yield _jsonl_text(decoded, f"{path}: line {number}")
            offset += len(line)
            advance(len(line))


def _jsonl_text(line: str, where: str) -> str:
    try:
        record = json.loads(line)
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError("no text field")
        text.encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where} is not a JSON object with a "text" string ({error})') from error
    return text


#: Files whose rows are texts.
_ROWS: dict[str, Callable[[Path, Advance], Iterator[str]]] = {
    ".jsonl": _jsonl_texts,
    ".ndjson": _jsonl_texts,
    ".parquet": parquet_texts,
}


def _not_utf8(path: Path, offset: int) -> ValueError:
    return ValueError(f"{path}: not UTF-8 at byte {offset}; convert it first, for example with iconv")
