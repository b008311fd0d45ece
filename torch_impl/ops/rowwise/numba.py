"""RMSNorm and the product of SwiGLU, one pass over memory each way. No twin: Numba. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spec.axes import BTD, BTF, BTI, D
from torch_impl.kernels.numba import rowwise as kernels
from torch_impl.kernels.numba.calls import apart, arrays, operator
from torch_impl.ops.autodiff import differentiable_gradients, differentiated_again
from torch_impl.ops.devices import require_numba
from torch_impl.ops.rowwise.plain import plain_rms_norm, plain_swiglu


def numba_rms_norm(x_btd: Float[Tensor, BTD], weight_d: Float[Tensor, D], eps: float) -> Float[Tensor, BTD]:
    """weight x / sqrt(mean(x^2) + eps), on a CPU alone; saved for the gradients: x, and one number a row."""
    require_numba("numba", x_btd)
    return _RMSNorm.apply(x_btd, weight_d, eps)


def numba_swiglu(pre_bti: Float[Tensor, BTI]) -> Float[Tensor, BTF]:
    """silu(gate) up of pre = gate | up, on a CPU alone; saved for the gradients: pre."""
    require_numba("numba", pre_bti)
    return _SwiGLU.apply(pre_bti)


def _norm_outputs(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.numel() // x.shape[-1])


@operator("cpu_rms_norm", _norm_outputs)
def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, and 1 / sqrt(mean(x^2) + eps) of each."""
    y, r = _norm_outputs(x, weight, eps)
    (rows,) = arrays(x.reshape(-1, x.shape[-1]))
    kernels.norm_forward(rows, apart(weight), np.array([eps], rows.dtype), *arrays(y.view(rows.shape), r))
    return y, r


@operator("cpu_rms_norm_backward", lambda x, weight, r, grad_y: (x.new_empty(x.shape), weight.new_empty(weight.shape)))
def _norm_backward(x: Tensor, weight: Tensor, r: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    n, d = len(r), x.shape[-1]
    grad_x, partial_sums = x.new_empty(x.shape), x.new_empty(-(-n // kernels.ROWS), d)
    (rows,) = arrays(x.reshape(n, d))
    kernels.norm_backward(rows, apart(weight), *arrays(r, grad_y.reshape(n, d), grad_x.view(n, d), partial_sums))
    return grad_x, partial_sums.sum(dim=0)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, r = _norm(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, grad_y):
        if differentiated_again():
            return differentiable_gradients(plain_rms_norm, (*ctx.saved_tensors[:2], ctx.eps), (grad_y,))
        return *_norm_backward(*ctx.saved_tensors, grad_y), None


def _swiglu_output(pre: Tensor) -> Tensor:
    return pre.new_empty(*pre.shape[:-1], pre.shape[-1] // 2)


@operator("cpu_swiglu", _swiglu_output)
def _swiglu(pre: Tensor) -> Tensor:
    y = _swiglu_output(pre)
    kernels.swiglu_forward(*arrays(pre.reshape(-1, pre.shape[-1]), y.view(-1, y.shape[-1])))
    return y


@operator("cpu_swiglu_backward", lambda pre, grad_y: pre.new_empty(pre.shape))
def _swiglu_backward(pre: Tensor, grad_y: Tensor) -> Tensor:
    """The gradient of gate | up."""
    grad_pre, f = pre.new_empty(pre.shape), grad_y.shape[-1]
    kernels.swiglu_backward(*arrays(pre.reshape(-1, 2 * f), grad_y.reshape(-1, f), grad_pre.view(-1, 2 * f)))
    return grad_pre


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre):
        ctx.save_for_backward(pre)
        return _swiglu(pre)

    @staticmethod
    def backward(ctx, grad_y):
        if differentiated_again():
            return differentiable_gradients(plain_swiglu, ctx.saved_tensors, (grad_y,))
        return _swiglu_backward(*ctx.saved_tensors, grad_y)
