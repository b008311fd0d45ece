"""minGRU. Twin: torch_impl. Truth: spec/mixers/mingru.py."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.layers import accumulate_dtype
from jax_impl.mixers.linear_recurrence import METHODS, LinearRecurrence, capabilities, choose_method
from jax_impl.ops.gated_scan.unfused import decay_gates
from spec.axes import BTN, BTX
from spec.mixers.mingru import MinGRUConfig

__all__ = ["METHODS", "MinGRU", "Mixer", "capabilities", "choose_method"]


class MinGRU(LinearRecurrence):
    """y = W_y h, the rows of `input` = value | update."""

    def __init__(self, config: MinGRUConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__(config, 2, compute_dtype, method)
        self.update_bias = nnx.Param(jnp.zeros(config.d_state, accumulate_dtype(compute_dtype)))

    def gates(self, pre: Float[Array, BTX]) -> tuple[Float[Array, BTN], Float[Array, BTN]]:
        value, p = jnp.split(pre, 2, axis=-1)
        decay, update = decay_gates(p + self.update_bias[...], 0.0)
        return decay, update * value


Mixer = MinGRU
