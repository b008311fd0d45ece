"""Text in: files or generated stories as a stream of documents, long ones in pieces."""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tools.data.parquet import parquet_texts
from tools.data.stories import stories
from tools.tokenizer import END_OF_TEXT

#: A piece of a document, and whether the document ends with it.
Piece = tuple[str, bool]
Advance = Callable[[int], None]

_BLOCK_BYTES = 1 << 16
_PIECE_CHARACTERS = 1 << 16
_LAST_WORD = re.compile(r".*\S(?=[ \n])", re.DOTALL)


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
    """Files of UTF-8 text, documents separated by <|endoftext|>, or .jsonl with a text field, or .parquet with such a
    column; titles are their names where the paths' own say too little."""

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
            if rows is not None:
                texts: Iterable[Iterable[str]] = ([text] for text in rows(path, advance))
            else:
                texts = [_text_blocks(path, advance)]
            empty = True
            for blocks in texts:
                for piece in split_documents(blocks, whole):
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
        ValueError: if a file is a directory or a pipe.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; check {flag}")
        if path.is_dir():
            raise ValueError(f"{path} is a directory; name its files: {flag} {path / '*.txt'}")
        if not path.is_file():
            raise ValueError(
                f"{path}: not a regular file, and the text is read more than once; save it to a file first"
            )
    return FileSource(tuple(paths))


def split_documents(blocks: Iterable[str], whole: bool = False) -> Iterator[Piece]:
    """Cut a stream of text at the <|endoftext|> markers; line breaks around a marker belong to it.

    Args:
        blocks: the text, in any pieces.
        whole: never cut inside a document; otherwise long ones are cut where a space or newline follows a word.

    Yields: pieces; documents without any visible character are left out.
    """
    text, begun, after_marker = "", False, False
    for block in blocks:
        seam = text[1 - len(END_OF_TEXT) :] + block
        text += block
        if END_OF_TEXT in seam:
            *complete, text = text.split(END_OF_TEXT)
            for document in complete:
                document = document.rstrip("\r\n")
                document = document.lstrip("\r\n") if after_marker and not begun else document
                if begun or document.strip():
                    yield document, True
                begun, after_marker = False, True
        if not whole and len(text) > _PIECE_CHARACTERS and (word := _LAST_WORD.match(text)):
            piece, text = text[: word.end()], text[word.end() :]
            yield piece.lstrip("\r\n") if after_marker and not begun else piece, False
            begun = True
    text = text.lstrip("\r\n") if after_marker and not begun else text
    if begun or text.strip():
        yield text, True


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
        for number, line in enumerate(file, start=1):
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
_ROWS: dict[str, Callable[[Path, Advance], Iterator[str]]] = {".jsonl": _jsonl_texts, ".parquet": parquet_texts}


def _not_utf8(path: Path, offset: int) -> ValueError:
    return ValueError(f"{path}: not UTF-8 at byte {offset}; convert it first, for example with iconv")
