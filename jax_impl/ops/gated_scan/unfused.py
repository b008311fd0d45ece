"""Gates, a scan and the output gate as separate operations. Twin: torch_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_impl.ops.scan import scan
from spec.axes import BD, BT, BT3D, BTD, D


class GatedScanInputs(NamedTuple):
    """The arguments of `gated_scan`, which explains them, without the method: what every method is given."""

    pre_btx: Float[Array, BT3D]
    decay_bias_d: Float[Array, D]
    state_bd: Float[Array, BD] | None
    resets_bt: Bool[Array, BT] | None
    padding_bt: Bool[Array, BT] | None
    delta_min: float


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def decay_gates(p: Float[Array, BTD], delta_min: float) -> tuple[Float[Array, BTD], Float[Array, BTD]]:
    """(decay, 1 - decay) of the pre-activation p, each to full relative accuracy.

    With c = exp(-delta_min): decay = c sigmoid(-p), 1 - decay = (1 - c) + c sigmoid(p).
    """
    c = math.exp(-delta_min)
    return c * jax.nn.sigmoid(-p), -math.expm1(-delta_min) + c * jax.nn.sigmoid(p)


@decay_gates.defjvp
def _decay_gates_jvp(delta_min, primals, tangents):
    """d(1 - decay)/dp = decay sigmoid(p): the built-in y (1 - y) subtracts, three digits lost at half-life 4096."""
    decay_btd, one_minus_decay_btd = decay_gates(*primals, delta_min)
    change_btd = decay_btd * jax.nn.sigmoid(*primals) * tangents[0]
    return (decay_btd, one_minus_decay_btd), (-change_btd, change_btd)


def gates(
    pre_btx: Float[Array, BT3D], decay_bias_d: Float[Array, D], delta_min: float
) -> tuple[Float[Array, BTD], Float[Array, BTD], Float[Array, BTD]]:
    """Decay, drive and output gate from the pre-activations: decay, (1 - decay) tanh(value), sigmoid(gate)."""
    value_btd, p_btd, gate_btd = jnp.split(pre_btx, 3, axis=-1)
    decay_btd, one_minus_decay_btd = decay_gates(p_btd + decay_bias_d, delta_min)
    return decay_btd, one_minus_decay_btd * jnp.tanh(value_btd), jax.nn.sigmoid(gate_btd)


def unfused_gated_scan(inputs: GatedScanInputs, scan_method: str) -> tuple[Float[Array, BTD], Float[Array, BD]]:
    """Gates, one of the scans and the output gate one after the other, in the dtype of the bias."""
    pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min = inputs
    decay_btd, drive_btd, gate_btd = gates(pre_btx.astype(decay_bias_d.dtype), decay_bias_d, delta_min)
    states_btd, last_bd = scan(decay_btd, drive_btd, state_bd, scan_method, resets_bt, padding_bt)
    return (gate_btd * states_btd).astype(pre_btx.dtype), last_bd
