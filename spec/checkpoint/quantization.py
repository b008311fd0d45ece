"""Weight-only quantisation: matrices in fewer bits, everything that is computed with them as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import ml_dtypes
import numpy as np

from spec.validation import require_known

Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
LARGEST = 127
# A scale of 17 significant bits: its product with 7 bits is exact, so that what is rounded stays as it is.
_SCALE_BITS = np.uint32(0xFFFFFF80)


def quantize(weight_oi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and one scale an output channel, w ~ q scale: scale = max|w| / 127 a row, q to nearest, ties to even.

    A row of nothing but zeros, or of numbers below 2^-119, becomes zeros.
    Source: absmax quantisation by rows (vector-wise), Dettmers et al. 2022, "LLM.int8()", of the weights alone; that a
    scale keeps 17 bits is ours.

    Args:
        weight_oi: a matrix, [o, i]; of the embedding a row is a token's.

    Returns:
        q int8 [o, i] in [-127, 127], scale float32 [o]; q scale is exact in float32.

    Raises:
        ValueError: a weight is not finite.
    """
    weight_oi = np.asarray(weight_oi, np.float32)
    largest_o = np.abs(weight_oi).max(axis=1)
    if not np.isfinite(largest_o).all():
        raise ValueError("a weight is not finite, so it has no int8; the weights are broken; take others")
    scale_o = ((largest_o / np.float32(LARGEST)).view(np.uint32) & _SCALE_BITS).view(np.float32)
    scale_o[scale_o < np.finfo(np.float32).tiny] = 0.0
    divisor_o = np.where(scale_o == 0.0, np.float32(np.inf), scale_o)
    return np.rint(weight_oi / divisor_o[:, None]).astype(np.int8), scale_o


def rounded(parameters: Mapping[str, np.ndarray], weights: str) -> dict[str, np.ndarray]:
    """The parameters that a model with quantised weights has, float32; rounding them again changes nothing.

    Every matrix is rounded, the tied embedding too; norms, biases and all else of one axis are not.

    Args:
        parameters: arrays by path.
        weights: one of WEIGHTS.

    Raises:
        ValueError: unknown weights, or a weight that is not finite.
    """
    require_known("weights", weights, WEIGHTS)
    wide = {path: np.asarray(array, np.float32) for path, array in parameters.items()}
    return {path: _rounded(array, weights) if array.ndim == 2 else array for path, array in wide.items()}


def _rounded(weight_oi: np.ndarray, weights: str) -> np.ndarray:
    if weights == "float32":
        return weight_oi
    if weights == "int8":
        int8_oi, scale_o = quantize(weight_oi)
        return int8_oi * scale_o[:, None]
    narrow_oi = weight_oi.astype(ml_dtypes.bfloat16).astype(np.float32)
    if not np.isfinite(narrow_oi).all():
        raise ValueError("a weight is not finite in bfloat16; the weights are broken; take others")
    return narrow_oi
