"""Whole training runs, step by step, in either backend and from one to the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from parity.proof.problems.cases import perturbed_parameters
from spec.checkpoint.format import Checkpoint
from spec.config import ModelConfig, TrainingConfig
from spec.data import Batch, Dataset, training_batch, with_side_inputs
from spec.presets import PRESETS
from tools import convert
from tools.cli import backends

# A constant rate from the first step on: no warm-up hides the steps where the loss moves most.
TRAINING = TrainingConfig(peak_lr=1e-3, warmup_steps=0, final_lr_fraction=1.0)
MODEL = replace(PRESETS["nano"], vocab_size=257)


@dataclass(frozen=True)
class Order:
    """One of the orders in which a backend may sum the same mathematics."""

    method: str = "chunked"
    reverse_rows: bool = False

    def batch(self, batch: Batch) -> Batch:
        if not self.reverse_rows:
            return batch
        tokens, labels, resets = (np.ascontiguousarray(x[::-1]) for x in (batch.tokens, batch.labels, batch.resets))
        return Batch(tokens, labels, resets)


REORDERINGS = tuple(Order(method, reverse) for method in ("sequential", "chunked") for reverse in (False, True))


@dataclass
class Segment:
    """Part of a run in one backend.

    Args:
        backend: `torch` or `jax`.
        data: what to train on.
        training: hyperparameters; the learning rate is constant.
        order: of summation.
        model: its shape.
        noise: on every initial parameter, so that none is zero.
    """

    backend: str
    data: Dataset
    training: TrainingConfig = TRAINING
    order: Order = Order()
    model: ModelConfig = MODEL
    noise: float = 0.0

    def __post_init__(self) -> None:
        engine = backends.load(self.backend, "training.engine").Engine
        # Orders of summation are those of a linear scan.
        capabilities = backends.load(self.backend, "mixers").capabilities(self.model)
        method = self.order.method if capabilities.scan_methods else "auto"
        self.engine = engine(self.model, self.training, method)
        if self.noise:
            self.engine.load(perturbed_parameters(self.model, self.training.seed, self.noise), {}, 0)
        self.step = 0

    def train(self, steps: int) -> np.ndarray:
        """The loss of each of the next `steps` steps."""
        losses = []
        for _ in range(steps):
            t = self.training
            batch = training_batch(self.data, self.step * t.batch_size, t.batch_size, t.seq_len, t.seed)
            batch = with_side_inputs(self.order.batch(batch), self.model, t, self.step * t.batch_size)
            losses.append(self.engine.train_step(batch, t.peak_lr)[0])
            self.step += 1
        return np.array(losses)

    def save(self, path: Path) -> None:
        """Write the state in the format that the suffix of `path` names."""
        parameters, moments = self.engine.dump()
        counters = {"samples_consumed": self.step * self.training.batch_size, "tokens": 0, "seed": self.training.seed}
        state = {"step": self.step, **counters, "training": asdict(self.training)}
        convert.write(path, Checkpoint(self.model, parameters, moments, state))

    def load(self, path: Path) -> None:
        """Take over what any backend saved."""
        checkpoint = convert.read(path)
        self.step = checkpoint.state["step"]
        self.engine.load(checkpoint.parameters, checkpoint.moments, self.step)


def hand_over(first: Segment, second: Segment, steps: int, directory: Path) -> np.ndarray:
    """Losses of `steps` steps in one backend and `steps` in the other, through a native file and a neutral one."""
    native = directory / ("segment.pt" if first.backend == "torch" else "segment.msgpack")
    losses = first.train(steps)
    first.save(native)
    convert.write(directory / "segment", convert.read(native))
    second.load(directory / "segment")
    return np.concatenate([losses, second.train(steps)])


def spread(curves: list[np.ndarray]) -> float:
    """The largest difference between any two curves at any step."""
    return max(float(np.abs(a - b).max()) for a, b in combinations(curves, 2))
