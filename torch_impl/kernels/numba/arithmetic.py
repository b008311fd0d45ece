"""Exponential and gates, inside a kernel. No twin: Numba. Truth: spec/reference/scan.py.

In float32 without a call and without a branch, so that loops over channels become vector instructions; in float64 by
the C library, one number at a time.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from torch_impl.kernels.numba import kernel

LOG2_E = np.float32(1.44269504)
# ln 2 in two parts, the first of 12 bits: an integer of 12 bits times it is exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Added to a number below 2^22, it leaves the nearest integer in the last bits.
ROUND = np.float32(1.5 * 2**23)
ONE = np.float32(1.0).view(np.int32)
LARGEST, LEAST = np.float32(88.0), np.float32(-87.33)  # exp of both is normal


def number(value, like) -> Any:
    """A constant in the format of `like`."""


def exp(x) -> Any:
    """exp(x), never infinite: x is cut to 88 (709 in float64). In float32 within 1.01 ulp, 0 where it is not normal."""


def tanh(x) -> Any:
    """tanh(x), to relative accuracy near 0 too."""


@overload(number, inline="always")
def _number(value, like):
    if like == types.float32:
        return lambda value, like: np.float32(value)
    return lambda value, like: np.float64(value)


@overload(exp)
def _exp(x):
    """exp(n ln 2 + r) = 2^n exp(r), |r| <= ln 2 / 2, by the polynomial of least error there."""
    if x != types.float32:
        return lambda x: math.exp(709.0 if x > 709.0 else x)

    def single(x):
        # Comparisons that leave NaN as it is.
        top = LARGEST if x > LARGEST else x
        x = LEAST if x < LEAST else top
        shifted = x * LOG2_E + ROUND
        n = shifted - ROUND
        r = (x - n * LN2_HIGH) - n * LN2_LOW
        series = np.float32(1.9875691500e-4)
        series = series * r + np.float32(1.3981999507e-3)
        series = series * r + np.float32(8.3334519073e-3)
        series = series * r + np.float32(4.1665795894e-2)
        series = series * r + np.float32(1.6666665459e-1)
        series = series * r + np.float32(5.0000001201e-1)
        power = np.int32((np.float32(shifted).view(np.int32) << np.int32(23)) + ONE)
        found = (series * r * r + r + np.float32(1.0)) * np.int32(power).view(np.float32)
        return found if x > LEAST else x - x

    return single


@overload(tanh)
def _tanh(x):
    """1 - 2 / (exp(2 x) + 1); for |x| < 1/2 x + x^3 P(x^2), P a minimax fit, since the difference cancels there."""
    if x != types.float32:
        return lambda x: math.tanh(x)

    def single(x):
        far = np.float32(1.0) - np.float32(2.0) / (exp(np.float32(2.0) * x) + np.float32(1.0))
        y = x * x
        series = np.float32(0.0172569640) * y - np.float32(0.0530529357)
        series = (series * y + np.float32(0.1332598776)) * y - np.float32(0.3333314955)
        near = x + x * y * series
        return near if y < np.float32(0.25) else far

    return single


@kernel
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    one = number(1.0, x)
    return one / (one + exp(-x))


@kernel
def two_sigmoids(x):
    """(sigmoid(x), sigmoid(-x)) from one e = exp(-x), each to relative accuracy: 1 / (1 + e), e / (1 + e)."""
    one = number(1.0, x)
    e = exp(-x)
    sigmoid_p = one / (one + e)
    return sigmoid_p, e * sigmoid_p
