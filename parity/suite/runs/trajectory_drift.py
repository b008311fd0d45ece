"""Whole runs from perturbed weights: against reorderings of one backend, and against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.proof.bounds.monte_carlo_arithmetic import FACTOR, Rounding
from parity.proof.problems.cases import perturbed_parameters
from parity.suite.runs.trajectories import REORDERINGS, TRAINING, Order, Segment
from spec.config import ModelConfig, TrainingConfig
from spec.data import Dataset, next_batch, with_side_inputs
from spec.mixers import families, family, registry
from spec.optimizer import decayed_paths, muon_matrices
from spec.presets import PRESETS
from spec.reference import clip_by_global_norm, forward, loss_and_gradients, optimizer_step
from spec.schedule import learning_rate
from tools.data.stories import stories

NOISE = 0.02
LARGEST_RATIO = 5.0
"""Of the difference between the backends to that between reorderings of one."""
# Small enough for the reference, which rounds at random nine times over: three seconds a run.
SIZES: dict[str, Any] = {"vocab_size": 257, "d_model": 16, "d_ff": 24, "n_layers": 2, "max_seq_len": 16}
SMALL = replace(PRESETS["nano"], **SIZES)
SMALL_SSM = replace(PRESETS["ssm-nano"], **SIZES, d_state=6, d_tau=3, exploration_rate=0.5)
# Families that no other run trains, each with a model of its own.
OTHERS: dict[str, ModelConfig] = {
    name: replace(one.small_config(), vocab_size=257, max_seq_len=16)
    for name, one in families().items()
    if name not in (SMALL.family, SMALL_SSM.family, *registry().packages)
}
SMALL_TRAINING = replace(TRAINING, batch_size=4, seq_len=16)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Drift:
    """Losses of one run in JAX and in torch, and of torch in three other orders of summation.

    Args:
        curves: loss at each step, by name.
        gap: |torch - JAX| at each step.
        spread: largest difference between two orders of torch up to each step.
    """

    curves: dict[str, np.ndarray]
    gap: np.ndarray
    spread: np.ndarray

    @property
    def limit(self) -> float:
        return LARGEST_RATIO * float(self.spread[-1])

    @property
    def passed(self) -> bool:
        return float(self.gap.max()) <= self.limit


def perturbed_run(
    data: Dataset, steps: int = 100, progress: Progress = lambda name: None, training: TrainingConfig = TRAINING
) -> Drift:
    """Train nano from perturbed weights in four orders of torch and once in JAX."""
    curves = {}
    for order in REORDERINGS:
        name = f"torch, {order.method}{', rows reversed' if order.reverse_rows else ''}"
        progress(name)
        curves[name] = Segment("torch", data, training, order, noise=NOISE).train(steps)
    progress("jax")
    reorderings = np.stack(list(curves.values()))
    curves["jax"] = Segment("jax", data, training, noise=NOISE).train(steps)
    spread = np.maximum.accumulate(np.ptp(reorderings, axis=0))
    return Drift(curves, np.abs(curves["jax"] - curves[f"torch, {Order().method}"]), spread)


@dataclass(frozen=True)
class Estimate:
    """Losses of a small run against the float64 reference.

    Args:
        bound: largest change of the loss up to each step over runs that round at random, times 4.
        errors: |loss - reference| at each step, by backend.
    """

    bound: np.ndarray
    errors: dict[str, np.ndarray]

    @property
    def units(self) -> dict[str, float]:
        return {name: float((error / self.bound).max()) for name, error in self.errors.items()}


def estimated_run(
    data: Dataset, names: tuple[str, ...] = ("torch", "jax"), steps: int = 100, progress: Progress = lambda name: None
) -> Estimate:
    """Train a small model from perturbed weights in each backend, in float64, and in float64 that rounds at random."""
    truth, bound = bounded_run(data, steps, SMALL_TRAINING, progress)
    errors = {}
    for name in names:
        progress(name)
        losses = Segment(name, data, SMALL_TRAINING, model=SMALL, noise=NOISE).train(steps)
        errors[name] = np.abs(losses - truth)
    return Estimate(bound, errors)


def bounded_run(
    data: Dataset,
    steps: int,
    training: TrainingConfig,
    progress: Progress = lambda name: None,
    model: ModelConfig = SMALL,
) -> tuple[np.ndarray, np.ndarray]:
    """The loss at each step of the float64 reference, and the estimate of how far a float32 run may lie from it."""
    truth, bound = bounded_curves(data, steps, training, progress, model)
    return truth[:, 0], bound[:, 0]


def bounded_curves(
    data: Dataset,
    steps: int,
    training: TrainingConfig,
    progress: Progress = lambda name: None,
    model: ModelConfig = SMALL,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient norm of each step, [steps, 2], and the estimates of how far a float32 run may lie off."""
    progress("float64 reference")
    truth = reference_run(data, steps, training, lambda x: np.asarray(x, np.float64), model)
    changes = []
    for run in range(4):
        progress(f"float64 that rounds at random, {run + 1} of 4")
        changes.append(np.abs(reference_run(data, steps, training, Rounding(run, 2.0**-24), model) - truth))
    # Both are stored in float32: where no run has moved them, they are still off by their own rounding.
    return truth, FACTOR * np.maximum.accumulate(np.maximum(np.max(changes, axis=0), 2.0**-24 * truth))


def reference_run(
    data: Dataset,
    steps: int,
    training: TrainingConfig,
    lift: Callable[[np.ndarray], np.ndarray],
    model: ModelConfig = SMALL,
) -> np.ndarray:
    """Loss and norm of each step of the reference, [steps, 2], on the kind of array that `lift` makes."""
    t, decayed, matrices = training, decayed_paths(model), muon_matrices(model, training)
    params = {path: lift(x) for path, x in perturbed_parameters(model, t.seed, NOISE).items()}
    moments = [{path: lift(np.zeros(x.shape)) for path, x in params.items()} for _ in range(2)]
    losses, states = [], None
    for step in range(steps):
        batch = with_side_inputs(next_batch(data, step * t.batch_size, t), model, t, step * t.batch_size)
        side = {name: lift(x) for name, x in family(model).in_order_of_call(model, batch.side).items()}
        inputs = states, batch.resets
        loss, gradients, _ = loss_and_gradients(params, model, batch.tokens, batch.labels, *inputs, **side)
        if t.stream:
            states = forward(params, model, batch.tokens, *inputs, **side)[1]
        gradients, norm = clip_by_global_norm(gradients, t.grad_clip)
        rate = learning_rate(step, t)
        params, *moments = optimizer_step(params, gradients, *moments, step + 1, rate, t, decayed, matrices)
        losses.append((float(loss), float(norm)))
    return np.array(losses)


def story_data(count: int = 300) -> Dataset:
    """The project's own stories in bytes, in memory."""
    text = b"".join(story.encode() + b"\xff" for story in stories(count))
    tokens = np.frombuffer(text, np.uint8).astype(np.uint16)
    return Dataset(np.where(tokens == 255, 256, tokens), tokens[:0], {"vocab_size": 257, "end_of_text_id": 256}, "")
