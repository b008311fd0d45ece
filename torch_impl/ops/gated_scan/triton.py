"""The gated scan as one kernel in each direction. No twin: Triton is for GPUs. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spec.axes import BC, BD, BT, BTD
from torch_impl.kernels.triton.gated_scan_backward import gated_scan_adjoint_summary, gated_scan_backward
from torch_impl.kernels.triton.gated_scan_forward import gated_scan_forward, gated_scan_summary
from torch_impl.kernels.triton.launch import (
    BACKWARD,
    FORWARD,
    ROW,
    Table,
    launch_options,
    processors,
    saved_every,
    split,
)
from torch_impl.ops.autodiff import differentiable_gradients, differentiated_again
from torch_impl.ops.devices import require_triton
from torch_impl.ops.gated_scan.unfused import GatedScanInputs, unfused_gated_scan
from torch_impl.ops.scan.context_parallel import sharing
from torch_impl.ops.scan.triton import scan_states


def triton_gated_scan(inputs: GatedScanInputs) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
    """Gates, scan and output gate in one pass over memory, the gradients in another.

    Saved for the gradients: the inputs, and one float32 state every 64 steps.

    Raises:
        NotImplementedError: the kernels do not run on this device, or several processes share the sequence.
    """
    pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min = inputs
    require_triton("triton", pre_btx.device)
    if sharing() is not None:
        raise NotImplementedError("mixer method 'triton' has each row whole; between processes use auto or chunked")
    b, _, x = pre_btx.shape
    wide = decay_bias_d.dtype
    state_bd = torch.zeros(b, x // 3, dtype=wide, device=pre_btx.device) if state_bd is None else state_bd.to(wide)
    leaves = pre_btx, decay_bias_d, state_bd
    save = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    gated_btd, last_bd, _ = _forward(*leaves, resets_bt, padding_bt, delta_min, save)
    return gated_btd, last_bd


def row_words(mask_bt: Bool[Tensor, BT] | None, beyond: bool) -> Int[Tensor, BC] | None:
    """The bytes of each row of 8 steps as one int64, [b, ceil(t / 8)]; what fills the last row is `beyond`."""
    if mask_bt is None:
        return None
    missing = -mask_bt.shape[1] % ROW
    filled = F.pad(mask_bt, (0, missing), value=beyond) if missing else mask_bt.contiguous()
    # A view of eight bytes as one needs its first address to be a multiple of eight.
    return (filled.clone() if filled.storage_offset() % ROW else filled).view(torch.int64)


@torch.library.custom_op("liquidnet::gated_scan", mutates_args=())
def _forward(
    pre: Tensor,
    bias: Tensor,
    state: Tensor,
    resets: Tensor | None,
    padding: Tensor | None,
    delta_min: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gated states, last state, and the states before each block where they are to be saved."""
    pre, state = pre.contiguous(), state.contiguous()
    gated, last, saved = _outputs(pre, bias, state, resets, padding, delta_min, save)
    launch = _Launch(pre, resets, padding, delta_min, FORWARD)
    if launch.segments > 1:
        products, ends = launch.summaries(gated_scan_summary, (pre, bias, *launch.masks), state.dtype)
        after = scan_states(products, ends, state)
        states = torch.cat([state[:, None], after[:, :-1]], dim=1)
    else:
        states = state
    arguments = (pre, bias, states, *launch.masks, gated, last, saved, launch.length)
    launch.main(
        gated_scan_forward, (*arguments, launch.segments, launch.blocks), SAVE=save, EVERY=saved_every(pre.device)
    )
    return gated, last, saved


@_forward.register_fake
def _outputs(pre, bias, state, resets, padding, delta_min, save):
    b, t, x = pre.shape
    saved = (b, -(-t // saved_every(pre.device)), x // 3) if save else (0,)
    return pre.new_empty(b, t, x // 3), torch.empty_like(state), state.new_empty(saved)


@torch.library.custom_op("liquidnet::gated_scan_backward", mutates_args=())
def _backward(
    pre: Tensor,
    bias: Tensor,
    resets: Tensor | None,
    padding: Tensor | None,
    saved: Tensor,
    grad_gated: Tensor,
    grad_last: Tensor,
    delta_min: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of pre-activations, bias and initial state."""
    pre, grad_gated, grad_last = pre.contiguous(), grad_gated.contiguous(), grad_last.contiguous()
    grad_pre, _, grad_state = _gradients(pre, bias, resets, padding, saved, grad_gated, grad_last, delta_min)
    launch = _Launch(pre, resets, padding, delta_min, BACKWARD)
    assert launch.steps == saved_every(pre.device), "a block of the backward pass begins where a state was saved"
    arriving = grad_last
    if launch.segments > 1:
        products, ends = launch.summaries(
            gated_scan_adjoint_summary, (pre, bias, *launch.masks, grad_gated), saved.dtype
        )
        reaching = scan_states(products, ends, grad_last, reverse=True)
        arriving = torch.cat([reaching[:, 1:], grad_last[:, None]], dim=1)
    bias_sums = saved.new_empty(len(pre) * launch.segments, launch.d)
    arguments = (pre, bias, *launch.masks, saved, grad_gated, arriving, grad_pre, bias_sums, grad_state, launch.length)
    launch.main(gated_scan_backward, (*arguments, launch.segments, launch.blocks))
    return grad_pre, bias_sums.sum(dim=0).to(bias.dtype), grad_state


@_backward.register_fake
def _gradients(pre, bias, resets, padding, saved, grad_gated, grad_last, delta_min):
    return torch.empty_like(pre), torch.empty_like(bias), torch.empty_like(grad_last)


def _keep(ctx, inputs, output):
    *tensors, ctx.delta_min, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _adjoint(ctx, grad_gated, grad_last, _):
    pre, bias, state, resets, padding, saved = ctx.saved_tensors
    if differentiated_again():
        inputs = GatedScanInputs(pre, bias, state, resets, padding, ctx.delta_min)
        return *differentiable_gradients(_plain, inputs, (grad_gated, grad_last)), None
    gradients = _backward(pre, bias, resets, padding, saved, grad_gated, grad_last, ctx.delta_min)
    return *gradients, None, None, None, None


def _plain(*inputs: Any) -> tuple[Tensor, Tensor]:
    return unfused_gated_scan(GatedScanInputs(*inputs), "triton")


_forward.register_autograd(_adjoint, setup_context=_keep)


class _Launch:
    """How the kernels are started on one problem: blocks, segments of time, grid."""

    def __init__(self, pre: Tensor, resets: Tensor | None, padding: Tensor | None, delta_min: float, direction: Table):
        self.batch, self.length, x = pre.shape
        self.d, self.device = x // 3, pre.device
        self.options = launch_options(direction, self.device, self.d, pre.element_size())
        self.channel_blocks, self.steps = -(-self.d // self.options["C"]), self.options["W"] * ROW
        blocks = -(-self.length // self.steps)
        self.segments = split(self.batch * self.channel_blocks, blocks, processors(pre.device))
        self.blocks = -(-blocks // self.segments)
        self.segments = -(-blocks // self.blocks)
        words = row_words(resets, False), row_words(padding, True)
        # A kernel that is told of no mask never reads through its pointer.
        self.masks = tuple(pre if word is None else word for word in words)
        self.options |= {"RESETS": resets is not None, "PADDED": padding is not None}
        self.options["STILLS"] = padding is not None or self.length % self.steps != 0
        self.options |= {"KEEP": math.exp(-delta_min), "REST": -math.expm1(-delta_min), "D": self.d}

    def main(self, kernel, arguments, **options) -> None:
        with torch.cuda.device_of(self.masks[0]):
            kernel[(self.batch * self.segments * self.channel_blocks,)](*arguments, **{**self.options, **options})

    def summaries(self, kernel, tensors, dtype) -> tuple[Tensor, Tensor]:
        """(product, end) of each segment, [b, segments, d]."""
        shape = self.batch, self.segments, self.d
        products, ends = (torch.empty(shape, dtype=dtype, device=self.device) for _ in range(2))
        steps = self.blocks * self.steps
        # The last segment may have fewer steps than the others where the last block has all of its own.
        stills = self.options["STILLS"] or self.length % steps != 0
        self.main(kernel, (*tensors, products, ends, self.length, self.segments, steps), STILLS=stills)
        return products, ends
