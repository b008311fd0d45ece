"""The gated scan: gates, scan and output gate. Twin: torch_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_impl.ops import scan as scans
from jax_impl.ops.gated_scan.pallas import fused_mixer
from jax_impl.ops.lowering import by_platform
from jax_impl.ops.scan.context_parallel import sharing
from spec.axes import BD, BT, BT3D, BTD, D
from spec.config import require_known


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def decay_gates(p: Float[Array, BTD], delta_min: float) -> tuple[Float[Array, BTD], Float[Array, BTD]]:
    """(alpha, 1 - alpha) of the pre-activation p, each to full relative accuracy.

    With c = exp(-delta_min): alpha = c sigmoid(-p), 1 - alpha = (1 - c) + c sigmoid(p).
    """
    c = math.exp(-delta_min)
    return c * jax.nn.sigmoid(-p), -math.expm1(-delta_min) + c * jax.nn.sigmoid(p)


@decay_gates.defjvp
def _decay_gates_jvp(delta_min, primals, tangents):
    """d(1 - alpha)/dp = alpha sigmoid(p): the built-in y (1 - y) subtracts, three digits lost at half-life 4096."""
    alpha_btd, fresh_btd = decay_gates(*primals, delta_min)
    change_btd = alpha_btd * jax.nn.sigmoid(*primals) * tangents[0]
    return (alpha_btd, fresh_btd), (-change_btd, change_btd)


def gates(
    pre_btx: Float[Array, BT3D], decay_bias_d: Float[Array, D], delta_min: float
) -> tuple[Float[Array, BTD], Float[Array, BTD], Float[Array, BTD]]:
    """Decay, drive and output gate from the pre-activations: alpha, (1 - alpha) tanh(value), sigmoid(gate)."""
    value_btd, p_btd, gate_btd = jnp.split(pre_btx, 3, axis=-1)
    alpha_btd, fresh_btd = decay_gates(p_btd + decay_bias_d, delta_min)
    return alpha_btd, fresh_btd * jnp.tanh(value_btd), jax.nn.sigmoid(gate_btd)


def unfused_mixer(
    pre_btx: Float[Array, BT3D],
    decay_bias_d: Float[Array, D],
    delta_min: float,
    state_bd: Float[Array, BD] | None,
    resets_bt: Bool[Array, BT] | None,
    padding_bt: Bool[Array, BT] | None,
    scan_method: str,
) -> tuple[Float[Array, BTD], Float[Array, BD]]:
    """Gates, one of the scans and the output gate as separate operations, in the dtype of the bias."""
    decay_btd, drive_btd, gate_btd = gates(pre_btx.astype(decay_bias_d.dtype), decay_bias_d, delta_min)
    states_btd, last_bd = scans.scan(decay_btd, drive_btd, state_bd, scan_method, resets_bt, padding_bt)
    return (gate_btd * states_btd).astype(pre_btx.dtype), last_bd


def _automatic(
    pre_btx: Float[Array, BT3D],
    decay_bias_d: Float[Array, D],
    delta_min: float,
    *rest: Float[Array, BD] | Bool[Array, BT] | None,
) -> tuple[Float[Array, BTD], Float[Array, BD]]:
    """One kernel where the program is lowered for a TPU; parts elsewhere, for a few tokens, or where time is shared."""

    def fused(pre_btx, decay_bias_d, *rest):
        return fused_mixer(pre_btx, decay_bias_d, delta_min, *rest, only_tpu=True)

    def unfused(pre_btx, decay_bias_d, *rest):
        return unfused_mixer(pre_btx, decay_bias_d, delta_min, *rest, scan_method="auto")

    if pre_btx.shape[1] <= scans.FEW or sharing() is not None:
        return unfused(pre_btx, decay_bias_d, *rest)
    return by_platform(pre_btx, decay_bias_d, *rest, tpu=fused, default=unfused)


METHODS = {
    "auto": _automatic,
    **{name: partial(unfused_mixer, scan_method=name) for name in scans.METHODS},
    "pallas": fused_mixer,
}


def mixer(
    pre_btx: Float[Array, BT3D],
    decay_bias_d: Float[Array, D],
    delta_min: float,
    state_bd: Float[Array, BD] | None = None,
    resets_bt: Bool[Array, BT] | None = None,
    padding_bt: Bool[Array, BT] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, BTD], Float[Array, BD]]:
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
