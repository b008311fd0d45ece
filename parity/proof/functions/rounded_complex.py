"""NumPy arrays that round at random and carry a derivative: they run anybody's reference, whatever it is made of.

A number x is the pair x + i h x', h = 1e-30: analytic functions carry x' along, exactly to rounding, since nothing is
subtracted (Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions"). Value and
derivative are rounded each by itself (Parker 1997, "Monte Carlo arithmetic"), or not at all where the unit is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from parity.proof.bounds.monte_carlo_arithmetic import EXACT, LIBRARY, Perturbed, Rounding, plain

COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
CONSTANT = {np.sign, np.floor, np.ceil, np.rint, np.trunc, np.signbit}
"""Their derivative is 0 where they have one."""
ARITHMETIC = {np.add, np.subtract, np.multiply, np.divide, np.sqrt, np.square, np.reciprocal, np.remainder}
"""What rounds correctly, off by one unit; the other functions come from a library."""
UNKNOWN = 4.0
"""Units that a function is off by where LIBRARY of parity/proof/bounds/monte_carlo_arithmetic.py says nothing."""
STEPS = {np.add: 0, np.subtract: 0, np.multiply: 1}
"""Roundings of a derivative on its way through a function, beside the function's own: x' y + x y' has one more, the
product; x' f'(x) has two, f' and the product, and so has (x' - q y') / y for a quotient q = x / y."""
COMPOSED = {
    np.average, np.cumprod, np.cumsum, np.diff, np.gradient, np.kron, np.mean, np.prod, np.std, np.sum, np.trapezoid,
    np.var,
}  # fmt: skip
"""Functions of NumPy that are written in operations which round: their own code runs."""
COMPILED = {
    np.convolve, np.correlate, np.cross, np.inner, np.interp, np.outer, np.tensordot, np.trace, np.vdot,
}  # fmt: skip
"""Functions that compute and do not show how, as all of numpy.linalg and numpy.fft: see `_compiled`."""


class RoundedComplex(Perturbed):
    """An array whose operations round, in the real part and in the imaginary one, which holds h times a derivative.

    What is no analytic function over the complex numbers is taken as over the real ones: |x + i h x'| is
    |x| + i h sign(x) x', comparisons see the real part, the variance is the mean of squares, not of squared moduli.
    """

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        arrays = [self._argument(x) for x in inputs]
        if ufunc in (np.add, np.multiply) and method in ("reduce", "accumulate"):
            result = self._accumulated(ufunc, method, arrays[0], options)
        elif method == "__call__":
            result = self._called(ufunc, arrays, options)
        else:
            result = getattr(ufunc, method)(*arrays, **options)
        if result is None:  # ufunc.at works in place
            return None
        if isinstance(result, tuple):
            return tuple(self._wrap(x) for x in result)
        if out is None:
            return self._wrap(result)
        out[0][...] = plain(result)
        return out[0]

    def __array_function__(self, function, types, args, kwargs):
        if function in COMPOSED:
            # NumPy's own code; what stands for it in Perturbed runs on plain arrays.
            return np.ndarray.__array_function__(self, function, types, args, kwargs)
        args, kwargs = plain(args), plain(kwargs)
        if function is np.einsum and len(args) == 3 and isinstance(args[0], str) and "." not in args[0]:
            result = self._einsum(*args)
        elif function is np.dot and np.ndim(args[0]) and np.ndim(args[1]) in (1, 2):
            result = self._matmul(*map(np.asarray, args[:2]))
        elif function is np.linalg.norm and len(args) == 1 and kwargs.get("ord") is None:
            x = self._wrap(args[0])
            return np.sqrt((x * x).sum(axis=kwargs.get("axis"), keepdims=kwargs.get("keepdims", False)))
        elif function.__module__ in ("numpy.linalg", "numpy.fft") or function in COMPILED | {np.einsum, np.dot}:
            result = self._compiled(function, args, kwargs)
        else:
            result = function(*args, **kwargs)  # moves numbers, and rounds none
        return type(result)(map(self._wrap, result)) if type(result) in (list, tuple) else self._wrap(result)

    def __getitem__(self, key):
        """One number is an array too: as a number of NumPy it would round no more."""
        return self._wrap(super().__getitem__(key))

    def astype(self, dtype, *args, **kwargs):
        """Float to float is no change: it is this class that says how numbers round."""
        kinds = self.dtype.kind, np.dtype(dtype).kind
        return self.copy() if kinds in (("f", "f"), ("c", "f")) else super().astype(dtype, *args, **kwargs)

    def var(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False, **options):
        """The mean of squares: NumPy's is that of squared moduli, which has no derivative."""
        mean = self.mean(axis=axis, keepdims=True)
        centred, count = self - mean, self.size // max(1, mean.size)
        return (centred * centred).sum(axis=axis, keepdims=keepdims) / float(count - ddof)

    def std(self, *args, **kwargs):
        """The root of `var`."""
        return np.sqrt(self.var(*args, **kwargs))

    def _argument(self, value: Any) -> Any:
        """What an operation is given: what is no array of this kind is a constant, as the format holds it."""
        if isinstance(value, Perturbed):
            return value.view(np.ndarray)
        if isinstance(value, float):
            return self._constant(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc" or not self.unit:
            return value
        with np.errstate(over="ignore"):
            held = value == value.astype(np.float32 if value.dtype.kind == "f" else np.complex64)
        return np.where(held, value, self._to_grid(value, self.unit, "constant"))

    def _called(self, ufunc: np.ufunc, arrays: list[Any], options: dict[str, Any]) -> Any:
        """The result of a function of entries, or of a matrix product."""
        if ufunc in (np.absolute, np.fabs) and np.iscomplexobj(arrays[0]):
            return np.where(arrays[0].real < 0, -arrays[0], arrays[0])
        if ufunc is np.conjugate:
            return arrays[0]
        if ufunc in COMPARISONS | CONSTANT:
            return ufunc(*map(_real, arrays), **options)
        if ufunc is np.matmul:
            return self._matmul(*arrays)
        if any(map(np.iscomplexobj, arrays)):
            if self.unit and ufunc.__name__ in SLOPES:
                return self._by_slope(ufunc, arrays[0])
            if ufunc.__name__ in SUBSTITUTES:
                return SUBSTITUTES[ufunc.__name__](*map(self._wrap, arrays))
        if ufunc in (np.multiply, np.divide) and np.iscomplexobj(arrays[0]) and not np.iscomplexobj(arrays[1]):
            # Part by part: (inf + 0 i) times 2 would have no imaginary part.
            result = _join(ufunc(arrays[0].real, arrays[1]), ufunc(arrays[0].imag, arrays[1]))
        else:
            result = ufunc(*arrays, **options)
        if ufunc in EXACT or isinstance(result, tuple) or np.asarray(result).dtype.kind not in "fc":
            return result
        return self._rounded(result, ufunc)

    def _by_slope(self, ufunc: np.ufunc, array: np.ndarray) -> np.ndarray:
        """A function whose derivative the frameworks compute from its value, by a difference: that rounds too."""
        value = self._wrap(super()._rounded(ufunc(array.real), ufunc))
        return _join(plain(value), plain(SLOPES[ufunc.__name__](value) * self._wrap(array.imag)))

    def _accumulated(self, ufunc: np.ufunc, method: str, terms: np.ndarray, options: dict[str, Any]) -> Any:
        """Sums and products over an axis, one term after another."""
        axis = options.get("axis", 0)
        options.pop("dtype", None)
        if terms.dtype.kind not in "fc":
            return getattr(ufunc, method)(terms, **options)
        if ufunc is np.add and method == "reduce":
            axes = range(terms.ndim) if axis is None else axis
            return ufunc.reduce(self._partial_sums(terms, axes) if terms.ndim else terms, **options)
        result = getattr(ufunc, method)(terms, **options)
        if ufunc is np.multiply:
            count = max(1, terms.size // max(1, np.asarray(result).size) if method == "reduce" else terms.shape[axis])
            return self._to_grid(result, self.unit * count**0.5, "product")
        # The sum so far is rounded at each step, and each error stays in all later sums.
        return result + np.cumsum(self._to_grid(result, self.unit, "sum") - result, axis=axis)

    def _matmul(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        def product(x, y, last):
            axis = -1 if last == 0 else -2 if y.ndim > 1 else -1
            sums = self._partial_sums(x if last == 0 else y, axis)
            return np.matmul(sums, y) if last == 0 else np.matmul(x, sums)

        return self._bilinear(product, left, right)

    def _einsum(self, subscripts: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        names, _, kept = subscripts.replace(" ", "").partition("->")
        if "->" not in subscripts:
            kept = "".join(sorted(a for a in set(names) - {","} if names.count(a) == 1))
        letters = names.split(",")

        def product(x, y, last):
            arrays = [x, y]
            summed = [i for i, letter in enumerate(letters[last]) if letter not in kept]
            if summed:
                arrays[last] = self._partial_sums(arrays[last], summed)
            return np.einsum(f"{names}->{kept}", *arrays)

        return self._bilinear(product, left, right)

    def _bilinear(self, product: Callable, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """A product of two arrays by the product rule, (x y)' = x' y + x y': exact zeros of a derivative add no error.

        `product(x, y, i)` makes the sums of the i-th of them round.
        """
        value = product(_real(left), _real(right), 0)
        if not (np.iscomplexobj(left) or np.iscomplexobj(right)):
            return value
        parts = [product(left.imag, _real(right), 0)] if np.iscomplexobj(left) else []
        parts += [product(_real(left), right.imag, 1)] if np.iscomplexobj(right) else []
        return _join(value, sum(parts))

    def _compiled(self, function: Callable, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function that does not show its operations, taken as backward stable: arguments and result round.

        By sqrt(n) u for a largest axis of n: what errors of n steps come to, where they are independent.
        """
        sizes = (max(np.shape(x), default=1) for x in args if _is_float(x))
        salt, unit = function.__name__, self.unit * max(1, *sizes, 1) ** 0.5
        args = [self._to_grid(x, unit, f"{salt} {i}") if _is_float(x) else x for i, x in enumerate(args)]
        result = function(*args, **kwargs)
        if isinstance(result, tuple):
            return tuple(self._to_grid(x, unit, salt) if _is_float(x) else x for x in result)
        return self._to_grid(result, unit, salt)

    def _rounded(self, result: np.ndarray, ufunc: np.ufunc) -> np.ndarray:
        """The value off by what the function is off by, its derivative by each step of the derivative's formula too."""
        units = LIBRARY.get(ufunc, 1.0 if ufunc in ARITHMETIC else UNKNOWN)
        real = (
            Perturbed._to_grid(self, _real(result), self.unit * units, ufunc.__name__) if self.unit else _real(result)
        )
        if not np.iscomplexobj(result) or not self.unit:
            return result if not self.unit else real
        units += STEPS.get(ufunc, 2)
        return _join(real, Perturbed._to_grid(self, result.imag, self.unit * units, f"{ufunc.__name__}'"))

    def _to_grid(self, numbers: ArrayLike, unit: float, operation: str) -> np.ndarray:
        numbers = np.asarray(numbers)
        if not self.unit:
            return numbers
        real = super()._to_grid(_real(numbers), unit, operation)
        # Another factor for the derivative: its errors are others.
        return _join(real, super()._to_grid(numbers.imag, unit, f"{operation}'")) if np.iscomplexobj(numbers) else real

    def _draw(self, numbers: ArrayLike, operation: str, position: ArrayLike) -> np.ndarray:
        """As of any perturbed array; to add zero is exact."""
        return np.where(np.asarray(numbers) == 0.0, 0.0, super()._draw(numbers, operation, position))

    def _partial_sums(self, terms: np.ndarray, axis: int | Iterable[int]) -> np.ndarray:
        if not self.unit:
            return terms
        real = super()._partial_sums(_real(terms), axis)
        return _join(real, super()._partial_sums(terms.imag, axis)) if np.iscomplexobj(terms) else real

    def _wrap(self, result: Any) -> Any:
        return np.asarray(result).view(type(self)) if isinstance(result, np.ndarray | np.generic) else result


class RoundingComplex(Rounding):
    """Makes arrays ones that round at random; integers and booleans stay what they are, and numbers they come to round.

    `__call__` takes a derivative along: an array of the direction, in which the array then moves by h.
    """

    base = RoundedComplex

    def __call__(self, array: np.ndarray, direction: ArrayLike | None = None) -> Any:
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(np.float64)
            array = array if direction is None else _join(array, np.broadcast_to(direction, array.shape))
        return array.view(self.kind)


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fc"


def _real(value: Any) -> Any:
    return value.real if np.iscomplexobj(value) else value


def _join(real: ArrayLike, imaginary: ArrayLike) -> np.ndarray:
    """real + i imaginary, infinities and zeros as they are."""
    joined = np.empty(np.shape(real), np.complex128)
    joined.real, joined.imag = real, imaginary
    return joined


def _logaddexp(x, y):
    largest = np.maximum(x, y)
    return largest + np.log(np.exp(x - largest) + np.exp(y - largest))


def _arctan2(y, x):
    by_y, by_x = (np.asarray(plain(a)) for a in (y, x))
    y_real, x_real = _real(by_y), _real(by_x)
    slope = (x_real * by_y.imag - y_real * by_x.imag) / (x_real * x_real + y_real * y_real)
    return _join(np.arctan2(y_real, x_real), slope)


def _expit(x):
    small = np.exp(-np.abs(x))
    return np.where(_real(x) < 0, small, 1.0) / (1.0 + small)


SUBSTITUTES: dict[str, Callable] = {
    "arctan2": _arctan2,
    "hypot": lambda x, y: np.sqrt(x * x + y * y),
    "logaddexp": _logaddexp,
    "expit": _expit,  # scipy.special
}
"""What stands for ufuncs that take no complex numbers."""

SLOPES: dict[str, Callable] = {"tanh": lambda y: 1.0 - y * y, "expit": lambda y: y * (1.0 - y)}
"""Derivatives as both frameworks compute them. Where a function saturates, most of its digits are lost."""
