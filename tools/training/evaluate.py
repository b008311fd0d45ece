"""The validation loss of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spec.checkpoint.format import Checkpoint
from spec.checkpoint.quantization import Weights, rounded
from spec.config import TrainingConfig, training_from_json
from spec.data import Batch, BatchShard, Dataset, open_data, validation_batches, validation_stream
from spec.inputs import IGNORED_LABEL
from spec.runtime.engine import Engine, States
from tools import convert
from tools.cli import backends
from tools.cli.progress import Bar, progress

STREAM_SEQ_LEN = 4096


@dataclass(frozen=True)
class Evaluate:
    """Validation loss in nats a token and in bits a byte: over windows from a zero state, or over the whole text."""

    checkpoint: Path
    """A run (its newest checkpoint), a checkpoint directory, a .pt or a .msgpack file."""
    data: Path
    """Prepared data; its tokenizer must be the checkpoint's."""
    backend: backends.Backend | None = None
    """Backend to compute with; by default the first one installed."""
    weights: Weights = "float32"
    """Round the matrices to bfloat16, or to int8 with a scale a row, and evaluate these."""
    batch_size: int = 32
    """Windows at a time; with --stream it is one."""
    seq_len: int | None = None
    """Window length; by default the one trained with, or 4096 with --stream, whose result does not depend on it."""
    windows: int = 1_000_000_000
    """Windows to read at most, from the start of the validation part."""
    stream: bool = False
    """Read the validation part as one sequence, its state carried on; memory does not grow with the text."""

    def run(self) -> None:
        checkpoint, data = convert.read(self.checkpoint), open_data(self.data)
        require_same_tokenizer(checkpoint, data, self.checkpoint)
        for name in ("batch_size", "seq_len", "windows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        stored = checkpoint.state.get("training")
        training = training_from_json(stored) if stored else TrainingConfig(seq_len=checkpoint.config.max_seq_len)
        engines = backends.load(self.backend or backends.default(), "training.engine")
        engine: Engine[Any] = engines.Engine(checkpoint.config, training)
        parameters = checkpoint.parameters
        engine.load(parameters if self.weights == "float32" else rounded(parameters, self.weights), {}, 0)
        seq_len = self.seq_len or (STREAM_SEQ_LEN if self.stream else training.seq_len)
        if self.stream:
            batches = validation_stream(data, seq_len, self.windows * seq_len)
        else:
            batches = validation_batches(data, seq_len, self.batch_size, self.windows)
        with progress("evaluating", min(len(data.val), self.windows * seq_len)) as bar:
            nats, tokens = total_nats(engine, with_progress(batches, bar), self.stream)
        result = {"step": checkpoint.state["step"], "val_loss": nats / tokens}
        if self.weights != "float32":
            result["weights"] = self.weights
        print(json.dumps({**result, "val_bpb": data.nats_to_bits_per_byte(nats / tokens), "tokens": tokens}))


def mean_loss(engine: Engine[Any], batches: Iterable[Batch], carry: bool = False) -> float:
    """Mean nats a counted label over all batches.

    Args:
        engine: of a backend.
        batches: of one shape.
        carry: each batch goes on from the states after the one before, not from zero.
    """
    nats, tokens = total_nats(engine, batches, carry)
    return nats / tokens


def total_nats(engine: Engine[States], batches: Iterable[Batch], carry: bool = False) -> tuple[float, int]:
    """Sum of nats over all batches, and the labels counted.

    Args:
        engine, batches, carry: as in `mean_loss`.
    """
    nats, count = 0.0, 0
    states: States | None = None
    shard = engine.context.shard
    for i, whole in enumerate(batches):
        # One row cannot be cut between rows: every process reads all of a stream, or its stretch of each piece.
        batch = _part(whole, shard.of_all_rows() if carry else shard)
        try:
            mean, last = engine.evaluate(batch, states)
        except ValueError as error:
            raise ValueError(f"validation batch {i + 1}: {error}") from error
        states = last if carry else None
        counted = int((batch.labels != IGNORED_LABEL).sum())
        nats += mean * counted
        count += counted
    times = shard.rows if carry else 1
    return engine.context.total(nats) / times, int(engine.context.total(count)) // times


def _part(batch: Batch, shard: BatchShard) -> Batch:
    """A process's shard of a batch; where it has no row, one whose labels are ignored: all must compute together."""
    part = batch.part(shard)
    if len(part.tokens):
        return part
    first = Batch(batch.tokens[:1], np.full_like(batch.labels[:1], IGNORED_LABEL), batch.resets[:1])
    return first.part(shard.of_all_rows())


def with_progress(batches: Iterable[Batch], bar: Bar) -> Iterator[Batch]:
    """The batches; the bar advances once each has been evaluated."""
    for batch in batches:
        yield batch
        bar.advance(int((batch.labels != IGNORED_LABEL).sum()))


def require_same_tokenizer(checkpoint: Checkpoint, data: Dataset, where: Path) -> None:
    """Raises ValueError where the data was prepared with another tokenizer than the checkpoint's."""
    if checkpoint.config.vocab_size != data.vocab_size or checkpoint.tokenizer not in (None, data.tokenizer):
        raise ValueError(
            f"{where} and the data have different tokenizers; prepare the text with --tokenizer and the tokenizer.json "
            "of the checkpoint"
        )
