"""Steps of a small run in some layout of processes or devices: for distributed_torch.py and distributed_jax.py."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.proof.problems.cases import ScanCase, perturbed_parameters
from parity.suite.runs.trajectory_drift import NOISE, OTHERS, SMALL, SMALL_TRAINING, story_data
from spec.config import ModelConfig
from spec.data import Batch, next_batch, validation_batches, validation_stream, with_side_inputs
from spec.optimizer import MOMENTS, matrices
from spec.runtime.engine import Engine
from spec.runtime.parallel import ParallelContext
from tools.training.evaluate import mean_loss

# Twelve rows: 1, 2, 3 and 4 processes have equal shares, 8 have not.
TRAINING = replace(SMALL_TRAINING, batch_size=12)
MUON = replace(TRAINING, optimizer="muon")
# Of the other families the one whose matrices have the most shapes.
MUON_MODELS = {
    "small": SMALL,
    "most shapes": max(OTHERS.values(), key=lambda one: len({x.shape for x in matrices(one)})),
}
SCAN_CASES = tuple(
    ScanCase((2, t, 3), "mixture", "normal", resets, padding, seed)
    for seed, (t, resets, padding) in enumerate([(5, "none", "none"), (31, "some", "some"), (63, "last", "left")])
)
STREAMED = 72
"""Tokens at a time of the text as one sequence: of 2, 4 and 8 devices that share a row."""

Results = dict[str, Any]
"""What a script writes as JSON for the test that started it."""
Snapshot = dict[str, Any]
"""What a checkpoint holds: parameters, moments, states (None where the run does not stream) and step."""


class Segment:
    """Steps of one engine on the stories, from perturbed weights."""

    def __init__(self, engine: Engine, model: ModelConfig):
        self.data, self.engine, self.model, self.step = story_data(), engine, model, 0
        self.training, self.context = engine.training, engine.context
        engine.load(perturbed_parameters(model, self.training.seed, NOISE), {}, 0)

    def train(self, steps: int) -> tuple[np.ndarray, list[str]]:
        """Loss and norm of each step, [steps, 2], and the digest of the tokens that all processes took together."""
        losses, digests = [], []
        for _ in range(steps):
            consumed = self.step * self.training.batch_size
            batch = next_batch(self.data, consumed, self.training, self.context.shard)
            digests.append(digest(batch, self.context))
            batch = with_side_inputs(batch, self.model, self.training, consumed, self.context.shard)
            losses.append(self.engine.train_step(batch, self.training.peak_lr))
            self.step += 1
        return np.array(losses), digests

    def restore(self, other: Snapshot) -> None:
        """Go on from where another segment ended."""
        self.engine.load(other["parameters"], other["moments"], other["step"])
        self.engine.load_states(other["states"])
        self.step = other["step"]

    def snapshot(self) -> Snapshot:
        """What the next segment goes on from."""
        parameters, moments = self.engine.dump()
        states = self.engine.dump_states()
        return {"parameters": parameters, "moments": moments, "states": states, "step": self.step}


def evaluated(segment: Segment) -> tuple[float, float]:
    """The mean loss over a text in windows, and as one sequence, in batches that do not divide between processes."""
    data = replace(segment.data, val=segment.data.train[:1000])
    windows = mean_loss(segment.engine, validation_batches(data, 16, 5, 62))
    return windows, mean_loss(segment.engine, validation_stream(data, STREAMED, 1000), carry=True)


def digest(batch: Batch, context: ParallelContext) -> str:
    """SHA-256 of tokens, labels and resets of the global batch, put together from what each process has."""
    parts, columns = context.all_gather(batch), context.shard.columns
    whole = hashlib.sha256()
    for name in ("tokens", "labels", "resets"):
        arrays = [getattr(part, name) for part in parts]
        rows = [np.concatenate(arrays[i : i + columns], axis=1) for i in range(0, len(arrays), columns)]
        whole.update(np.ascontiguousarray(np.concatenate(rows)).tobytes())
    return whole.hexdigest()


def same_bits(a: Snapshot, b: Snapshot) -> bool:
    """Whether two snapshots are equal in every bit: parameters, both moments of each, states and step.

    Raises:
        ValueError: one lacks parameters, or a moment of one of them: two that lack the same would be equal.
    """
    one, other = map(_contents, (a, b))
    return one == other


def _contents(snapshot: Snapshot) -> dict[str, Any]:
    """Every tensor's dtype, shape and bytes by name, and the step."""
    parameters, moments, states = (snapshot[name] for name in ("parameters", "moments", "states"))
    first, second = (moments.get(name, {}) for name in MOMENTS)
    # What Muon takes has no second moment.
    whole = set(first) == set(parameters) and set() < set(second) <= set(parameters)
    if not parameters or set(moments) != set(MOMENTS) or not whole:
        raise ValueError(f"a snapshot of {len(parameters)} parameters and the moments {sorted(moments)} is not whole")
    arrays = {**parameters, **{f"{kind} {path}": x for kind, of in moments.items() for path, x in of.items()}}
    arrays |= {} if states is None else {"states": states}
    every = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    return {"step": snapshot["step"], **every}


def repeats_after_a_restart(make: Callable[[], Segment]) -> bool:
    """Whether two steps, a new engine and two more come to the same bits as four steps in one go."""
    whole, first, second = (make() for _ in range(3))
    whole.train(4)
    first.train(2)
    second.restore(first.snapshot())
    second.train(2)
    return same_bits(whole.snapshot(), second.snapshot())


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The arrays by name, as `numpy.load` reads them."""
    np.savez(path, allow_pickle=False, **arrays)
