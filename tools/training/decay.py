"""`liquidnet train --decay-from`: a new run that goes on from a checkpoint of a stable one, and decays its rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spec.checkpoint.format import Checkpoint, find_checkpoint
from spec.config import require_integer, training_from_json
from tools import convert
from tools.training.run_dir import ExecutionConfig, Settings


def stable_origin(path: Path) -> Path:
    """The checkpoint that --decay-from names: of a run the newest one, by its own name, for the run may go on."""
    return (find_checkpoint(path) if path.is_dir() else path).resolve()


def begin_decay(origin: Path, decay_steps: int | None) -> tuple[Checkpoint, Settings]:
    """The checkpoint of a wsd run, and the settings of the run that decays from it: its own, until the decay begins.

        steps = step + decay

    How it is computed, and what is kept, is no part of a checkpoint: that is as for any new run.

    Args:
        origin: the checkpoint, by `stable_origin`.
        decay_steps: steps of the decay, None for what its run was given; where that is 0, a fifth of all steps.

    Raises:
        ValueError: the checkpoint cannot be read or gone on from, or is not in the stable part of a wsd schedule.
    """
    if decay_steps is not None:
        require_integer("decay_steps", decay_steps, 0)
    checkpoint = convert.read(origin)
    step, stored = checkpoint.state["step"], checkpoint.state.get("training")
    if stored is None or not checkpoint.moments:
        raise ValueError(f"{origin} has no optimizer state or training settings; name a checkpoint of a run")
    training = training_from_json(stored)
    first, last = training.warmup_steps, training.decay_start
    if training.schedule != "wsd":
        raise ValueError(
            f"{origin} is of a {training.schedule} schedule, which has no stable part; name one of a run that was "
            "trained with --schedule wsd"
        )
    if not first <= step <= last:
        raise ValueError(
            f"{origin} is at step {step}, outside the stable part of its run, steps {first} to {last}; name a "
            "checkpoint from there"
        )
    asked = training.decay_steps if decay_steps is None else decay_steps
    # A quarter of the steps before it is a fifth of all.
    training = replace(training, steps=step + (asked or max(step // 4, 1)), decay_steps=asked)
    assert training.decay_start == step
    data = checkpoint.state.get("data") or {}
    return checkpoint, Settings(checkpoint.config, training, ExecutionConfig(), data, decay_from=str(origin))
