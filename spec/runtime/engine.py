"""The training engine: what the training loop needs of a backend. Both backends' `training/engine.py` implement it.

Batches, parameters, moments and what is dumped are NumPy; only the states of an evaluation stay where they are
computed. Where several processes train, every process calls every method, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np

from spec.checkpoint.tensors import Arrays
from spec.config import TrainingConfig
from spec.data import Batch
from spec.runtime.parallel import ParallelContext
from spec.sampling import Step

States = TypeVar("States")

Moments = Mapping[str, Arrays]
"""First and second moment of every parameter that has one: `moments[name][path]`, names as in spec/optimizer.py."""


class ExtraState(TypedDict, total=False):
    """What a backend adds to a checkpoint's state.json."""

    grad_scaler: dict[str, float]
    """torch in float16: the state of its GradScaler."""


@runtime_checkable
class PendingSave(Protocol):
    """A sharded checkpoint that is being written while training goes on."""

    def done(self) -> bool:
        """Whether this process has nothing left to write."""
        ...

    def result(self) -> None:
        """Wait until all processes have written their parts.

        Raises:
            OSError: a disk is full or not writable.
        """
        ...


@runtime_checkable
class Engine(Protocol[States]):
    """A model, its optimizer and their placement on devices.

    Constructed as `Engine(config, training, method, remat, compile, micro_batch, context)`; a ValueError says what
    cannot be.

    Args:
        config: the model.
        training: the run.
        method: mixer method.
        remat: make activations again in the backward pass.
        compile: compile the step.
        micro_batch: rows taken at a time, their gradients added up; None takes all.
        context: the processes of the run; None is this one alone.
    """

    name: str
    """Of the backend, `torch` or `jax`."""
    method: str
    """Mixer method; never `auto`."""
    training: TrainingConfig

    @property
    def context(self) -> ParallelContext:
        """The processes of the run."""
        ...

    def train_step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the global gradient norm before clipping.

        Where either is not finite, parameters, moments and states stay as they were.

        Args:
            batch: this process's shard of the global batch.
            lr: learning rate of the step.
        """
        ...

    def evaluate(self, batch: Batch, states: States | None = None) -> tuple[float, States]:
        """Mean nats a counted label, each row from `states`, and the final states.

        Args:
            batch: this process's shard.
            states: [l, b, n], as an evaluation before gave them; None is zero.
        """
        ...

    def load(self, parameters: Arrays, moments: Moments, step: int) -> None:
        """Set parameters and, where there are any, moments after `step` steps."""
        ...

    def dump(self) -> tuple[Arrays, Moments]:
        """Parameters and moments as NumPy."""
        ...

    def dump_states(self) -> np.ndarray | None:
        """The carried states [l, b, n], or None where there are none."""
        ...

    def load_states(self, states: np.ndarray | None) -> None:
        """Go on from carried states [l, b, n]; None is zero."""
        ...

    def save_shards(self, directory: Path) -> PendingSave:
        """Begin to write this process's part of parameters and moments into the directory; steps may go on."""
        ...

    def load_shards(self, directory: Path, step: int) -> None:
        """Set parameters and moments after `step` steps, each process its part, from any number of shards."""
        ...

    def extra_state(self) -> ExtraState:
        """What else a checkpoint's state.json needs for the next step to repeat its bits."""
        ...

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `extra_state` gave, from the whole of state.json; what is not there stays as it is.

        Raises:
            ValueError: an entry that `extra_state` does not make.
        """
        ...

    def sampler(self) -> Step:
        """The current model as a step of generation."""
        ...

    def environment(self) -> dict[str, str | int | bool]:
        """What bit-exact resume depends on besides the checkpoint."""
        ...

    def layout(self) -> str:
        """Who computes what: in another layout the same mathematics is summed in another order."""
        ...

    def profile(self, directory: Path) -> AbstractContextManager[None]:
        """Write a profiler trace of what runs inside to the directory."""
        ...
