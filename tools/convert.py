"""Checkpoints from any format to any other, bit for bit: weights, AdamW moments, step, cursor and tokenizer."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import tyro

from spec.checkpoint.checksums import checksums, file_sha256, files_below
from spec.checkpoint.files import new_directory, require_new, require_utf8
from spec.checkpoint.format import (
    Checkpoint,
    files_beside,
    find_checkpoint,
    list_checkpoints,
    naming,
    parts_of,
    read_beside,
    read_checkpoint,
    validate,
    write_checkpoint,
)
from spec.checkpoint.sharded import PARAMETERS, by_kind, named_arrays
from tools.cli import backends
from tools.cli.destination import require_room, require_writable
from tools.cli.file_lock import sole_writer
from tools.cli.progress import working

Format = Literal["neutral", "pt", "msgpack", "dcp", "orbax"]
SUFFIXES: dict[str, Format] = {".pt": "pt", ".pth": "pt", ".msgpack": "msgpack"}
#: Of the bytes that are read, so much is written at least: Orbax compresses.
_SURE = 0.8
_NATIVE = {"pt": "torch", "msgpack": "jax"}


@dataclass(frozen=True)
class Convert:
    """Convert a checkpoint between the neutral directory, PyTorch's .pt and DCP shards, Flax's .msgpack and Orbax's.

    Nothing is renamed, transposed or rounded: every stored dtype keeps its bits.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Checkpoint to read: a checkpoint directory, a run (its newest checkpoint), a .pt or a .msgpack file."""
    target: Annotated[Path, tyro.conf.Positional]
    """Where to write it; must not exist yet, but for an empty directory."""
    format: Format | None = None
    """Format to write; by default given by the target's suffix, a neutral directory where it has none."""

    def run(self) -> None:
        suffix = self.target.suffix
        # A dot before a digit is a number's: `run-0.5` has no suffix.
        if self.format is None and suffix not in SUFFIXES and suffix[1:2].isalpha():
            raise ValueError(
                f"unknown suffix {suffix} of {self.target}; use .pt or .msgpack, or a name without a suffix for a "
                "directory"
            )
        target_format = self.format or SUFFIXES.get(suffix, "neutral")
        directory = target_format in ("neutral", "dcp", "orbax")
        if SUFFIXES.get(suffix, "neutral") != ("neutral" if directory else target_format):
            raise ValueError(
                f"{self.target} does not look like format {target_format}; give it the suffix of its format"
            )
        if target_format == "orbax":
            require_utf8(self.target, "Orbax")
        if not directory and self.target.is_dir():
            raise ValueError(f"{self.target} is a directory, and format {target_format} is a file; name another place")
        require_new(self.target)
        require_writable(self.target if directory else self.target.parent, "the target")
        require_room(self.target, _SURE * _size(self.source), "the target")
        with sole_writer(self.target, "target"), working(f"reading {self.source}") as show:
            checkpoint = read(self.source)
            show(f"writing {self.target}")
            write(self.target, checkpoint, target_format)
        step = checkpoint.state["step"]
        print(f"{self.source} -> {self.target} ({target_format}, step {step}, {len(checkpoint.parameters)} tensors)")


def _size(source: Path) -> int:
    """The bytes of what is to be read; of what is not there, none."""
    if not source.is_dir():
        return source.stat().st_size if source.is_file() else 0
    return sum(path.stat().st_size for path in files_below(find_checkpoint(source)).values() if path.is_file())


def read(path: Path) -> Checkpoint:
    """The checkpoint in a directory, a run, a `.pt` or a `.msgpack` file; ValueError says what is wrong with it."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a checkpoint directory, a run, a .pt or a .msgpack file")
    if path.is_dir():
        directory = find_checkpoint(path)
        try:
            return read_orbax(directory) if parts_of(directory) == "orbax" else read_checkpoint(directory)
        except ValueError as error:
            raise ValueError(f"{error}{_previous_hint(directory)}") from error
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no known checkpoint format; name a directory, a .pt or a .msgpack file")
    checkpoint = backends.load(_NATIVE[SUFFIXES[path.suffix]], "checkpoint.native").read_native(path)
    if not checkpoint.verified:
        caveat = "carries no checksums: names, shapes, dtypes and finiteness were checked, not its bits"
        print(f"{path} {caveat}", file=sys.stderr)
    return checkpoint


def _previous_hint(directory: Path) -> str:
    """Where to go on from instead of a checkpoint of a run, for a message."""
    older = list_checkpoints(directory.parent.parent)
    older = older[: older.index(directory)] if directory in older else []
    return f"; the checkpoint before it is {older[-1]}: name that, or remove this one and --resume" if older else ""


def read_orbax(directory: Path) -> Checkpoint:
    """A checkpoint that Orbax wrote, read through JAX once every file of it has been verified.

    Raises:
        ValueError: it is damaged, or JAX is not installed.
    """
    beside = read_beside(directory, 0, 1)
    sharded = _load_orbax(f"{directory} was written by Orbax")
    groups = by_kind(sharded.read_whole(directory))
    checkpoint = replace(beside, parameters=groups.pop(PARAMETERS, {}), moments=groups)
    with naming(f"checkpoint {directory}"):
        validate(checkpoint)
    return checkpoint


def _write_orbax(directory: Path, checkpoint: Checkpoint) -> None:
    validate(checkpoint)
    sharded = _load_orbax("format orbax is written through JAX")
    context = backends.load("jax", "training.distributed").ParallelContext()
    with new_directory(directory) as temporary:
        sharded.AsyncSave(named_arrays(checkpoint.parameters, checkpoint.moments), temporary, context).result()
        for name, content in files_beside(checkpoint).items():
            (temporary / name).write_bytes(content)
        sums = {name: file_sha256(path) for name, path in files_below(temporary).items()}
        (temporary / "SHA256SUMS").write_bytes(checksums(sums))


def _load_orbax(why: str) -> ModuleType:
    if "torch" in sys.modules and "jax" not in sys.modules:
        # Files are all that JAX is here for; it would reserve most of the GPU that torch computes on.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        sharded = backends.load("jax", "checkpoint.sharded")
        sharded.require_orbax()
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{why}: {error}; or use liquidnet convert on a machine that has it") from error
    return sharded


def write(path: Path, checkpoint: Checkpoint, format: Format | None = None) -> None:
    """Write the checkpoint; without a format, in that which the suffix of `path` names, else as a neutral directory."""
    format = format or SUFFIXES.get(path.suffix, "neutral")
    if format in _NATIVE:
        backends.load(_NATIVE[format], "checkpoint.native").write_native(path, checkpoint)
    elif format == "orbax":
        _write_orbax(path, checkpoint)
    else:
        write_checkpoint(path, checkpoint, sharded=format == "dcp")


if __name__ == "__main__":
    from tools.cli.main import main

    main(["convert", *sys.argv[1:]])
