"""The recurrence as one pass over memory each way. No twin: Numba is for CPUs. Truth: spec/reference/scan.py."""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from spec.axes import BD, BTD
from torch_impl.kernels.numba import scan as kernels
from torch_impl.kernels.numba.calls import arrays, cuts, operator
from torch_impl.ops.devices import require_numba


def numba_scan(
    decay_btd: Float[Tensor, BTD], drive_btd: Float[Tensor, BTD], state_bd: Float[Tensor, BD]
) -> Float[Tensor, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, in one pass over memory, on a CPU alone."""
    require_numba("numba", drive_btd)
    return scan_states(*_of_one_dtype(decay_btd, drive_btd, state_bd))


def numba_adjoint(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`scan_gradients` of tensors of any dtypes."""
    return scan_gradients(*_of_one_dtype(*inputs))


def _of_one_dtype(*tensors: Tensor) -> list[Tensor]:
    wide = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(wide) for tensor in tensors]


@operator("cpu_scan", lambda decay, drive, state: drive.new_empty(drive.shape))
def scan_states(decay: Tensor, drive: Tensor, state: Tensor) -> Tensor:
    """All states."""
    states = drive.new_empty(drive.shape)
    kernels.scan_forward(*arrays(decay, drive, state, states), cuts(len(drive)))
    return states


def _gradients(decay, states, state, grad_states, grad_last):
    return states.new_empty(states.shape), states.new_empty(states.shape), state.new_empty(state.shape)


@operator("cpu_scan_backward", _gradients)
def scan_gradients(
    decay: Tensor, states: Tensor, state: Tensor, grad_states: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of decay, drive and initial state, in one pass over memory."""
    inputs = decay, states, state, grad_states, grad_last
    found = _gradients(*inputs)
    kernels.scan_backward(*arrays(*inputs, *found), cuts(len(states)))
    return found
