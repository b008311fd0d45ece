"""report.json: what the report says, as JSON holds it. Numbers that are not finite are words there."""

from __future__ import annotations

from typing import TypedDict, final

from parity.proof.environment import Environment
from parity.suite.mutants.record import Score

Units = float | str


class FailureRow(TypedDict):
    """`sweep.Failure`."""

    case: str
    message: str
    reproduction: str


class ErrorRow(TypedDict):
    """`sweep.Row`, and its implementation's name."""

    operation: str
    backend: str
    method: str
    implementation: str
    dtype: str
    theorem: bool
    cases: int
    worst: Units
    tensor: str
    case: str
    tensors: dict[str, Units]
    groups: dict[str, dict[str, Units]]
    nano: dict[str, Units]
    refusal: str
    skipped: str | None
    failure: FailureRow | None


class TightnessRow(TypedDict):
    """How much of an operation's float32 bound was used, at most and by tensor."""

    operation: str
    theorem: bool
    used: Units
    tight: bool
    tensors: dict[str, Units]
    shapes: str


@final
class Skipped(TypedDict):
    """Why a run was not made."""

    skipped: str


@final
class DriftEntry(TypedDict):
    """`trajectory_drift.Drift` and what follows from it."""

    curves: dict[str, list[float]]
    gap: list[float]
    spread: list[float]
    limit: float
    largest_gap: float
    passed: bool


@final
class EstimateEntry(TypedDict):
    """`trajectory_drift.Estimate` and what follows from it."""

    bound: list[float]
    errors: dict[str, list[float]]
    units: dict[str, Units]
    passed: bool


class Trajectories(TypedDict):
    """Both whole runs."""

    race: DriftEntry | Skipped
    estimated: EstimateEntry | Skipped


class CurrentScore(Score):
    """The score of the planted mistakes, and whether it is of the sources as they are."""

    current: bool


class Report(TypedDict):
    """The whole."""

    verdict: str
    made: str
    seconds: float
    draws: int
    seed: int | None
    environment: Environment
    problems: int
    checks: int
    rows: list[ErrorRow]
    tightness: list[TightnessRow]
    trajectories: Trajectories
    mutants: CurrentScore | None
    passed: bool
