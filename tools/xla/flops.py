"""FLOPs of the products of a compiled XLA program, and how many bfloat16 products each is made of.

The semantics of `dot` and `convolution` are those of https://openxla.org/xla/operation_semantics.
"""

from __future__ import annotations

import math
import re

import numpy as np

from tools.xla.hlo import Array, Computation, Instruction, single_array

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_PRECISION = re.compile(r"operand_precision=\{(\w+),(\w+)\}")
_PASSES = {"default": 1, "high": 3, "highest": 6}
"""bfloat16 products that a TPU makes of one of float32: its operands are cut into one, two or three of 8 bits each,
and products below the precision asked for are left out."""


def product_flops(computation: Computation, instruction: Instruction) -> tuple[float, float]:
    """(FLOPs, FLOPs times bfloat16 products) of an instruction: zero for anything but `dot` and `convolution`.

    A product of m x k and k x n takes 2 m k n; a convolution 2 for each pair of an output and a tap inside the input.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0, 0.0
    left, right = (single_array(computation.shape_of(name)) for name in instruction.operands)
    result = single_array(instruction.shape)
    if instruction.opcode == "dot":
        flops = _dot_flops(instruction, left, result)
    else:
        flops = _convolution_flops(instruction, left, right, result)
    return flops, flops * _passes(instruction, left, right)


def _dot_flops(instruction: Instruction, left: Array, result: Array) -> float:
    contracted = math.prod(left.dims[i] for i in instruction.numbers("lhs_contracting_dims"))
    return 2.0 * result.elements * contracted


def _convolution_flops(instruction: Instruction, left: Array, right: Array, result: Array) -> float:
    """On a TPU every product is a convolution; those with a batch have a window over it, mostly padding."""
    labels = _LABELS.search(instruction.attributes)
    assert labels, instruction.name
    left_at, right_at, result_at = (dict(zip(text, range(len(text)), strict=True)) for text in labels.groups())
    spatial = sorted(letter for letter in result_at if letter.isdigit())
    window = _window(instruction, len(spatial))
    taps, outputs = 1.0, 1.0
    for i, letter in enumerate(spatial):
        sizes = left.dims[left_at[letter]], right.dims[right_at[letter]], result.dims[result_at[letter]]
        taps *= _taps_inside(*sizes, **{name: values[i] for name, values in window.items()})
        outputs *= sizes[2]
    return 2.0 * result.elements / outputs * right.dims[right_at["i"]] * taps


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


def _window(instruction: Instruction, rank: int) -> dict[str, tuple[int, ...]]:
    """Stride, padding before, and both dilations of each spatial dimension."""
    found = _WINDOW.search(instruction.attributes)
    settings = dict(part.split("=") for part in found[1].split()) if found else {}

    defaults = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    texts = {key: settings.get(key, "x".join([default] * rank)) for key, default in defaults.items()}
    return {key: tuple(int(part.split("_")[0]) for part in text.split("x") if part) for key, text in texts.items()}


def _passes(instruction: Instruction, left: Array, right: Array) -> int:
    """One unless both operands are float32 and more than bfloat16 precision is asked for; three where one is."""
    found = _PRECISION.search(instruction.attributes)
    asked = max((_PASSES[word] for word in found.groups()), default=1) if found else 1
    wide = sum(operand.dtype in ("f32", "f64") for operand in (left, right))
    return (1, min(asked, 3), asked)[wide]
