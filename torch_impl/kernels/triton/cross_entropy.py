"""Logits to nats and the gradient of the logits, one program a row. No twin: Triton; XLA fuses its own.

The largest logit and the sum of exponentials come from one pass: Milakov & Gimelshein 2018, "Online normalizer
calculation for softmax", algorithm 3.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from spec.axes import ANY_V, N
from spec.inputs import IGNORED_LABEL

# Sixteen logits a thread: enough loads in flight for the memory, few enough registers for eight rows a multiprocessor.
BLOCK = 4096
# Fusion will default to off in Triton 3.10, at 12 to 17 % more instructions.
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": True}
# A plain number would be a float32 among float64 logits.
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def softmax_gradient_kernel(
    logits_ptr,
    labels_ptr,
    nats_ptr,
    gradient_ptr,
    logits_stride,
    gradient_stride,
    v,
    width,
    IGNORED: tl.constexpr,
    SCALE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 42,731 rows of 50257 logits are more elements than an int32 counts.
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    gradient_ptr += row * gradient_stride
    columns = tl.arange(0, BLOCK)
    label = tl.load(labels_ptr + row)
    counted = label != IGNORED
    # Read before the reductions, which are barriers: gradient may be the same memory as logits, and a warp that is
    # ahead overwrites it. A kernel cannot raise: a label outside the vocabulary makes the nats NaN.
    target = tl.load(logits_ptr + label, mask=(label >= 0) & (label < v), other=float("nan"))

    largest = tl.full((), float("-inf"), logits_ptr.dtype.element_ty)
    total = tl.full((), 0.0, logits_ptr.dtype.element_ty)
    for start in range(0, width, BLOCK):
        # The mask of the memory is a multiple of 16, that of the vocabulary is odd: no vector load has such a mask.
        x = tl.load(logits_ptr + start + columns, mask=start + columns < width, other=0.0)
        x = tl.where(start + columns < v, x, float("-inf"))
        above = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp2((largest - above) * LOG2_E) + tl.sum(tl.exp2((x - above) * LOG2_E), 0)
        largest = above
    tl.store(nats_ptr + row, tl.where(counted, tl.log(total) - (target - largest), 0.0))

    if WITH_GRADIENT:
        weight = tl.where(counted, SCALE / total, 0.0)
        for start in range(0, width, BLOCK):
            here = start + columns
            x = tl.load(logits_ptr + here, mask=here < width, other=0.0)
            x = tl.where(here < v, x, float("-inf"))
            one = tl.where((here == label) & counted, SCALE, 0.0)
            gradient = tl.exp2((x - largest) * LOG2_E) * weight - one
            tl.store(gradient_ptr + here, gradient.to(gradient_ptr.dtype.element_ty), mask=here < width)


def softmax_gradient(
    logits_nw: Float[Tensor, ANY_V],
    labels_n: Int[Tensor, N],
    nats_n: Float[Tensor, N],
    gradient_nw: Float[Tensor, ANY_V] | None,
    v: int,
    scale: float,
) -> None:
    """nats = log sum exp(logits) - logits[label]; gradient = scale (softmax(logits) - one hot), 0 where ignored.

    Args:
        logits_nw: float32 or float64, which is also the dtype of the statistics, [n, w], w >= v; columns from v on
            count for nothing. Elements of a row lie side by side, rows may lie apart; fastest where w and the distance
            of the rows are multiples of 16.
        labels_n: int64, [n], contiguous; -100 is ignored, any other value outside [0, v) gives NaN nats.
        nats_n: written, dtype of the logits, [n], contiguous.
        gradient_nw: written in its own dtype, [n, w], laid out like the logits, 0 from column v on; it may be
            `logits_nw` itself. None where only the nats are wanted.
        v: number of logits, the width of the vocabulary.
        scale: a power of two.
    """
    n, width = logits_nw.shape
    gradient = logits_nw if gradient_nw is None else gradient_nw
    assert gradient.shape == logits_nw.shape and v <= width
    assert width == 1 or logits_nw.stride(1) == gradient.stride(1) == 1
    assert labels_n.is_contiguous() and nats_n.is_contiguous()
    options = OPTIONS | {
        "IGNORED": IGNORED_LABEL,
        "SCALE": scale,
        "WITH_GRADIENT": gradient_nw is not None,
        "BLOCK": min(BLOCK, triton.next_power_of_2(width)),
    }
    strides = logits_nw.stride(0), gradient.stride(0)
    # A launch goes to the current device, not to that of its arguments.
    with torch.cuda.device_of(logits_nw):
        softmax_gradient_kernel[(n,)](logits_nw, labels_n, nats_n, gradient, *strides, v, width, **options)
