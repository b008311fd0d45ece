"""Text in: files or generated stories as a stream of documents."""

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tools.data.formats import quoted, require_text
from tools.data.parquet import parquet_texts
from tools.data.pieces import Piece, document_pieces, split_documents
from tools.data.stories import stories

Advance = Callable[[int], None]

_BLOCK_BYTES = 1 << 16
#: The bytes that a line of .jsonl has at most.
_LINE_BYTES = 1 << 26


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
    """Files of UTF-8 text, documents separated by <|endoftext|>, or of rows, each of which is a document.

    Rows are those of .jsonl (.jsonlines, .ndjson) with a text field, or of .parquet with such a column; one of which
    nothing is visible is left out. Titles are the files' names where the paths' own say too little.
    """

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
            rows = ROW_READERS.get(path.suffix.lower())
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
        # Of a number, which may be longer than Python reads, only that it is none of the texts.
        record = json.loads(line, parse_int=float)
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError("no text field")
        text.encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where} is not a JSON object with a "text" string ({error})') from error
    return text


#: Files whose rows are texts.
ROW_READERS: dict[str, Callable[[Path, Advance], Iterator[str]]] = {
    ".jsonl": _jsonl_texts,
    ".jsonlines": _jsonl_texts,
    ".ndjson": _jsonl_texts,
    ".parquet": parquet_texts,
}


def _not_utf8(path: Path, offset: int) -> ValueError:
    return ValueError(f"{path}: not UTF-8 at byte {offset}; convert it first, for example with iconv")
