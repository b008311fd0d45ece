"""`liquidnet prepare`: reads text, trains or loads a tokenizer, writes train.bin, val.bin and meta.json."""

import errno
import hashlib
import json
import math
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from spec.checkpoint.files import new_directory, require_new
from spec.data import DATA_FORMAT_VERSION
from tools.cli.destination import require_writable
from tools.cli.file_lock import sole_writer
from tools.cli.progress import Bar, progress
from tools.data.datasets import open_dataset
from tools.data.documents import Advance, Source, StorySource, open_files
from tools.data.room import Room
from tools.data.split import DividedSource, Parts, Routed, SeparateSources, Split, choose_split
from tools.data.stories import stories
from tools.tokenizer import Tokenizer, build_tokenizer, check_tokenizer_name

PartMeta: TypeAlias = dict[str, int | str]
_BATCH_CHARACTERS = 1 << 20
#: A million empty lines are a million pieces.
_BATCH_PIECES = 1 << 14
#: The library's trainer takes a time that grows with the square of a word's length, and keeps every word.
_WORD_CHARACTERS, _LONG_WORDS = 1 << 16, 64
_VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Prepare:
    """Turn text into the token files that training reads.

    --max-tokens counts ends of text and cuts no document: the training part ends where the document does in which it
    reaches that number. Validation stays what it is without it, and bpe:SIZE learns from all of the training text.
    """

    out: Path
    """Directory to write, new or empty: train.bin, val.bin, tokenizer.json and meta.json."""
    text: tuple[Path, ...] = ()
    """UTF-8 files, documents separated by <|endoftext|>, or .jsonl or .parquet files with a text field in each row."""
    dataset: Literal["tinystories"] | None = None
    """Download this instead (tinystories: 1.9 GB, once; CDLA-Sharing-1.0), with its own validation part."""
    stories: int | None = None
    """Generate this many short children's stories instead of reading files."""
    stories_seed: int = 0
    """Seed of the stories."""
    tokenizer: str = "byte"
    """byte, gpt2, bpe:SIZE (trained on the training part) or a tokenizer.json."""
    tokenizer_files: tuple[Path, Path] | None = None
    """GPT-2's vocab.json and merges.txt, in place of a download."""
    val_text: tuple[Path, ...] = ()
    """Files for validation, in the same forms; all of --text or --stories is for training then."""
    val_fraction: float | None = None
    """Share of the text, at its end, that is kept for validation (default: 0.1)."""
    max_tokens: float | None = None
    """End the training part after this many tokens, such as 50e6 (default: all of the text)."""

    def run(self) -> None:
        require_new(self.out)
        self._check()
        check_tokenizer_name(self.tokenizer, self.tokenizer_files)
        # What is here is looked at before anything is downloaded, and the small downloads come before the large.
        local = None if self.dataset else self._local()
        require_writable(self.out, "--out")
        with sole_writer(self.out, "--out"), _space_for(self.out):
            self._write(local)

    def _write(self, local: tuple[Source, Source | None] | None) -> None:
        # Only bpe:SIZE reads the text; the others fail early, before a long reading.
        trained = self.tokenizer.startswith("bpe:")
        built = None if trained else build_tokenizer(self.tokenizer, files=self.tokenizer_files)
        train, val = local or open_dataset(self.dataset or "")
        room = Room(self.out, self._limit)
        room.require_for_files(train, val, built)
        parts = SeparateSources(train, val) if val is not None else self._divided(train, room)
        if built is None:
            with progress(f"training {self.tokenizer}", parts.size) as bar:
                built = build_tokenizer(self.tokenizer, _train_texts(parts, bar.advance))
        with new_directory(self.out, last="meta.json") as directory:
            with progress("encoding", parts.size) as bar:
                written = _write_tokens(directory, parts, built, self._limit, bar, room)
            _write_meta(directory, written, built, self.tokenizer, self._origin(parts))
        print(_summary(self.out, written, built, self.tokenizer, self._limit))

    def _check(self) -> None:
        sources = [("--text", self.text), ("--dataset", self.dataset), ("--stories", self.stories is not None)]
        given = [flag for flag, value in sources if value]
        if len(given) != 1:
            problem = f"two sources of text ({' and '.join(given)})" if given else "no text"
            raise ValueError(f"{problem}: give either --text FILE... or --stories N, or --dataset tinystories")
        separate = f"--dataset {self.dataset}" if self.dataset else "--val-text" if self.val_text else None
        if self.dataset and self.val_text:
            raise ValueError(f"{separate} has its own validation text; leave --val-text out")
        if self.val_fraction is not None and separate:
            raise ValueError(f"--val-fraction divides one text, and {separate} brings another; leave one of them out")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, not {self.val_fraction}; try 0.1")
        if self.max_tokens is not None and not 1 <= self.max_tokens < math.inf:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}; try 50e6")

    def _local(self) -> tuple[Source, Source | None]:
        if self.stories is not None:
            stories(self.stories, self.stories_seed)
            train: Source = StorySource(self.stories, self.stories_seed)
        else:
            train = open_files(self.text, "--text")
        val = open_files(self.val_text, "--val-text") if self.val_text else None
        for path in self.val_text:
            if any(path.samefile(other) for other in self.text):
                raise ValueError(f"{path} is in --text and in --val-text; a model would be tested on what it learnt")
        return train, val

    def _divided(self, source: Source, room: Room) -> DividedSource:
        with progress("reading", source.size) as bar:
            lengths = _document_lengths(source, bar.advance)
        room.characters = sum(lengths)
        split = choose_split(lengths, self.val_fraction or _VAL_FRACTION)
        return DividedSource(source, split, Split(len(lengths), room.characters))

    def _origin(self, parts: Parts) -> dict[str, list[str] | int]:
        limit = {} if self.max_tokens is None else {"max_tokens": int(self.max_tokens)}
        return {**parts.names, **limit}

    @property
    def _limit(self) -> float:
        return math.inf if self.max_tokens is None else int(self.max_tokens)


class _TokenFile:
    """One part's token file, and what meta.json says of it; full from the first document's end after `limit` tokens."""

    def __init__(self, path: Path, tokenizer: Tokenizer, limit: float) -> None:
        self._file = path.open("wb")
        self._end = np.array([tokenizer.end_of_text_id], tokenizer.dtype).tobytes()
        self._item = tokenizer.dtype.itemsize
        self._digest = hashlib.sha256()
        self._between = True
        self._limit = limit
        self.size = self.bytes = self.documents = 0

    @property
    def tokens(self) -> int:
        return self.size // self._item

    @property
    def full(self) -> bool:
        return self._between and self.tokens >= self._limit

    def write(self, text: str, ids: np.ndarray, ends: bool) -> None:
        if self.full:
            return
        content = ids.tobytes() + (self._end if ends else b"")
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)
        self.bytes += len(text.encode())
        self.documents += self._between
        self._between = ends

    def close(self) -> None:
        self._file.close()

    def meta(self) -> PartMeta:
        counts = {name: getattr(self, name) for name in ("tokens", "bytes", "documents")}
        return {**counts, "sha256": self._digest.hexdigest()}


def _write_tokens(
    directory: Path, parts: Parts, tokenizer: Tokenizer, limit: float, bar: Bar, room: Room
) -> dict[str, PartMeta]:
    with ExitStack() as stack:
        files = {}
        for part, most in (("train", limit), ("val", math.inf)):
            files[part] = stack.enter_context(closing(_TokenFile(directory / f"{part}.bin", tokenizer, most)))
        train = files["train"]
        pieces = parts.pieces(bar.advance, not tokenizer.cuts_before_spaces, enough=lambda: train.full)
        for batch in _batches(pieces):
            encoded = tokenizer.encode_documents([text for _, text, _ in batch])
            for (part, text, ends), ids in zip(batch, encoded, strict=True):
                files[part].write(text, ids, ends)
            room.require_after(sum(len(text) for _, text, _ in batch), sum(file.size for file in files.values()))
            if limit < math.inf and train.tokens:
                bar.expect(min(parts.size, parts.least_size + train.bytes * limit / train.tokens))
    return {part: file.meta() for part, file in files.items()}


def _batches(pieces: Iterator[Routed]) -> Iterator[list[Routed]]:
    batch: list[Routed] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece[1])
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_meta(
    directory: Path, parts: dict[str, PartMeta], tokenizer: Tokenizer, name: str, origin: dict[str, list[str] | int]
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
        **origin,
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


def _train_texts(parts: Parts, advance: Advance) -> Iterator[str]:
    """The training text; of words that are longer than a piece, which no text for people has, the first few parts."""
    long_words = 0
    for part, text, _ in parts.pieces(advance):
        if part == "val":
            return
        if len(text) <= 2 * _WORD_CHARACTERS:
            yield text
            continue
        for start in range(0, len(text), _WORD_CHARACTERS):
            long_words += 1
            if long_words <= _LONG_WORDS:
                yield text[start : start + _WORD_CHARACTERS]


def _summary(out: Path, parts: dict[str, PartMeta], tokenizer: Tokenizer, name: str, limit: float) -> str:
    lines = [
        f"{part + ':':7}{meta['tokens']:>13,} tokens {meta['bytes']:>13,} bytes {meta['documents']:>9,} documents"
        for part, meta in parts.items()
    ]
    if int(parts["train"]["tokens"]) < limit < math.inf:
        lines.append(f"the training text ends before the {limit:,} tokens of --max-tokens")
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
