"""Gates, a scan and the output gate as separate operations. Twin: jax_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from spec.axes import BD, BT, BT3D, BTD, D
from torch_impl.ops.autodiff import in_transform
from torch_impl.ops.scan import scan


class GatedScanInputs(NamedTuple):
    """The arguments of `gated_scan`, which explains them, without the method: what every method is given."""

    pre_btx: Float[Tensor, BT3D]
    decay_bias_d: Float[Tensor, D]
    state_bd: Float[Tensor, BD] | None
    resets_bt: Bool[Tensor, BT] | None
    padding_bt: Bool[Tensor, BT] | None
    delta_min: float


def decay_gates(p: Float[Tensor, BTD], delta_min: float) -> tuple[Float[Tensor, BTD], Float[Tensor, BTD]]:
    """(decay, 1 - decay) of the pre-activation p, each to full relative accuracy.

    With c = exp(-delta_min): decay = c sigmoid(-p), 1 - decay = (1 - c) + c sigmoid(p).
    """
    return _transformed_gates(p, delta_min) if in_transform() else _DecayGates.apply(p, delta_min)


class _DecayGates(torch.autograd.Function):
    """d(1 - decay)/dp = decay sigmoid(p): the built-in y (1 - y) subtracts, three digits lost at half-life 4096."""

    @staticmethod
    def forward(ctx, p, delta_min):
        c = math.exp(-delta_min)
        decay_btd = c * torch.sigmoid(-p)
        ctx.save_for_backward(p, decay_btd)
        return decay_btd, -math.expm1(-delta_min) + c * torch.sigmoid(p)

    @staticmethod
    def backward(ctx, grad_decay_btd, grad_one_minus_decay_btd):
        p, decay_btd = ctx.saved_tensors
        return decay_btd * torch.sigmoid(p) * (grad_one_minus_decay_btd - grad_decay_btd), None


def _transformed_gates(p, delta_min):
    """Of exp(log sigmoid) the built-in derivative subtracts nothing either."""
    c = math.exp(-delta_min)
    return c * torch.exp(F.logsigmoid(-p)), -math.expm1(-delta_min) + c * torch.exp(F.logsigmoid(p))


def gates(
    pre_btx: Float[Tensor, BT3D], decay_bias_d: Float[Tensor, D], delta_min: float
) -> tuple[Float[Tensor, BTD], Float[Tensor, BTD], Float[Tensor, BTD]]:
    """Decay, drive and output gate from the pre-activations: decay, (1 - decay) tanh(value), sigmoid(gate)."""
    value_btd, p_btd, gate_btd = pre_btx.chunk(3, dim=-1)
    decay_btd, one_minus_decay_btd = decay_gates(p_btd + decay_bias_d, delta_min)
    return decay_btd, one_minus_decay_btd * torch.tanh(value_btd), torch.sigmoid(gate_btd)


def unfused_gated_scan(inputs: GatedScanInputs, scan_method: str) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
    """Gates, one of the scans and the output gate one after the other, in the dtype of the bias."""
    pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min = inputs
    decay_btd, drive_btd, gate_btd = gates(pre_btx.to(decay_bias_d.dtype), decay_bias_d, delta_min)
    states_btd, last_bd = scan(decay_btd, drive_btd, state_bd, scan_method, resets_bt, padding_bt)
    return (gate_btd * states_btd).to(pre_btx.dtype), last_bd
