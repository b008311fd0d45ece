"""The validation loss of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import progress
from rich.console import Console

from spec.checkpoint import Checkpoint
from spec.config import TrainingConfig, training_from_json
from spec.data import IGNORED_LABEL, Batch, Dataset, open_data, validation_batches
from tools import backends, convert


@dataclass(frozen=True)
class Evaluate:
    """Validation loss in nats a token and in bits a byte, over non-overlapping windows from a zero state."""

    checkpoint: Path
    """A run (its newest checkpoint), a checkpoint directory, a .pt or a .msgpack file."""
    data: Path
    """Prepared data; its tokenizer must be the checkpoint's."""
    backend: backends.Backend | None = None
    """Backend to compute with; by default the first one installed."""
    batch_size: int = 32
    """Windows at a time."""
    seq_len: int | None = None
    """Window length; by default the one trained with."""
    windows: int = 1_000_000_000
    """Windows to read at most, from the start of the validation part."""

    def run(self) -> None:
        checkpoint, data = convert.read(self.checkpoint), open_data(self.data)
        require_same_tokenizer(checkpoint, data, self.checkpoint)
        for name in ("batch_size", "seq_len", "windows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        stored = checkpoint.state.get("training")
        training = training_from_json(stored) if stored else TrainingConfig(seq_len=checkpoint.config.max_seq_len)
        seq_len = self.seq_len or training.seq_len
        engine = backends.load(self.backend or backends.default(), "train").Engine(checkpoint.config, training)
        engine.load(checkpoint.parameters, {}, 0)
        nats = mean_loss(engine, track(validation_batches(data, seq_len, self.batch_size, self.windows)))
        result = {"step": checkpoint.state["step"], "val_loss": nats, "val_bpb": data.nats_to_bits_per_byte(nats)}
        print(json.dumps(result))


def mean_loss(engine: Any, batches: Iterable[Batch]) -> float:
    """Mean nats a counted label over all batches."""
    nats, count = 0.0, 0
    for batch in batches:
        counted = int((batch.labels != IGNORED_LABEL).sum())
        nats += engine.evaluate(batch) * counted
        count += counted
    return nats / count


def track(batches: Iterable[Batch]) -> Iterable[Batch]:
    """The batches, with a progress bar on a terminal."""
    console = Console(stderr=True)
    return progress.track(batches, "evaluating", console=console, transient=True, disable=not console.is_terminal)


def require_same_tokenizer(checkpoint: Checkpoint, data: Dataset, where: Path) -> None:
    """Raises ValueError where the data was prepared with another tokenizer than the checkpoint's."""
    if checkpoint.config.vocab_size != data.vocab_size or checkpoint.tokenizer not in (None, data.tokenizer):
        raise ValueError(
            f"{where} and the data have different tokenizers; prepare the text with --tokenizer and the tokenizer.json "
            "of the checkpoint"
        )
