"""Exponential, gates and maxima, inside a kernel. No twin: Numba. Truth: spec/reference/scan.py.

The exponential has no call and no branch, so that a loop over an array becomes vector instructions; so has tanh in
float32, which in float64 is the C library's, one number at a time.
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
# The same of float64, and an integer of 20 bits times the first part of ln 2 is exact.
LN2_HIGH_64, LN2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
ROUND_64 = 1.5 * 2**52
ONE_64 = np.float64(1.0).view(np.int64)
LARGEST_64, LEAST_64 = 709.0, -708.0
#: Maxima that are taken side by side.
LANES = 64


def number(value, like) -> Any:
    """A constant in the format of `like`."""


def exp(x) -> Any:
    """exp(x), never infinite: x is cut to 88 (709 in float64). Within 1.01 ulp, 0 where it is not normal."""


def tanh(x) -> Any:
    """tanh(x), to relative accuracy near 0 too."""


@overload(number, inline="always")
def _number(value, like):
    if like == types.float32:
        return lambda value, like: np.float32(value)
    return lambda value, like: np.float64(value)


@overload(exp)
def _exp(x):
    """exp(n ln 2 + r) = 2^n exp(r), |r| <= ln 2 / 2, by the polynomial of least error there; in float64 by Taylor's of
    degree 13, of which the rest is below 4.2e-18."""

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

    def double(x):
        top = LARGEST_64 if x > LARGEST_64 else x
        x = LEAST_64 if x < LEAST_64 else top
        shifted = x * (1.0 / math.log(2.0)) + ROUND_64
        n = shifted - ROUND_64
        r = (x - n * LN2_HIGH_64) - n * LN2_LOW_64
        series = r * (1.0 / 6227020800.0) + (1.0 / 479001600.0)
        series = series * r + (1.0 / 39916800.0)
        series = series * r + (1.0 / 3628800.0)
        series = series * r + (1.0 / 362880.0)
        series = series * r + (1.0 / 40320.0)
        series = series * r + (1.0 / 5040.0)
        series = series * r + (1.0 / 720.0)
        series = series * r + (1.0 / 120.0)
        series = series * r + (1.0 / 24.0)
        series = series * r + (1.0 / 6.0)
        series = series * r + 0.5
        power = np.int64((np.float64(shifted).view(np.int64) << np.int64(52)) + ONE_64)
        found = (series * r * r + r + 1.0) * np.int64(power).view(np.float64)
        return found if x > LEAST_64 else x - x

    return single if x == types.float32 else double


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


@kernel
def row_maximum(x_i):
    """The largest number of a row, -inf of none; of NaN, nothing is said."""
    # So many maxima side by side: one after another, a comparison would wait for the one before it.
    lanes = x_i.shape[0] // LANES
    found = np.empty(LANES, x_i.dtype)
    found[:] = -np.inf
    for i in range(lanes):
        for j in range(LANES):
            found[j] = x_i[i * LANES + j] if x_i[i * LANES + j] > found[j] else found[j]
    most = found.max()
    for j in range(lanes * LANES, x_i.shape[0]):
        most = x_i[j] if x_i[j] > most else most
    return most
