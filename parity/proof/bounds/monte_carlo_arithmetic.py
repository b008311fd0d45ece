"""A calibrated estimate, not a theorem: how far rounding takes a computation that no short proof covers.

The float64 reference runs on arrays that round the result of every operation to the precision asked about, u its unit:
not to its numbers, but to these times a random factor for each kind of operation. A sum takes its terms one after
another, each addition off by a random e, |e| <= u. The largest change over a few such runs, times 4, is what a program
of that precision may differ by: it rounds at other places.

As with true rounding, equal numbers are rounded equally, and near ones nearly so: where a token comes again, so do its
errors, and over a thousand tokens of a small vocabulary they add up. Independent errors fall ten times short there.

Source: Parker 1997, "Monte Carlo arithmetic: exploiting randomness in floating-point arithmetic", for rounding at
random; that the errors are a function of the numbers, and the factor 4, are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from parity.proof.bounds.running_error import EXP, LOG, TANH
from spec.data import mix

FACTOR = 4.0
RUNS = 8
# Library functions are off by several units, half of what parity/proof/bounds/running_error.py allows them.
LIBRARY = {np.tanh: TANH / 2, np.exp: EXP / 2, np.log: LOG / 2}
EXACT = {np.maximum, np.minimum, np.negative, np.positive, np.absolute}

Arrays = Mapping[str, np.ndarray]
Compute = Callable[[Callable[[np.ndarray], np.ndarray]], Arrays]


class Perturbed(np.ndarray):
    """A float64 array that rounds at every operation as a coarser format would, at random."""

    seed: ClassVar[int]
    unit: ClassVar[float]
    product_unit: ClassVar[float]

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        arrays: list[Any] = [self._constant(x) if isinstance(x, float) else plain(x) for x in inputs]
        if method == "reduce" and ufunc is np.add:
            axis = options.get("axis", 0)
            arrays[0] = self._partial_sums(arrays[0], range(arrays[0].ndim) if axis is None else axis)
        elif ufunc is np.matmul:
            arrays = [self._partial_sums(self._operand(arrays[0]), -1), self._operand(arrays[1])]
        result = getattr(ufunc, method)(*arrays, **options)
        if ufunc is np.matmul:
            result = self._operand(result)
        if result is None:  # ufunc.at works in place
            return None
        if ufunc not in EXACT and method != "reduce" and ufunc is not np.matmul:
            result = self._rounded(result, ufunc)
        if out is None:
            return self._wrap(result)
        out[0][...] = result
        return out[0]

    def __array_function__(self, function, types, args, kwargs):
        args, kwargs = plain(args), plain(kwargs)
        if function is np.einsum:
            summed = [args[0].index(axis) for axis in "bt"]
            args = (args[0], self._partial_sums(self._operand(args[1]), summed), self._operand(args[2]))
        result = function(*args, **kwargs)
        result = self._operand(result) if function is np.einsum else result
        return [self._wrap(x) for x in result] if isinstance(result, list) else self._wrap(result)

    def _rounded(self, result: np.ndarray, ufunc: np.ufunc) -> np.ndarray:
        """The result of one operation on each entry."""
        if np.asarray(result).dtype.kind != "f":
            return result
        return self._to_grid(result, self.unit * LIBRARY.get(ufunc, 1.0), ufunc.__name__)

    def _to_grid(self, numbers: ArrayLike, unit: float, operation: str) -> np.ndarray:
        """Rounded to the format's numbers times a factor of the operation's own: as in truth, but at other places."""
        factor = 1.0 + float(self._salt(operation)) / 2.0**64
        fraction, exponent = np.frexp(np.asarray(numbers) * factor)
        return np.ldexp(np.rint(fraction / unit) * unit, exponent) / factor

    @classmethod
    def _salt(cls, operation: str) -> np.uint64:
        """A random number for each operation of a run."""
        return np.uint64(int.from_bytes(hashlib.sha256(f"{cls.seed} {operation}".encode()).digest()[:8], "little"))

    def _draw(self, numbers: ArrayLike, operation: str, position: ArrayLike) -> np.ndarray:
        """e / u of each addition, in [-1, 1]: the same for a term with the same 32 leading bits at the same place."""
        salt = self._salt(operation)
        bits = np.asarray(numbers, np.float64).view(np.uint64) >> np.uint64(20)
        with np.errstate(over="ignore"):
            mixed = mix(mix(bits ^ salt) + np.asarray(position, np.uint64))
        return (mixed >> np.uint64(11)) * 2.0**-52 - 1.0

    def _constant(self, value: float) -> float:
        """A constant as the format holds it: off by the same amount wherever it is used."""
        return value if value == float(np.float32(value)) else float(self._to_grid(value, self.unit, "constant"))

    def _operand(self, array: np.ndarray) -> np.ndarray:
        """An operand of a matrix product, or the product, rounded to a format of its own where products have one."""
        if self.product_unit == self.unit:
            return array
        return self._to_grid(array, self.product_unit, "operand")

    def _partial_sums(self, terms: np.ndarray, axis: int | Iterable[int]) -> np.ndarray:
        """The terms of a sum, each times the factors of all additions from its own on."""
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        last = tuple(range(-len(axes), 0))
        moved = np.moveaxis(terms, axes, last)
        flat = np.ascontiguousarray(moved).reshape(*moved.shape[: -len(axes)], -1)
        errors = self.unit * self._draw(flat, "sum", np.arange(flat.shape[-1]))
        later = np.cumsum(errors, axis=-1)[..., ::-1]
        return np.moveaxis(moved * (1.0 + later.reshape(moved.shape)), last, axes)

    def _wrap(self, result: np.ndarray) -> np.ndarray:
        return np.asarray(result).view(type(self)) if np.asarray(result).dtype.kind == "f" else result


class Rounding:
    """Makes an array one that rounds at random.

    Args:
        seed: of the errors.
        unit: u.
        product_unit: that of the operands of matrix products, where it is another.
    """

    base: ClassVar[type[Perturbed]] = Perturbed

    def __init__(self, seed: int, unit: float, product_unit: float | None = None):
        units = {"unit": unit, "product_unit": product_unit or unit}
        self.kind = type("Rounded", (self.base,), {"seed": seed, **units})

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array, np.float64).view(self.kind)


def plain(value: Any) -> Any:
    """The value with ordinary arrays in place of perturbed ones, inside lists and dicts too."""
    if isinstance(value, Perturbed):
        return value.view(np.ndarray)
    if isinstance(value, list | tuple):
        return type(value)(plain(x) for x in value)
    return {name: plain(x) for name, x in value.items()} if isinstance(value, dict) else value


def estimate(
    compute: Compute,
    truth: Arrays,
    unit: float,
    *,
    product_unit: float | None = None,
    runs: int = RUNS,
    rounding: type[Rounding] = Rounding,
) -> dict[str, np.ndarray]:
    """For every entry of `truth`, the largest change of its tensor over some perturbed runs, times 4.

        4 max over runs and entries of |compute(perturbed) - truth|

    Largest over the tensor, since each program's errors fall on other entries; at least 4 u of its largest entry, since
    every result is stored.

    Args:
        compute: runs the reference, given a function that makes an input array a perturbed one.
        truth: what it gives for plain arrays.
        unit: u.
        product_unit: that of the operands of matrix products, where it is another.
        runs: how many; their random numbers are always the same.
        rounding: what makes an array a perturbed one.
    """
    changes = dict.fromkeys(truth, 0.0)
    for run in range(runs):
        found = compute(rounding(run, unit, product_unit))
        for name, exact in truth.items():
            change = np.abs(plain(np.asanyarray(found[name])) - exact).max(initial=0.0)
            changes[name] = max(changes[name], float(change))
    least = {name: unit * np.abs(exact).max(initial=0.0) for name, exact in truth.items()}
    return {name: np.full(np.shape(x), FACTOR * max(changes[name], least[name])) for name, x in truth.items()}
