"""The gated scan as one pass over memory each way. No twin: Numba is for CPUs. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spec.axes import BD, BTD
from torch_impl.kernels.numba import gated_scan as kernels
from torch_impl.kernels.numba.calls import apart, arrays, cuts, mask, operator
from torch_impl.ops.autodiff import differentiable_gradients, differentiated_again
from torch_impl.ops.devices import require_numba
from torch_impl.ops.gated_scan.unfused import GatedScanInputs, unfused_gated_scan
from torch_impl.ops.scan.context_parallel import sharing


def numba_gated_scan(inputs: GatedScanInputs) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
    """Gates, scan and output gate in one pass over memory, the gradients in another, in the dtype of the bias.

    Saved for the gradients: the inputs and all states.

    Raises:
        NotImplementedError: the tensors are not on a CPU, or several processes share the sequence.
    """
    pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min = inputs
    require_numba("numba", decay_bias_d)
    if sharing() is not None:
        raise NotImplementedError("mixer method 'numba' has each row whole; between processes use auto or chunked")
    b, _, x = pre_btx.shape
    wide = decay_bias_d.dtype
    state_bd = pre_btx.new_zeros(b, x // 3, dtype=wide) if state_bd is None else state_bd.to(wide)
    leaves = pre_btx.to(wide), decay_bias_d, state_bd
    save = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    gated_btd, last_bd = _GatedScan.apply(*leaves, resets_bt, padding_bt, delta_min, save)
    return gated_btd.to(pre_btx.dtype), last_bd


def _outputs(pre, bias, state, resets, padding, delta_min, save):
    b, t, x = pre.shape
    return pre.new_empty(b, t, x // 3), state.new_empty(state.shape), pre.new_empty(b, t if save else 1, x // 3)


@operator("cpu_gated_scan", _outputs)
def _forward(
    pre: Tensor,
    bias: Tensor,
    state: Tensor,
    resets: Tensor | None,
    padding: Tensor | None,
    delta_min: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gated states, last state, and all states where they are to be saved, else a row of scratch."""
    gated, last, states = _outputs(pre, bias, state, resets, padding, delta_min, save)
    inputs = *arrays(pre), apart(bias), _constants(bias, delta_min), *arrays(state), mask(resets), mask(padding)
    kernels.gated_scan_forward(*inputs, *arrays(gated, states, last), cuts(len(pre)))
    return gated, last, states


def _gradients(pre, bias, state, resets, padding, states, grad_gated, grad_last, delta_min):
    return pre.new_empty(pre.shape), bias.new_empty(bias.shape), state.new_empty(state.shape)


@operator("cpu_gated_scan_backward", _gradients)
def _backward(
    pre: Tensor,
    bias: Tensor,
    state: Tensor,
    resets: Tensor | None,
    padding: Tensor | None,
    states: Tensor,
    grad_gated: Tensor,
    grad_last: Tensor,
    delta_min: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of pre-activations, bias and initial state."""
    grad_pre, _, grad_state = _gradients(pre, bias, state, resets, padding, states, grad_gated, grad_last, delta_min)
    bias_sums = torch.empty_like(grad_state)
    inputs = *arrays(pre), apart(bias), _constants(bias, delta_min), *arrays(state), mask(resets), mask(padding)
    kernels.gated_scan_backward(
        *inputs, *arrays(states, grad_gated, grad_last, grad_pre, bias_sums, grad_state), cuts(len(pre))
    )
    return grad_pre, bias_sums.sum(dim=0), grad_state


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre, bias, state, resets, padding, delta_min, save):
        gated, last, states = _forward(pre, bias, state, resets, padding, delta_min, save)
        ctx.save_for_backward(pre, bias, state, resets, padding, states)
        ctx.delta_min = delta_min
        return gated, last

    @staticmethod
    def backward(ctx, grad_gated, grad_last):
        if differentiated_again():
            inputs = (*ctx.saved_tensors[:5], ctx.delta_min)
            return *differentiable_gradients(_plain, inputs, (grad_gated, grad_last)), None
        return *_backward(*ctx.saved_tensors, grad_gated, grad_last, ctx.delta_min), None, None, None, None


def _plain(*inputs: Any) -> tuple[Tensor, Tensor]:
    return unfused_gated_scan(GatedScanInputs(*inputs), "numba")


def _constants(bias: Tensor, delta_min: float) -> np.ndarray:
    """exp(-delta_min) and what is missing to 1, in the dtype of the bias."""
    return np.array([math.exp(-delta_min), -math.expm1(-delta_min)], str(bias.dtype).removeprefix("torch."))
