"""RMSNorm and the gate of SwiGLU as one pass over memory each way. No twin: Numba. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from spec.axes import BTD, BTF, BTI, D
from torch_impl.kernels.numba import rowwise as kernels
from torch_impl.kernels.numba.calls import apart, arrays, operator


def rms_norm(x_btd: Float[Tensor, BTD], weight_d: Float[Tensor, D], eps: float) -> Float[Tensor, BTD]:
    """weight x / sqrt(mean(x^2) + eps); saved for the gradients: x, and one number a row."""
    return _RMSNorm.apply(x_btd, weight_d, eps)


def gated(pre_bti: Float[Tensor, BTI]) -> Float[Tensor, BTF]:
    """silu(gate) up of pre = gate | up; saved for the gradients: pre."""
    return _Gated.apply(pre_bti)


def _norm_outputs(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.numel() // x.shape[-1])


@operator("cpu_rms_norm", _norm_outputs)
def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, and 1 / sqrt(mean(x^2) + eps) of each."""
    y, r = _norm_outputs(x, weight, eps)
    (rows,) = arrays(x.reshape(-1, x.shape[-1]))
    kernels.norm_forward(rows, apart(weight), np.array([eps], rows.dtype), *arrays(y.view(rows.shape), r))
    return y, r


@operator("cpu_rms_norm_backward", lambda x, weight, r, of_y: (x.new_empty(x.shape), weight.new_empty(weight.shape)))
def _norm_backward(x: Tensor, weight: Tensor, r: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    n, d = len(r), x.shape[-1]
    of_x, shares = x.new_empty(x.shape), x.new_empty(-(-n // kernels.ROWS), d)
    (rows,) = arrays(x.reshape(n, d))
    kernels.norm_backward(rows, apart(weight), *arrays(r, of_y.reshape(n, d), of_x.view(n, d), shares))
    return of_x, shares.sum(dim=0)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, r = _norm(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        return *_norm_backward(*ctx.saved_tensors, of_y), None


def _gated_output(pre: Tensor) -> Tensor:
    return pre.new_empty(*pre.shape[:-1], pre.shape[-1] // 2)


@operator("cpu_swiglu", _gated_output)
def _gate(pre: Tensor) -> Tensor:
    y = _gated_output(pre)
    kernels.swiglu_forward(*arrays(pre.reshape(-1, pre.shape[-1]), y.view(-1, y.shape[-1])))
    return y


@operator("cpu_swiglu_backward", lambda pre, of_y: pre.new_empty(pre.shape))
def _gate_backward(pre: Tensor, of_y: Tensor) -> Tensor:
    """The gradient of gate | up."""
    of_pre, f = pre.new_empty(pre.shape), of_y.shape[-1]
    kernels.swiglu_backward(*arrays(pre.reshape(-1, 2 * f), of_y.reshape(-1, f), of_pre.view(-1, 2 * f)))
    return of_pre


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre):
        ctx.save_for_backward(pre)
        return _gate(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        return _gate_backward(*ctx.saved_tensors, of_y)
