"""Checkpoints from any format to any other, bit for bit: weights, AdamW moments, step, cursor and tokenizer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from spec.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tools import backends

Format = Literal["neutral", "pt", "msgpack", "dcp"]
SUFFIXES: dict[str, Format] = {".pt": "pt", ".pth": "pt", ".msgpack": "msgpack"}
_NATIVE = {"pt": "torch", "msgpack": "jax"}


@dataclass(frozen=True)
class Convert:
    """Convert a checkpoint between the neutral directory, PyTorch's .pt and DCP shards, and Flax's .msgpack.

    Nothing is renamed, transposed or rounded: every stored dtype keeps its bits.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Checkpoint to read: a checkpoint directory, a run (its newest checkpoint), a .pt or a .msgpack file."""
    target: Annotated[Path, tyro.conf.Positional]
    """Where to write it; must not exist yet."""
    format: Format | None = None
    """Format to write; by default told by the target's suffix, a neutral directory where it has none."""

    def run(self) -> None:
        target_format = self.format or SUFFIXES.get(self.target.suffix, "neutral")
        if SUFFIXES.get(self.target.suffix, "neutral") != ("neutral" if target_format == "dcp" else target_format):
            raise ValueError(
                f"{self.target} does not look like format {target_format}; give it the suffix of its format"
            )
        checkpoint = read(self.source)
        write(self.target, checkpoint, sharded=target_format == "dcp")
        step = checkpoint.state["step"]
        print(f"{self.source} -> {self.target} ({target_format}, step {step}, {len(checkpoint.parameters)} tensors)")


def read(path: Path) -> Checkpoint:
    """The checkpoint in a directory, a run, a `.pt` or a `.msgpack` file; ValueError says what is wrong with it."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a checkpoint directory, a run, a .pt or a .msgpack file")
    if path.is_dir():
        return read_checkpoint(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no known checkpoint format; name a directory, a .pt or a .msgpack file")
    checkpoint = backends.load(_NATIVE[SUFFIXES[path.suffix]], "checkpoint").read_native(path)
    if not checkpoint.verified:
        told = "carries no checksums: names, shapes, dtypes and finiteness were checked, not its bits"
        print(f"{path} {told}", file=sys.stderr)
    return checkpoint


def write(path: Path, checkpoint: Checkpoint, sharded: bool = False) -> None:
    """Write the checkpoint in the format that the suffix of `path` names, else a directory; `sharded`, in one shard."""
    if path.suffix in SUFFIXES:
        backends.load(_NATIVE[SUFFIXES[path.suffix]], "checkpoint").write_native(path, checkpoint)
    else:
        write_checkpoint(path, checkpoint, sharded)


if __name__ == "__main__":
    from tools.cli import main

    main(["convert", *sys.argv[1:]])
