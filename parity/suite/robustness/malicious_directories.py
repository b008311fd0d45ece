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
from typing import TypedDict

from parity.suite.robustness.corruption import VOCABULARY, Change, Corruption, Tree, files_in, rewrite
from spec.checkpoint.format import TEXTS

BEYOND_MEMORY = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
PARTS = {
    "neutral": (*TEXTS, "model.safetensors", "optimizer.safetensors"),
    "data": ("train.bin", "val.bin", "tokenizer.json", "meta.json"),
}
FileChange = Callable[[Path, Path], object]
"""Given a file's place, and where the file itself was moved to."""


class Entry(TypedDict):
    """What a safetensors header says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def _tensor(shape: list[int], first: int, last: int, dtype: str = "F32") -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def headers() -> Iterator[Corruption]:
    """safetensors that claim what is not there, under right checksums."""
    case = partial(Corruption, "safetensors tricks", "neutral")
    one, twice = _tensor([2], 0, 8), b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    for name, header, data in (
        ("overlap", {"a": one, "b": _tensor([2], 4, 12)}, bytes(12)),
        ("same bytes", {"a": one, "b": one}, bytes(8)),
        ("hole", {"a": one, "b": _tensor([2], 12, 20)}, bytes(20)),
        ("beyond the end", {"a": _tensor([4], 0, 16)}, bytes(8)),
        ("not all of it", {"a": one}, bytes(12)),
        ("backwards", {"a": _tensor([2], 8, 0)}, bytes(8)),
        ("below zero", {"a": _tensor([-2], 0, 8)}, bytes(8)),
        ("offset below zero", {"a": _tensor([2], -8, 0)}, bytes(8)),
        ("huge", {"a": _tensor([2**40, 2**40], 0, 8)}, bytes(8)),
        ("huge and nothing", {"a": _tensor([2**63, 0], 0, 0)}, b""),
        ("100 axes", {"a": _tensor([1] * 100, 0, 4)}, bytes(4)),
        ("shape and bytes differ", {"a": _tensor([3], 0, 8)}, bytes(8)),
        ("unknown dtype", {"a": _tensor([2], 0, 8, "Q4")}, bytes(8)),
        ("dtype of others", {"a": _tensor([8], 0, 8, "F8_E4M3")}, bytes(8)),
        ("no shape", {"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
        ("one name twice", twice + b"," + twice[1:] + b"}", bytes(8)),
        ("no tensor", {}, b""),
        ("a list", b"[]", b""),
        ("no JSON", b"{", b""),
        ("not UTF-8", b'{"\xff": 1}', b""),
        ("deep", b'{"a":' * 5000, b""),
        ("only metadata", {"__metadata__": {"a": "b"}}, b""),
    ):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + data
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
    for name, values in {
        "format_version": (0, 2, None, [1], "1"), "vocab_size": (0, -1, 1.5, "50", None, True, 2**70, [50], 3),
        "dtype": ("object", "O", None, ["uint16"], "uint8", ">u2", "u2,u2", "V0", "float16", "uint32", 3, "", {}),
        "end_of_text_id": (-1, VOCABULARY, None, 1.0, "x"), "tokenizer_sha256": (None, 3, "", "0" * 64),
        "train": (None, [], 3, "x", {}), "val": (None, [], {}, {"sha256": 3}),
    }.items():  # fmt: skip
        for value in values:
            change = _meta(lambda meta, n=name, v=value: meta.update({n: v}))
            yield case(f"{name} {value!r}", change, ".")
        yield case(f"no {name}", _meta(lambda meta, n=name: meta.pop(n)), ".")
    for part, name, value in (
        ("val", "bytes", 0), ("val", "bytes", 1.5), ("val", "tokens", 499), ("val", "tokens", None),
        ("train", "tokens", 501), ("train", "sha256", "0" * 64), ("val", "sha256", None), ("val", "bytes", 2**80),
    ):  # fmt: skip
        change = _meta(lambda meta, p=part, n=name, v=value: meta[p].update({n: v}))
        yield case(f"{part} {name} {value!r}", change, ".")
    for name, content in {
        "nothing": b"", "a list": b"[]", "a number": b"3", "null": b"null", "not UTF-8": b'{"\xff": 1}',
        "deep": b"[" * 10**5,
        "digits": b'{"format_version": ' + b"9" * 5000 + b"}", "a pickle": pickle.dumps({}),
        "UTF-16": "{}".encode("utf-16"),
    }.items():  # fmt: skip
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
