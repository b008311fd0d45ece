"""Running error analysis: a value in float64 beside a bound on the error of the same value in a coarser format.

Every operation of the standard model returns its exact result times (1 + e), |e| <= u, or loses at most the smallest
normal number where subnormal numbers are flushed. With a* = a + da computed, |da| <= A, and likewise b:

    a + b     A + B, rounded
    a b       |a| B + |b| A + A B, rounded
    a @ b     |a| @ B + A @ |b| + A @ B + gamma_k (|a| + A) @ (|b| + B), k terms in any order, fused or not
    f(a)      max |f(a +- A) - f(a)| for monotonic f, and the library's own error in units of u

where "rounded" adds u (|result| + the error so far). Source: Wilkinson 1963; Higham 2002, sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Errors of library functions in units of u = half an ulp. An exponential and a logarithm are within 2 ulp in all vector
# libraries in use; 1 / (1 + exp(-x)) adds a sum and a division; test_gates.py sweeps all four.
EXP = LOG = RSQRT = 4.0
SIGMOID = 6.0
TANH = 8.0


@dataclass(frozen=True)
class Running:
    """A float64 array, and a bound on the error of each entry as computed in `dtype`."""

    value: np.ndarray
    error: np.ndarray
    dtype: type[np.floating]

    @property
    def unit(self) -> float:
        return float(np.finfo(self.dtype).eps) / 2

    @property
    def T(self) -> Running:
        return self.move(np.transpose)

    def move(self, function: Callable[[np.ndarray], np.ndarray]) -> Running:
        """A function that moves or picks entries and rounds nothing."""
        return Running(function(self.value), function(self.error), self.dtype)

    def rounded(self, value: np.ndarray, error: np.ndarray, units: float = 1.0) -> Running:
        """`value`, known within `error`, after an operation that is off by `units` u of its result."""
        tiny = float(np.finfo(self.dtype).tiny)
        return Running(value, error + units * self.unit * (np.abs(value) + error) + tiny, self.dtype)

    def constant(self, value: float) -> Running:
        """A constant that was rounded to the format."""
        return self.rounded(np.asarray(value, np.float64), np.zeros(()))

    def __add__(self, other: Running) -> Running:
        return self.rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other: Running) -> Running:
        return self.rounded(self.value - other.value, self.error + other.error)

    def __mul__(self, other: Running) -> Running:
        error = np.abs(self.value) * other.error + np.abs(other.value) * self.error + self.error * other.error
        return self.rounded(self.value * other.value, error)

    def __truediv__(self, other: Running) -> Running:
        """By a positive number: 1 / b is monotonic, then a product; one rounding for both."""
        if not (other.value > other.error).all():
            raise AssertionError("a divisor that may be zero has no bound")
        inverse = other.monotonic(np.reciprocal, 0.0)
        error = np.abs(self.value) * inverse.error + np.abs(inverse.value) * self.error + self.error * inverse.error
        return self.rounded(self.value * inverse.value, error)

    def __matmul__(self, other: Running) -> Running:
        wide, tall = np.abs(self.value), np.abs(other.value)
        spread = wide @ other.error + self.error @ (tall + other.error)
        terms = self.value.shape[-1]
        size = (wide + self.error) @ (tall + other.error) + terms * float(np.finfo(self.dtype).tiny) / self.unit
        return Running(self.value @ other.value, spread + self._gamma(terms) * size, self.dtype)

    def sum(self, axis: int | tuple[int, ...], keepdims: bool = False) -> Running:
        """Of n terms in any order: n - 1 additions."""
        value, error = self.value.sum(axis=axis, keepdims=keepdims), self.error.sum(axis=axis, keepdims=keepdims)
        size = np.abs(self.value).sum(axis=axis, keepdims=keepdims) + error
        additions = self.value.size // value.size - 1
        flushed = additions * float(np.finfo(self.dtype).tiny)
        return Running(value, error + self._gamma(additions) * size + flushed, self.dtype)

    def monotonic(self, function: Callable[[np.ndarray], np.ndarray], units: float) -> Running:
        """`function`, monotonic, evaluated by a library that is off by `units` u."""
        value = function(self.value)
        ends = [np.abs(function(self.value + side * self.error) - value) for side in (-1.0, 1.0)]
        return self.rounded(value, np.maximum(*ends), units)

    def _gamma(self, n: int) -> float:
        return n * self.unit / (1.0 - n * self.unit)


def exact(value: np.ndarray, dtype: type[np.floating]) -> Running:
    """An input: its bits are what they are."""
    value = np.asarray(value, np.float64)
    return Running(value, np.zeros_like(value), dtype)


def join(*parts: Running) -> Running:
    """Side by side along the last axis."""
    values, errors = ([getattr(part, name) for part in parts] for name in ("value", "error"))
    return Running(np.concatenate(values, axis=-1), np.concatenate(errors, axis=-1), parts[0].dtype)


def either(*forms: Running) -> Running:
    """One quantity that programs compute by different formulas: the largest of their bounds."""
    return Running(forms[0].value, np.maximum.reduce([form.error for form in forms]), forms[0].dtype)
