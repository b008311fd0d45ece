"""`liquidnet prepare`: text in, token files out."""

import errno
import hashlib
import json
import sys
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from spec.data import DATA_FORMAT_VERSION
from spec.files import new_directory, require_new
from tools.documents import Advance, Source, Split, choose_split, open_source, route
from tools.tokenizer import Tokenizer, build_tokenizer, check_tokenizer_name

_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Prepare:
    """Turn text into the token files that training reads."""

    out: Path
    """Directory to write: train.bin, val.bin, tokenizer.json and meta.json."""
    text: tuple[Path, ...] = ()
    """UTF-8 files, documents separated by <|endoftext|>, or .jsonl files with a text field."""
    stories: int | None = None
    """Generate this many short children's stories instead of reading files."""
    stories_seed: int = 0
    """Seed of the stories."""
    tokenizer: str = "byte"
    """byte, gpt2, bpe:SIZE (trained on the training part) or a tokenizer.json."""
    tokenizer_files: tuple[Path, Path] | None = None
    """GPT-2's vocab.json and merges.txt, in place of a download."""
    val_fraction: float = 0.1
    """Share of the text, at its end, that is kept for validation."""

    def run(self) -> None:
        require_new(self.out)
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, not {self.val_fraction}; try 0.1")
        check_tokenizer_name(self.tokenizer, self.tokenizer_files)
        source = open_source(self.text, self.stories, self.stories_seed)
        # Only bpe:SIZE reads the text; the others fail early, before a long reading.
        trained = self.tokenizer.startswith("bpe:")
        built = None if trained else build_tokenizer(self.tokenizer, files=self.tokenizer_files)
        with _progress("reading", source.size) as advance:
            split = choose_split(_document_lengths(source, advance), self.val_fraction)
        if built is None:
            with _progress(f"training {self.tokenizer}", source.size) as advance:
                built = build_tokenizer(self.tokenizer, _train_texts(source, split, advance))
        with _space_for(self.out), new_directory(self.out) as directory:
            with _progress("encoding", source.size) as advance:
                parts = _write_tokens(directory, source, split, built, advance)
            _write_meta(directory, parts, built, self.tokenizer, source)
        print(_summary(self.out, parts, built, self.tokenizer))


class _TokenFile:
    """One part's token file, and what meta.json says of it."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._file = path.open("wb")
        self._end = np.array([tokenizer.end_of_text_id], tokenizer.dtype).tobytes()
        self._item = tokenizer.dtype.itemsize
        self._digest = hashlib.sha256()
        self._between = True
        self.size = self.bytes = self.documents = 0

    def write(self, text: str, ids: np.ndarray, ends: bool) -> None:
        content = ids.tobytes() + (self._end if ends else b"")
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)
        self.bytes += len(text.encode())
        self.documents += self._between
        self._between = ends

    def close(self) -> None:
        self._file.close()

    def meta(self) -> dict[str, int | str]:
        return {
            "tokens": self.size // self._item,
            "bytes": self.bytes,
            "documents": self.documents,
            "sha256": self._digest.hexdigest(),
        }


def _write_tokens(
    directory: Path, source: Source, split: Split, tokenizer: Tokenizer, advance: Advance
) -> dict[str, dict[str, int | str]]:
    with ExitStack() as stack:
        files = {}
        for part in ("train", "val"):
            files[part] = stack.enter_context(closing(_TokenFile(directory / f"{part}.bin", tokenizer)))
        pieces = source.pieces(advance, whole=not tokenizer.cuts_before_spaces)
        for batch in _batches(route(pieces, split)):
            encoded = tokenizer.encode_documents([text for _, text, _ in batch])
            for (part, text, ends), ids in zip(batch, encoded, strict=True):
                files[part].write(text, ids, ends)
    return {part: file.meta() for part, file in files.items()}


def _batches(pieces: Iterator[tuple[str, str, bool]]) -> Iterator[list[tuple[str, str, bool]]]:
    batch: list[tuple[str, str, bool]] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[1])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_meta(
    directory: Path, parts: dict[str, dict[str, int | str]], tokenizer: Tokenizer, name: str, source: Source
) -> None:
    content = tokenizer.to_json().encode()
    (directory / "tokenizer.json").write_bytes(content)
    meta = {
        "format_version": DATA_FORMAT_VERSION,
        "dtype": tokenizer.dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "tokenizer": name,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
        "source": source.names,
        **parts,
    }
    (directory / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _document_lengths(source: Source, advance: Advance) -> array:
    lengths = array("q")
    length = 0
    for text, ends in source.pieces(advance):
        length += len(text)
        if ends:
            lengths.append(length)
            length = 0
    return lengths


def _train_texts(source: Source, split: Split, advance: Advance) -> Iterator[str]:
    for part, text, _ in route(source.pieces(advance), split):
        if part == "val":
            return
        yield text


def _summary(out: Path, parts: dict[str, dict[str, int | str]], tokenizer: Tokenizer, name: str) -> str:
    lines = [
        f"{part + ':':7}{meta['tokens']:>13,} tokens {meta['bytes']:>13,} bytes {meta['documents']:>9,} documents"
        for part, meta in parts.items()
    ]
    wanted = name.removeprefix("bpe:")
    fewer = wanted != name and tokenizer.vocab_size < int(wanted)
    note = " (the text gives no more)" if fewer else ""
    return "\n".join([*lines, f"vocabulary of {tokenizer.vocab_size:,}{note}, written to {out}"])


@contextmanager
def _space_for(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"no space left on the disk of {out}; free some or choose another --out") from error
        raise


@contextmanager
def _progress(title: str, total: int) -> Iterator[Advance]:
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{title} ...", file=sys.stderr)
        yield lambda amount: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda amount: progress.advance(task, amount)
