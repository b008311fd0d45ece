"""FLOPs of the products of a compiled XLA program, and how many bfloat16 products each is made of."""

from __future__ import annotations

import math
import re

import numpy as np

from tools.xla.hlo import Array, Computation, Instruction, array

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_PRECISION = re.compile(r"operand_precision=\{(\w+),(\w+)\}")
_PASSES = {"default": 1, "high": 3, "highest": 6}
"""bfloat16 products that a TPU makes of one of float32: its operands are cut into one, two or three of 8 bits each,
and products below the precision asked for are left out."""


def product_flops(computation: Computation, one: Instruction) -> tuple[float, float]:
    """(FLOPs, FLOPs times bfloat16 products) of an instruction: zero for anything but `dot` and `convolution`.

    A product of m x k and k x n takes 2 m k n; a convolution 2 for each pair of an output and a tap inside the input.
    """
    if one.opcode not in ("dot", "convolution"):
        return 0.0, 0.0
    left, right = (array(computation.shape_of(name)) for name in one.operands)
    result = array(one.shape)
    flops = _of_dot(one, left, result) if one.opcode == "dot" else _of_convolution(one, left, right, result)
    return flops, flops * _passes(one, left, right)


def _of_dot(one: Instruction, left: Array, result: Array) -> float:
    contracted = math.prod(left.dims[i] for i in one.numbers("lhs_contracting_dims"))
    return 2.0 * result.elements * contracted


def _of_convolution(one: Instruction, left: Array, right: Array, result: Array) -> float:
    """On a TPU every product is a convolution; those with a batch have a window over it, mostly padding."""
    labels = _LABELS.search(one.attributes)
    assert labels, one.name
    of_left, of_right, of_result = (dict(zip(text, range(len(text)), strict=True)) for text in labels.groups())
    spatial = sorted(letter for letter in of_result if letter.isdigit())
    window = _window(one, len(spatial))
    taps, outputs = 1.0, 1.0
    for i, letter in enumerate(spatial):
        sizes = left.dims[of_left[letter]], right.dims[of_right[letter]], result.dims[of_result[letter]]
        taps *= _taps_inside(*sizes, **{name: values[i] for name, values in window.items()})
        outputs *= sizes[2]
    return 2.0 * result.elements / outputs * right.dims[of_right["i"]] * taps


def _taps_inside(
    inputs: int, taps: int, outputs: int, stride: int, pad: int, lhs_dilate: int, rhs_dilate: int
) -> float:
    """Pairs of an output and a tap of the kernel that meet an element of the input, not of its padding or holes."""
    if (stride, pad, lhs_dilate, rhs_dilate) == (1, 0, 1, 1) and inputs == outputs + taps - 1:
        return float(taps) * outputs
    total = 0
    for tap in range(taps):
        position = np.arange(outputs) * stride + tap * rhs_dilate - pad
        total += int(((position >= 0) & (position <= (inputs - 1) * lhs_dilate) & (position % lhs_dilate == 0)).sum())
    return float(total)


def _window(one: Instruction, rank: int) -> dict[str, tuple[int, ...]]:
    """Stride, padding before, and both dilations of each spatial dimension."""
    found = _WINDOW.search(one.attributes)
    told = dict(part.split("=") for part in found[1].split()) if found else {}

    def of(key: str, default: str) -> tuple[int, ...]:
        return tuple(int(text.split("_")[0]) for text in told.get(key, "x".join([default] * rank)).split("x") if text)

    return {
        "stride": of("stride", "1"),
        "pad": of("pad", "0_0"),
        "lhs_dilate": of("lhs_dilate", "1"),
        "rhs_dilate": of("rhs_dilate", "1"),
    }


def _passes(one: Instruction, left: Array, right: Array) -> int:
    """One unless both operands are float32 and more than bfloat16 precision is asked for; three where one is."""
    found = _PRECISION.search(one.attributes)
    asked = max((_PASSES[word] for word in found.groups()), default=1) if found else 1
    wide = sum(operand.dtype in ("f32", "f64") for operand in (left, right))
    return (1, min(asked, 3), asked)[wide]
