"""What a run records: the state.json of its checkpoints and the lines of its metrics.jsonl."""

from __future__ import annotations

from typing import Any, Required, TypedDict

from spec.runtime.engine import ExtraState


class BestCheckpoint(TypedDict):
    """The evaluation with the lowest validation loss so far; its checkpoint is kept."""

    step: int
    val_loss: float


class TrainerState(ExtraState):
    """A checkpoint's state.json: the counters of the run, and what it was trained with."""

    step: int
    samples_consumed: int
    tokens: int
    seed: int
    training: dict[str, Any]
    data: dict[str, str]
    best: BestCheckpoint | None
    backend: str
    method: str
    environment: dict[str, str | int | bool]


class MetricsLine(TypedDict, total=False):
    """A line of RUN/metrics.jsonl: of a step, with a `loss`, or of an evaluation, with a `val_loss`."""

    step: Required[int]
    loss: float
    tokens: int
    lr: float
    grad_norm: float
    tokens_per_second: float
    backend: str
    processes: int
    val_loss: float
    val_bpb: float
    sample: str
