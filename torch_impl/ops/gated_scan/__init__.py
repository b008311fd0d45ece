"""The gated scan: gates, scan and output gate. Twin: jax_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from spec.axes import BD, BT, BT3D, BTD, D
from spec.config import require_known
from torch_impl.ops import scan as scans
from torch_impl.ops.scan.context_parallel import sharing


def decay_gates(p: Float[Tensor, BTD], delta_min: float) -> tuple[Float[Tensor, BTD], Float[Tensor, BTD]]:
    """(alpha, 1 - alpha) of the pre-activation p, each to full relative accuracy.

    With c = exp(-delta_min): alpha = c sigmoid(-p), 1 - alpha = (1 - c) + c sigmoid(p).
    """
    return _DecayGates.apply(p, delta_min)


class _DecayGates(torch.autograd.Function):
    """d(1 - alpha)/dp = alpha sigmoid(p): the built-in y (1 - y) subtracts, three digits lost at half-life 4096."""

    @staticmethod
    def forward(ctx, p, delta_min):
        c = math.exp(-delta_min)
        alpha_btd, open_btd = c * torch.sigmoid(-p), torch.sigmoid(p)
        ctx.save_for_backward(alpha_btd, open_btd)
        return alpha_btd, -math.expm1(-delta_min) + c * open_btd

    @staticmethod
    @once_differentiable
    def backward(ctx, alpha_gradient_btd, fresh_gradient_btd):
        alpha_btd, open_btd = ctx.saved_tensors
        return alpha_btd * open_btd * (fresh_gradient_btd - alpha_gradient_btd), None


def gates(
    pre_btx: Float[Tensor, BT3D], decay_bias_d: Float[Tensor, D], delta_min: float
) -> tuple[Float[Tensor, BTD], Float[Tensor, BTD], Float[Tensor, BTD]]:
    """Decay, drive and output gate from the pre-activations: alpha, (1 - alpha) tanh(value), sigmoid(gate)."""
    value_btd, p_btd, gate_btd = pre_btx.chunk(3, dim=-1)
    alpha_btd, fresh_btd = decay_gates(p_btd + decay_bias_d, delta_min)
    return alpha_btd, fresh_btd * torch.tanh(value_btd), torch.sigmoid(gate_btd)


def unfused_mixer(
    pre_btx: Float[Tensor, BT3D],
    decay_bias_d: Float[Tensor, D],
    delta_min: float,
    state_bd: Float[Tensor, BD] | None,
    resets_bt: Bool[Tensor, BT] | None,
    padding_bt: Bool[Tensor, BT] | None,
    scan_method: str,
) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
    """Gates, one of the scans and the output gate as separate operations, in the dtype of the bias."""
    decay_btd, drive_btd, gate_btd = gates(pre_btx.to(decay_bias_d.dtype), decay_bias_d, delta_min)
    states_btd, last_bd = scans.scan(decay_btd, drive_btd, state_bd, scan_method, resets_bt, padding_bt)
    return (gate_btd * states_btd).to(pre_btx.dtype), last_bd


def _automatic(pre_btx: Tensor, decay_bias_d: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    inputs = decay_bias_d, *rest
    method = scans.choose_method(pre_btx.shape, pre_btx.device, decay_bias_d.dtype)
    if sharing() is not None:
        # Where processes share the sequence the scan is a step of its own, after the gates.
        return unfused_mixer(pre_btx, *inputs, scan_method=method)
    return METHODS[method](pre_btx, *inputs)


METHODS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "auto": _automatic,
    **{name: partial(unfused_mixer, scan_method=name) for name in scans.METHODS},
}
try:
    from torch_impl.ops.gated_scan.triton import fused_mixer
except ImportError:
    pass
else:
    METHODS["triton"] = fused_mixer
try:
    from torch_impl.ops.gated_scan.numba import fused_mixer as numba_mixer
except ImportError:
    pass
else:
    METHODS["numba"] = numba_mixer


def mixer(
    pre_btx: Float[Tensor, BT3D],
    decay_bias_d: Float[Tensor, D],
    delta_min: float,
    state_bd: Float[Tensor, BD] | None = None,
    resets_bt: Bool[Tensor, BT] | None = None,
    padding_bt: Bool[Tensor, BT] | None = None,
    method: str = "auto",
) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
    """The gated states o * h of h_t = alpha_t h_{t-1} + (1 - alpha_t) v_t, and the last state.

    v = tanh(value), alpha = exp(-softplus(p + bias) - delta_min), o = sigmoid(gate).

    Args:
        pre_btx: pre-activations value | p | gate, [b, t, 3d], in the compute dtype; so are the gated states.
        decay_bias_d: b_delta, [d].
        delta_min: least decay rate a token.
        state_bd: h_{-1}, [b, d]; None is zero.
        resets_bt: true clears the state before token t is absorbed.
        padding_bt: true at positions that change nothing.
        method: a key of METHODS.

    Raises:
        ValueError: an unknown method.
    """
    require_known("mixer method", method, METHODS)
    return METHODS[method](pre_btx, decay_bias_d, delta_min, state_bd, resets_bt, padding_bt)
