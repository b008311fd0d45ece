"""The validation loss of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from spec.config import TrainingConfig
from spec.data import Dataset, open_data, validation_batches
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
        require_same_tokenizer(checkpoint.tokenizer, data, self.checkpoint)
        for name in ("batch_size", "seq_len", "windows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        training = checkpoint.state.get("training", {})
        seq_len = self.seq_len or training.get("seq_len", checkpoint.config.max_seq_len)
        engine = backends.load(self.backend or backends.default(), "train").Engine(checkpoint.config, TrainingConfig())
        engine.load(checkpoint.parameters, {}, 0)
        nats = engine.evaluate(validation_batches(data, seq_len, self.batch_size, self.windows))
        result = {"step": checkpoint.state["step"], "val_loss": nats, "val_bpb": data.nats_to_bits_per_byte(nats)}
        print(json.dumps(result))


def require_same_tokenizer(tokenizer: str | None, data: Dataset, where: Path) -> None:
    """Raises ValueError where the data was prepared with another tokenizer than the checkpoint's."""
    if tokenizer is not None and tokenizer != data.tokenizer:
        raise ValueError(
            f"{where} and the data have different tokenizers; prepare the text with --tokenizer and the tokenizer.json "
            "of the checkpoint"
        )
