"""Hold the PyTorch and the JAX function of an operation against its NumPy reference, on drawn problems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.proof.bounds import double_bound, in_units, tiny
from parity.proof.functions import backends
from parity.proof.functions.operation import FunctionOperation, InputError, Named, Problem
from parity.proof.functions.result import Failure, Result, TensorErrors
from parity.proof.functions.truth import expected

DTYPES = ("float32", "float64")


def prove(
    operation: FunctionOperation, *, draws: int = 20, dtypes: Sequence[str] = DTYPES, seed: int = 0, device: str = "cpu"
) -> Result:
    """Hold both backends against the reference, forward and every gradient, in units of a rounding bound.

        units = |found - truth| / bound <= 1       truth: the reference and its gradients in float64
        float32:  bound = 4 max over 8 runs and all entries |reference that rounds at random - truth|     (an estimate)
        float64:  bound = 1e-12 max |truth|, or, where it cancels, twice the float32 bound times 2^-29
        either: at least the smallest normal number, which is lost where subnormal ones are

    Args:
        operation: what is proved.
        draws: how many problems; each costs 8 runs of the reference, a run for each number of its float inputs, and
            at most 64 for the bound of each gradient.
        dtypes: of `float32` and `float64`, what the backends compute in.
        seed: of the first problem; the next has the next.
        device: where PyTorch computes, `cuda` for one; JAX takes its default device.

    Raises:
        ValueError: what is given cannot be proved, right or wrong: no such dtype, a backend that is not installed, a
            device that is not here, a reference that gives float32 or has no derivative, shapes that differ, draws that
            are not reproducible.

    Source: Parker 1997, "Monte Carlo arithmetic"; Squire & Trapp 1998 for gradients by complex steps.
    """
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is {draws!r}; draw at least one problem")
    if not dtypes or set(dtypes) - set(DTYPES):
        raise ValueError(f"dtypes is {tuple(dtypes)}; name some of {', '.join(DTYPES)}")
    absent = [name for name in operation.backends if backends.missing(name)]
    if absent:
        raise ValueError(
            f"{operation.name}: {', '.join(absent)} is not installed; install it, or leave its function out"
        )
    if "torch" in operation.backends:
        backends.require_device(device)
    result = Result(operation.name, draws, seed, operation.adjoint is not None)
    shown: dict[tuple[str, str], tuple[int, float]] = {}
    for number in range(seed, seed + draws):
        problem = operation.problem(number)
        truth, bounds = expected(problem)
        for backend in operation.backends:
            for dtype in dtypes:
                units, failure = _measure(backend, dtype, problem, truth, bounds, device)
                _record(result, backend, dtype, number, units)
                if failure is not None:
                    # The smallest problem is shown, and of these the one that is worst.
                    _keep(result, failure, (problem.size, -failure.units), shown)
    return result


def _measure(
    backend: str, dtype: str, problem: Problem, truth: Named, bounds: Named, device: str
) -> tuple[dict[str, float], Failure | None]:
    """The largest error of each tensor in units of its bound; what failed, where one is above 1."""
    label = f"{problem.operation.name}, {backend}, {dtype}"
    try:
        found = backends.run(backend, problem, dtype, device)
    except InputError:
        raise
    except Exception as error:  # whatever a function or its compiler raises is a finding
        message = f"{label}: {type(error).__name__}: {' '.join(str(error).split())}"
        return {}, Failure(backend, dtype, "", float("inf"), problem.seed, str(problem), message)
    limits = bounds if dtype == "float32" else {name: _float64_bound(truth[name], bounds[name]) for name in truth}
    # Numbers below the smallest normal one have fewer digits, or are zero: XLA on CPU flushes them.
    least = tiny(np.dtype(dtype).type)
    limits = {name: np.maximum(limit, least) for name, limit in limits.items()}
    units = {name: in_units(found[name], exact, limits[name]) for name, exact in truth.items()}
    worst = {name: float(x.max(initial=0.0)) for name, x in units.items()}
    strange = [name for name in truth if found[name].dtype != dtype]
    if strange:
        name = strange[0]
        message = f"{label}: {name} is {found[name].dtype}, expected {dtype}"
        return worst, Failure(backend, dtype, name, float("inf"), problem.seed, str(problem), message)
    name = max(worst, key=lambda one: worst[one])
    if worst[name] <= 1.0:
        return worst, None
    at = tuple(map(int, np.unravel_index(units[name].argmax(), units[name].shape)))
    message = (
        f"{label}: {name}{list(at) if at else ''} is off by {worst[name]:.3g} units of its bound: "
        f"got {found[name][at]:.9g}, expected {truth[name][at]:.9g}, bound {limits[name][at]:.3g}"
    )
    return worst, Failure(backend, dtype, name, worst[name], problem.seed, str(problem), message)


def _float64_bound(truth: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """1e-12 of the largest entry; where all are small by cancellation, what that costs both sides, to first order."""
    return np.maximum(double_bound(truth), 2.0 * 2.0**-29 * bound)


def _record(result: Result, backend: str, dtype: str, seed: int, units: dict[str, float]) -> None:
    rows = {(row.backend, row.dtype, row.tensor): row for row in result.rows}
    for tensor, worst in units.items():
        row = rows.get((backend, dtype, tensor))
        if row is None:
            result.rows.append(TensorErrors(backend, dtype, tensor, worst, seed))
        elif worst > row.worst:
            row.worst, row.seed = worst, seed


def _keep(result: Result, failure: Failure, rank: tuple[int, float], shown: dict) -> None:
    """One failure a backend and dtype: the one of the lowest rank."""
    key = failure.backend, failure.dtype
    before = next((one for one in result.failures if (one.backend, one.dtype) == key), None)
    if before is None:
        result.failures.append(failure)
        shown[key] = rank
        return
    failure.problems = before.problems = before.problems + 1
    if rank < shown[key]:
        result.failures[result.failures.index(before)] = failure
        shown[key] = rank
