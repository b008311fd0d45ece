"""Every operation x implementation x dtype on many drawn problems: how large errors get, in units of their bounds.

All implementations of an operation are given the same problems. With a fixed seed, or none, they are the same in every
run and on every machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import NoSuchExample

from parity.proof import adapters, interpreted_kernels
from parity.proof.bounds import in_units
from parity.proof.operations import OPERATIONS, Operation, check, expected, operations_of
from parity.proof.problems.cases import NANO, AdamWCase, LayerCase, ModelCase, ScanCase
from parity.proof.problems.strategies import CASES
from spec.mixers import families

DRAWS = 150
MOST_SHRUNK = 3
QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
SEE = "liquidnet doctor"
IMPORTS = "from parity.proof.problems.cases import *; from parity.proof.operations import check"

Case = ScanCase | LayerCase | AdamWCase | ModelCase
Progress = Callable[[str, int, int], None]


@dataclass
class Failure:
    """A bound that was broken: the smallest problem found that breaks it, what it says, and how to see it again."""

    case: str
    message: str
    reproduction: str


@dataclass
class Row:
    """What was seen of one operation in one implementation and dtype.

    Args:
        operation, backend, method, dtype: of what; `method` is empty where there is no choice.
        theorem: the float32 bound is proved; else it is an estimate.
        cases: problems tried.
        worst: the largest error, in units of its bound.
        tensor, case: where it was.
        tensors: the largest error of each tensor.
        groups: kind of group -> group -> largest error: the scan's lengths and decay regimes.
        nano: the largest error of each tensor at the shapes of nano.
        refusal: what a problem was last refused with.
        skipped: why nothing was tried.
        failure: the smallest problem that breaks the bound.
    """

    operation: str
    backend: str
    method: str
    dtype: str
    theorem: bool
    cases: int = 0
    worst: float = 0.0
    tensor: str = ""
    case: str = ""
    tensors: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    nano: dict[str, float] = field(default_factory=dict)
    refusal: str = ""
    skipped: str | None = None
    failure: Failure | None = None

    @property
    def implementation(self) -> str:
        return f"{self.backend} {self.method}".strip()

    def add(self, case: Case, units: dict[str, float]) -> None:
        """Take in the errors of one more problem."""
        self.cases += 1
        for name, worst in units.items():
            self.tensors[name] = max(worst, self.tensors.get(name, 0.0))
            if at_nano(case):
                self.nano[name] = max(worst, self.nano.get(name, 0.0))
        tensor = max(units, key=lambda name: units[name])
        if units[tensor] > self.worst or not self.case:
            self.worst, self.tensor, self.case = units[tensor], tensor, repr(case)
        for kind, group in groups_of(case).items():
            groups = self.groups.setdefault(kind, {})
            groups[group] = max(units[tensor], groups.get(group, 0.0))


def at_nano(case: Case) -> bool:
    """Whether a problem has the widths of nano."""
    return (case.shape[-1] if isinstance(case, ScanCase) else case.config.d_model) == NANO.d_model


def groups_of(case: Case) -> dict[str, str]:
    """What problems of the scan are grouped by."""
    return {"T": str(case.shape[1]), "decay": case.decays} if isinstance(case, ScanCase) else {}


def sweep_operations(
    draws: int = DRAWS,
    seed: int | None = None,
    progress: Progress | None = None,
    names: Iterable[str] = tuple(adapters.FRAMEWORKS),
    family: str | None = None,
) -> list[Row]:
    """Draw problems for every operation and measure every implementation on them.

    Args:
        draws: problems for an operation, times its share.
        seed: of the draws; None draws the same every time.
        progress: called with operation, problems done, problems in all.
        names: the backends.
        family: whose operations; by default those of all families, and those that they share.
    """
    rows: list[Row] = []
    for operation in OPERATIONS.values() if family is None else operations_of(family):
        found = rows_of(operation, names)
        rows += found
        live = [row for row in found if row.skipped is None and row.failure is None]
        if live:
            limits = settings(max_examples=amount_of(operation, draws), derandomize=seed is None, **QUIET)
            _measure_all(operation, live, limits, seed, progress)
    return rows


def amount_of(operation: Operation, draws: int) -> int:
    """How many problems `sweep_operations` draws for an operation."""
    return max(1, round(draws * operation.share))


def rows_of(operation: Operation, names: Iterable[str]) -> list[Row]:
    """One row an implementation and dtype; a backend that is missing has one that says so."""
    rows = []
    for name in names:
        reason = adapters.missing(name)
        if reason:
            rows.append(Row(operation.name, name, "", "", operation.theorem, skipped=reason))
            continue
        try:
            methods = operation.methods(adapters.load(name))
        except ValueError as error:  # a family from outside that cannot be used: it must not stop the others
            rows.append(Row(operation.name, name, "", "", operation.theorem, failure=Failure("", str(error), SEE)))
            continue
        # Where there is a choice, `auto` is one of the others.
        for method in [method for method in methods if method != "auto"] or methods:
            reason = interpreted_kernels.WHY_NOT if interpreted_kernels.is_slow(name, method) else None
            for dtype in operation.dtypes:
                rows.append(Row(operation.name, name, method, dtype, operation.theorem, skipped=reason))
    return rows


def measure(
    found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], bound: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The largest error of each tensor in units of its bound; infinite where it is missing or of another shape."""
    worst = {}
    for name, exact in truth.items():
        given = found.get(name)
        if given is None or np.shape(given) != np.shape(exact):
            worst[name] = float("inf")
        else:
            worst[name] = float(in_units(given, exact, bound[name]).max(initial=0.0))
    return worst


def reproduction(row: Row, case: str) -> str:
    """A shell command that repeats one problem in one implementation; it fails as the report says."""
    arguments = ", ".join(repr(x) for x in (row.operation, row.backend, row.method, row.dtype))
    configs = [one.Config for one in families().values() if f"{one.Config.__name__}(" in case]
    imports = [IMPORTS, *(f"from {config.__module__} import {config.__name__}" for config in configs)]
    code = f"{'; '.join(imports)}; check({arguments}, {case})"
    plain = not set(code) & set('"$`\\!')
    return f'python -c "{code}"' if plain else f"python -c {shlex.quote(code)}"


def _measure_all(
    operation: Operation, rows: list[Row], limits: settings, seed: int | None, progress: Progress | None
) -> None:
    done = 0

    # What breaks a bound is looked for afterwards, for each implementation by itself: here all see every problem.
    @settings(limits, phases=[Phase.generate])
    @given(CASES[operation.name])
    def every(case):
        nonlocal done
        for row in rows:
            if row.failure is None:
                _measure(operation, row, case)
        done += 1
        if progress is not None:
            progress(operation.name, done, limits.max_examples)

    (every if seed is None else seeded(seed)(every))()
    for row in rows:
        if row.cases == 0:
            row.skipped = row.refusal
    broken = [row for row in rows if not row.worst <= 1.0 and row.failure is None]
    for i, row in enumerate(broken):
        # A broken reference breaks every row; looking for the smallest case takes minutes each.
        row.failure = _smallest(row, limits, seed) if i < MOST_SHRUNK else _as_seen(row)


def _measure(operation: Operation, row: Row, case: Case) -> None:
    truth, bound = expected(row.operation, case, row.dtype)
    try:
        found = operation.run(adapters.load(row.backend), case, row.method, row.dtype)
    except NotImplementedError as error:
        row.refusal = str(error) or "not implemented here"
        return
    except Exception as error:  # whatever a kernel or a compiler raises is a finding, not the end of the report
        message = f"{type(error).__name__}: {error}"
        row.failure = Failure(repr(case), message, reproduction(row, repr(case)))
        row.add(case, dict.fromkeys(truth, float("inf")))
        return
    row.add(case, measure(found, truth, bound))


def _as_seen(row: Row) -> Failure:
    """The worst problem that was met."""
    message = f"{row.tensor} is off by {row.worst:.3g} units of its bound"
    return Failure(row.case, message, reproduction(row, row.case))


def _smallest(row: Row, limits: settings, seed: int | None) -> Failure:
    """The smallest problem that hypothesis finds; the worst one seen where it finds none again."""
    message = _as_seen(row).message

    def breaks(case: Case) -> bool:
        nonlocal message
        try:
            check(row.operation, row.backend, row.method, row.dtype, case)
        except AssertionError as error:
            message = str(error)
            return True
        return False

    try:
        case = find(CASES[row.operation], breaks, settings=limits, random=Random(seed or 0))
        breaks(case)
        smallest = repr(case)
    except NoSuchExample:
        smallest = row.case
    return Failure(smallest, message, reproduction(row, smallest))
