"""The recurrence as one kernel in each direction. No twin: Triton is for GPUs. Truth: spec/reference/scan.py."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spec.axes import BD, BTD
from torch_impl.kernels.triton.launch import SCAN, launch_options
from torch_impl.kernels.triton.scan import scan_backward, scan_forward
from torch_impl.ops.devices import require_triton


def triton_scan(
    decay_btd: Float[Tensor, BTD], drive_btd: Float[Tensor, BTD], state_bd: Float[Tensor, BD]
) -> Float[Tensor, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, in one pass over memory, where `ops/devices.py` says."""
    require_triton("triton", drive_btd.device)
    return scan_states(decay_btd, drive_btd, state_bd)


def triton_adjoint(
    decay_btd: Float[Tensor, BTD],
    states_btd: Float[Tensor, BTD],
    state_bd: Float[Tensor, BD],
    grad_states_btd: Float[Tensor, BTD],
    grad_last_bd: Float[Tensor, BD],
) -> tuple[Float[Tensor, BTD], Float[Tensor, BTD], Float[Tensor, BD]]:
    """Gradients of decay, drive and initial state, in one pass over memory."""
    grad_decay, grad_drive = scan_gradients(decay_btd, states_btd, state_bd, grad_states_btd, grad_last_bd)
    return grad_decay, grad_drive, decay_btd[:, 0] * grad_drive[:, 0]


@torch.library.custom_op("liquidnet::scan", mutates_args=())
def scan_states(decay: Tensor, drive: Tensor, state: Tensor, reverse: bool = False) -> Tensor:
    """All states; with `reverse` those of h_t = decay_t h_{t+1} + drive_t."""
    b, t, d = drive.shape
    states = torch.empty_like(drive, memory_format=torch.contiguous_format)
    tensors = decay.contiguous(), drive.contiguous(), state.contiguous(), states
    _launch(scan_forward, b, t, d, tensors, REVERSE=reverse)
    return states


@scan_states.register_fake
def _(decay, drive, state, reverse=False):
    return torch.empty_like(drive, memory_format=torch.contiguous_format)


@torch.library.custom_op("liquidnet::scan_backward", mutates_args=())
def scan_gradients(
    decay: Tensor, states: Tensor, state: Tensor, grad_states: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of decay and drive."""
    b, t, d = states.shape
    tensors = tuple(x.contiguous() for x in (decay, states, state, grad_states, grad_last))
    grad_decay, grad_drive = torch.empty_like(tensors[1]), torch.empty_like(tensors[1])
    _launch(scan_backward, b, t, d, (*tensors, grad_decay, grad_drive))
    return grad_decay, grad_drive


@scan_gradients.register_fake
def _(decay, states, state, grad_states, grad_last):
    return torch.empty(states.shape, dtype=states.dtype, device=states.device), states.new_empty(states.shape)


def _launch(kernel, b: int, t: int, d: int, tensors: tuple[Tensor, ...], **options: Any) -> None:
    options |= launch_options(SCAN, tensors[0].device, d, tensors[0].element_size())
    with torch.cuda.device_of(tensors[0]):
        kernel[(b * -(-d // options["C"]),)](*tensors, t, D=d, **options)
