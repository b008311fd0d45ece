"""Directories that harm their reader: safetensors headers, meta.json, files missing, swapped, or no files at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from parity.suite.robustness.corruption import Change, Corruption, Tree, files_in, rewrite
from spec.checkpoint.format import TEXTS

CASES = json.loads(Path(__file__).with_name("malicious.json").read_text())
"""Headers of safetensors (name, JSON or text, bytes of data); of meta.json other values, values of a part, texts."""
BEYOND_MEMORY = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
PARTS = {
    "neutral": (*TEXTS, "model.safetensors", "optimizer.safetensors"),
    "data": ("train.bin", "val.bin", "tokenizer.json", "meta.json"),
}
FileChange = Callable[[Path, Path], object]
"""Given a file's place, and where the file itself was moved to."""


def headers() -> Iterator[Corruption]:
    """safetensors that claim what is not there, under right checksums."""
    case = partial(Corruption, "safetensors tricks", "neutral")
    for name, header, size in [*CASES["headers"], ("deep", '{"a":' * 5000, 0)]:
        text = (header if isinstance(header, str) else json.dumps(header)).encode("latin-1")
        content = struct.pack("<Q", len(text)) + text + bytes(size)
        for file in ("model", "optimizer"):
            change = lambda path, f=file, c=content: rewrite(path, **{f"{f}__safetensors": c})  # noqa: E731
            yield case(f"{file}: {name}", change, ".")
    for name, length in (("beyond the file", 10**6), ("2^63", 2**63), ("2^64 - 1", 2**64 - 1), ("nothing", 0)):
        change = lambda path, n=length: rewrite(path, states__safetensors=struct.pack("<Q", n) + bytes(50))  # noqa: E731
        yield case(f"header of {name}", change, ".")


def _at(name: str, change: FileChange) -> Change:
    """Takes one file of a directory, or the one file that there is, away, and puts what `change` makes in its place."""

    def at(path: Path) -> None:
        file = path / name if path.is_dir() else path
        kept = path.parent / "kept"
        file.rename(kept)
        change(file, kept)

    return at


def _sparse(file: Path, _kept: Path) -> None:
    file.touch()
    os.truncate(file, BEYOND_MEMORY)


ODD: dict[str, tuple[FileChange, str | None]] = {
    "a pipe": (lambda file, _: os.mkfifo(file), ""),
    "a link to endless zeros": (lambda file, _: file.symlink_to("/dev/zero"), ""),
    "a link to nothing": (lambda file, _: file.symlink_to("nowhere"), ""),
    "a link to itself": (lambda file, _: file.symlink_to(file), ""),
    "a directory": (lambda file, _: file.mkdir(), ""),
    "larger than the memory": (_sparse, ""),
    # The bits are what was written, wherever they lie: shared stores link to large files.
    "a link to where it is now": (lambda file, kept: file.symlink_to(kept), None),
}


def no_files() -> Iterator[Corruption]:
    """What lies where a file should: nothing, a pipe, a device, a link, something larger than the memory."""
    for form, names in {**PARTS, "pt": ("",), "msgpack": ("",)}.items():
        for number, name in enumerate(names):
            alone = form in ("pt", "msgpack")
            if not alone:
                yield Corruption("missing file", form, f"no {name}", _at(name, lambda file, kept: None), "")
            # Pipes and endless files for every file; of the rest some.
            for turn, (what, (change, refusal)) in enumerate(ODD.items()):
                if alone or turn < 2 or (turn + number) % 3 == 0:
                    yield Corruption("no regular file", form, f"{name}: {what}", _at(name, change), refusal)
    for what, add in (("file", Path.touch), ("pipe", os.mkfifo)):
        change = lambda path, add=add: add(path / "more")  # noqa: E731
        yield Corruption("no regular file", "neutral", f"one {what} more", change, "more is no part")


def swapped() -> Iterator[Corruption]:
    """Files under each other's names."""
    for form, first, second in (
        ("neutral", "model.safetensors", "optimizer.safetensors"), ("neutral", "config.json", "state.json"),
        ("neutral", "tokenizer.json", "states.safetensors"), ("data", "train.bin", "val.bin"),
        ("data", "tokenizer.json", "val.bin"), ("data", "meta.json", "tokenizer.json"),
    ):  # fmt: skip
        for with_checksums in (False, True) if form == "neutral" else (False,):
            yield Corruption(
                "swapped files", form, f"{first}, {second} {with_checksums}", _swap(first, second, with_checksums), "."
            )


def _swap(first: str, second: str, with_checksums: bool) -> Change:
    def change(path: Path) -> None:
        (path / first).rename(path / "kept")
        (path / second).rename(path / first)
        (path / "kept").rename(path / second)
        if with_checksums:
            rewrite(path)

    return change


def _meta(change: Callable[[Tree], object]) -> Change:
    def rewrite_meta(path: Path) -> None:
        meta = json.loads((path / "meta.json").read_text())
        change(meta)
        (path / "meta.json").write_text(json.dumps(meta))

    return rewrite_meta


def meta_json() -> Iterator[Corruption]:
    """Oddities of the data's meta.json."""
    case = partial(Corruption, "meta.json", "data")
    for name, values in CASES["meta"].items():
        for value in values:
            change = _meta(lambda meta, n=name, v=value: meta.update({n: v}))
            yield case(f"{name} {value!r}", change, ".")
        yield case(f"no {name}", _meta(lambda meta, n=name: meta.pop(n)), ".")
    for part, name, value in CASES["parts"]:
        change = _meta(lambda meta, p=part, n=name, v=value: meta[p].update({n: v}))
        yield case(f"{part} {name} {value!r}", change, ".")
    contents = {name: text.encode("latin-1") for name, text in CASES["texts"].items()}
    contents |= {"deep": b"[" * 10**5, "digits": b'{"format_version": ' + b"9" * 5000 + b"}"}
    contents |= {"a pickle": pickle.dumps({}), "UTF-16": "{}".encode("utf-16")}
    for name, content in contents.items():
        yield case(name, lambda path, c=content: (path / "meta.json").write_bytes(c) and None, ".")


def emptied() -> Iterator[Corruption]:
    """A directory of nothing, and one with nothing in its files."""
    for form in PARTS:
        yield Corruption("missing file", form, "an empty directory", _emptied, ".")
        yield Corruption(
            "truncation", form, "empty files", lambda path: [f.write_bytes(b"") for f in files_in(path)], "."
        )


def _emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
