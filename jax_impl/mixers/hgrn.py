"""HGRN. Twin: torch_impl. Truth: spec/mixers/hgrn.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.layers import RMSNorm, accumulate_dtype
from jax_impl.mixers.linear_recurrence import METHODS, LinearRecurrence, capabilities, choose_method
from jax_impl.ops.gated_scan.unfused import decay_gates
from spec.axes import BTN, BTX
from spec.mixers.hgrn import HGRNConfig

__all__ = ["HGRN", "METHODS", "Mixer", "capabilities", "choose_method"]


class HGRN(LinearRecurrence):
    """y = W_y (silu(gate) * RMSNorm(h)), the rows of `input` = value | forget | gate."""

    def __init__(self, config: HGRNConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__(config, 3, compute_dtype, method)
        self.lower_bound = nnx.Param(jnp.zeros(config.d_model, accumulate_dtype(compute_dtype)))
        self.norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)

    def gates(self, pre: Float[Array, BTX]) -> tuple[Float[Array, BTN], Float[Array, BTN]]:
        value, p, _ = jnp.split(pre, 3, axis=-1)
        one_minus_gate, gate = decay_gates(p, 0.0)
        one_minus_bound, bound = decay_gates(self.lower_bound[...], 0.0)
        return bound + one_minus_bound * gate, one_minus_bound * one_minus_gate * jax.nn.silu(value)

    def read_out(self, states: Float[Array, BTN], pre: Float[Array, BTX]) -> Float[Array, BTN]:
        *_, gate = jnp.split(pre, 3, axis=-1)
        return jax.nn.silu(gate) * self.norm(states)


Mixer = HGRN
