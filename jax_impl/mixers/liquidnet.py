"""The mixer of a LiquidNet. Twin: torch_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jax_impl.layers import Linear, accumulate_dtype
from jax_impl.ops.gated_scan import METHODS, gated_scan
from spec.axes import BD, BT, BTD
from spec.config import LiquidNetConfig, require_known


class LiquidMixer(nnx.Module):
    """y = W_y (o * h), the rows of `input` = value | decay | output gate."""

    def __init__(self, config: LiquidNetConfig, compute_dtype: str = "float32", method: str = "auto"):
        require_known("mixer method", method, ("auto", *METHODS))
        self.delta_min = config.delta_min
        self.method = method
        self.input = Linear(config.d_model, 3 * config.d_model, compute_dtype, widen=False)
        self.decay_bias = nnx.Param(jnp.zeros(config.d_model, accumulate_dtype(compute_dtype)))
        self.output = Linear(config.d_model, config.d_model, compute_dtype)

    def __call__(
        self,
        x: Float[Array, BTD],
        state: Float[Array, BD] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
    ) -> tuple[Float[Array, BTD], Float[Array, BD]]:
        gated_btd, state_bd = gated_scan(
            self.input(x), self.decay_bias[...], self.delta_min, state, resets, padding, self.method
        )
        return self.output(gated_btd), state_bd
