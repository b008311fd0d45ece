"""The truth of a problem, outputs and gradients in float64, and how far from it rounding may take a float32 program."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.exceptions import ComplexWarning

from parity.proof.bounds import unit
from parity.proof.bounds.monte_carlo_arithmetic import FACTOR, RUNS, Perturbed, estimate, plain
from parity.proof.functions.operation import InputError, Named, Problem, as_input_error, named
from parity.proof.functions.rounded_complex import RoundingComplex
from parity.proof.problems.complex_step import STEP

UNIT = unit()
ENTRIES = 8
"""Of how many entries of an input a perturbed run computes the gradient."""


def gradient_name(name: str) -> str:
    """What the gradient of an input is called."""
    return f"gradient of {name}"


def expected(problem: Problem) -> tuple[Named, Named]:
    """Outputs and gradients of a problem in float64, and the bounds of a float32 program: 4 max |perturbed - truth|.

    The reference runs 8 times on arrays that round every operation to float32 at random (Parker 1997; how stands in
    parity/proof/bounds/monte_carlo_arithmetic.py), and so do the derivatives that it carries along: for the 4 entries
    of each input that reach the outputs most, and 4 others a run. With an adjoint, that runs instead. Both are
    estimates.

    Raises:
        ValueError: the reference or the adjoint is none whose derivative, or rounding, can be told.
    """
    bounds = _output_bounds(problem)
    truth = dict(problem.outputs)
    if not problem.differentiated:
        return truth, bounds
    if problem.operation.adjoint is not None:
        gradients = _adjoint(problem)
        _require_finite(problem, gradients)
        _require_derivative(problem, gradients_at=lambda inputs: _adjoint(problem, inputs))
        return truth | gradients, bounds | _adjoint_bounds(problem, gradients)
    with _complex_numbers(problem):
        _require_derivative(problem, gradients_at=None)
        gradients, sizes = complex_step_gradients(problem)
    _require_finite(problem, gradients)
    with _complex_numbers(problem):
        return truth | gradients, bounds | _gradient_bounds(problem, gradients, sizes)


def _require_finite(problem: Problem, gradients: Named) -> None:
    for name, array in gradients.items():
        if not np.isfinite(array).all():
            where = f"is not finite on the problem of seed {problem.seed}"
            raise InputError(f"{problem.operation.name}: the {name} {where}; draw others, or give adjoint=")


def complex_step_gradients(problem: Problem) -> tuple[Named, Named]:
    """Gradients of all inputs, entry by entry, and what each entry reaches: the same sums of absolute values.

        gradient of x_i = sum_k <g_k, Im f_k(x + i h e_i)> / h,     h = 1e-30

    Source: Squire & Trapp 1998; Martins, Sturdza & Alonso 2003 for what a program must do to be analytic.
    """
    gradients, sizes = {}, {}
    for name in problem.differentiated:
        array = problem.inputs[name]
        gradient, size = np.zeros(array.shape), np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            terms = [plain(x) for x in _column(problem, RoundingComplex(0, 0.0), name, index)]
            gradient[index] = sum(float(x.sum()) for x in terms) / STEP
            size[index] = sum(float(np.abs(x).sum()) for x in terms) / STEP
        gradients[gradient_name(name)], sizes[name] = gradient, size
    return gradients, sizes


def _column(problem: Problem, lift: RoundingComplex, name: str, index: tuple[int, ...]) -> Iterator[Any]:
    """g_k Im f_k(x + i h e_index) of each output, computed as `lift` rounds."""
    arrays = []
    for other, array in problem.inputs.items():
        direction = np.zeros(array.shape)
        if other == name:
            direction[index] = STEP
        arrays.append(lift(array, direction))
    outputs = named(problem.operation.reference(*arrays))
    for output, gradient in problem.output_gradients.items():
        yield lift(gradient) * np.asanyarray(outputs[output]).imag


def _output_bounds(problem: Problem) -> Named:
    def compute(lift: Any) -> Mapping[str, np.ndarray]:
        found = named(problem.operation.reference(*map(lift, problem.inputs.values())))
        same = (np.array_equal(plain(np.asanyarray(x)), problem.outputs[name]) for name, x in found.items())
        if not any(isinstance(x, Perturbed) for x in found.values()) and all(same):
            raise InputError(
                f"{problem.operation.name}: how the reference rounds cannot be seen: it leaves the arrays that it is "
                "given (np.asarray, float, math, .item()); use functions of NumPy on them alone"
            )
        return found

    remedy = "use functions of NumPy on what it is given, a subclass of ndarray"
    with _no_noise(), as_input_error(f"{problem.operation.name}: the reference, on arrays that round,", remedy):
        return estimate(compute, problem.outputs, UNIT, rounding=RoundingComplex)


def _adjoint(problem: Problem, inputs: Named | None = None) -> Named:
    """The gradients by hand, in float64."""
    wide = inputs or {name: problem.cast(x, "float64") for name, x in problem.inputs.items()}
    gradients = (x.astype(np.float64) for x in problem.output_gradients.values())
    with as_input_error(
        f"{problem.operation.name}: adjoint", "it is called with the inputs, then a gradient for each output"
    ):
        return _by_input(problem, problem.operation.adjoint(*wide.values(), *gradients))


def _by_input(problem: Problem, results: Any) -> dict[str, Any]:
    found = list(results) if isinstance(results, tuple | list) else [results]
    names, who = problem.differentiated, f"{problem.operation.name}: adjoint gives"
    if len(found) != len(names):
        raise InputError(
            f"{who} {len(found)} gradients for the {len(names)} inputs {names}; give one for each, in order"
        )
    for name, array in zip(names, found, strict=True):
        shape = problem.inputs[name].shape
        if np.shape(array) != shape or array.dtype.kind not in "fc":
            given = f"{array.dtype} {list(np.shape(array))}"
            raise InputError(f"{who} {gradient_name(name)} as {given}; give floats of its shape, {list(shape)}")
    return {gradient_name(name): array for name, array in zip(names, found, strict=True)}


def _adjoint_bounds(problem: Problem, gradients: Named) -> Named:
    def compute(lift: Any) -> Mapping[str, np.ndarray]:
        arrays = map(lift, (*problem.inputs.values(), *problem.output_gradients.values()))
        return _by_input(problem, problem.operation.adjoint(*arrays))

    with (
        _no_noise(),
        as_input_error(f"{problem.operation.name}: adjoint, on arrays that round,", "use functions of NumPy"),
    ):
        return estimate(compute, gradients, UNIT, rounding=RoundingComplex)


def _gradient_bounds(problem: Problem, gradients: Named, sizes: Named) -> Named:
    largest = {gradient_name(name): UNIT * np.abs(gradients[gradient_name(name)]).max(initial=0.0) for name in sizes}
    for run in range(RUNS):
        lift, random = RoundingComplex(run, UNIT), np.random.default_rng((problem.seed, run))
        for name, size in sizes.items():
            exact = gradients[gradient_name(name)]
            for index in _entries(size, random):
                terms = _column(problem, lift, name, index)
                total = sum(float(np.asarray(x.sum())) for x in terms) / STEP
                largest[gradient_name(name)] = max(largest[gradient_name(name)], abs(total - exact[index]))
    return {name: np.full(gradients[name].shape, FACTOR * change) for name, change in largest.items()}


def _entries(size: np.ndarray, random: np.random.Generator) -> list[tuple[int, ...]]:
    """Half of them where the most is added up, the others anywhere."""
    order = np.argsort(-size, axis=None)
    chosen = order[:ENTRIES]
    if order.size > ENTRIES:
        rest = random.choice(order[ENTRIES // 2 :], ENTRIES // 2, replace=False)
        chosen = np.concatenate([order[: ENTRIES // 2], rest])
    return [tuple(map(int, np.unravel_index(i, size.shape))) for i in chosen]


def _require_derivative(problem: Problem, gradients_at: Any) -> None:
    """The derivative along each input, near the problem, is that by differences as far as these tell.

    phi(t) = <g, f(x (1 + t r))>, r random: phi'(0) by central differences of two widths, which say how good they are.
    Near the problem and not at it, since a draw may lie in the corner of a function, and in proportion, since it may
    lie at the border of its domain.
    """
    random = np.random.default_rng((problem.seed, 2))
    wide = {name: problem.cast(x, "float64") for name, x in problem.inputs.items()}
    wide |= {
        name: wide[name] * (1.0 + 1e-3 * random.uniform(-1, 1, wide[name].shape)) for name in problem.differentiated
    }

    def phi(moved: Named) -> tuple[Any, float]:
        outputs = named(problem.operation.reference(*moved.values()))
        terms = [g * np.asanyarray(outputs[name]) for name, g in problem.output_gradients.items()]
        return sum(x.sum() for x in terms), sum(float(np.abs(plain(x)).sum()) for x in terms)

    by_hand = gradients_at(wide) if gradients_at else None
    for name in problem.differentiated:
        direction = wide[name] * random.uniform(-1, 1, wide[name].shape)
        values = [phi(wide | {name: wide[name] + t * direction})[0] for t in (2e-4, -2e-4, 1e-4, -1e-4)]
        coarse, fine = (values[0] - values[1]) / 4e-4, (values[2] - values[3]) / 2e-4
        if by_hand is None:
            lift = RoundingComplex(0, 0.0)
            arrays = {other: lift(x, STEP * direction if other == name else 0.0) for other, x in wide.items()}
            found = float(phi(arrays)[0].imag) / STEP
        else:
            found = float((by_hand[gradient_name(name)] * direction).sum())
        by_differences = (4.0 * fine - coarse) / 3.0
        allowed = 2.0 * abs(fine - coarse) + 1e-7 * (phi(wide)[1] + abs(by_differences))
        # Not finite beyond the border of the domain: nothing is known.
        if np.isfinite(allowed) and not abs(found - by_differences) <= allowed:
            what = "adjoint gives" if by_hand else "the reference drops imaginary parts: complex steps give"
            remedy = "mend it" if by_hand else "write it without .real, float() and the like, or give adjoint="
            raise InputError(
                f"{problem.operation.name}: {what} {found:.7g} for the derivative along {name}, differences of the "
                f"reference {by_differences:.7g} (seed {problem.seed}); {remedy}"
            )


@contextmanager
def _complex_numbers(problem: Problem) -> Iterator[None]:
    """What a reference that takes no complex numbers is told."""
    remedy = "make arrays with np.zeros_like(x, shape=...), or give adjoint="
    with (
        _no_noise(),
        as_input_error(f"{problem.operation.name}: the reference, on complex numbers for its gradients,", remedy),
    ):
        warnings.simplefilter("error", ComplexWarning)
        yield


@contextmanager
def _no_noise() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        yield
