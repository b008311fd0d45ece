"""The leaky integrator in JAX. Twin: my_mixer/torch_impl.py. Truth: my_mixer/spec.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.layers import accumulate_dtype
from jax_impl.mixers.linear_recurrence import METHODS, LinearRecurrence, capabilities, choose_method
from jax_impl.ops.gated_scan.unfused import decay_gates
from my_mixer.spec import MyMixerConfig
from spec.axes import BTN, BTX

__all__ = ["METHODS", "Mixer", "MyMixer", "capabilities", "choose_method"]


class MyMixer(LinearRecurrence):
    """y = W_y (sigmoid(gate) * h), the rows of `input` = value | rate | gate."""

    def __init__(self, config: MyMixerConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__(config, 3, compute_dtype, method)
        self.max_rate = config.max_rate
        self.rate_bias = nnx.Param(jnp.zeros(config.d_model, accumulate_dtype(compute_dtype)))

    def gates(self, pre: Float[Array, BTX]) -> tuple[Float[Array, BTN], Float[Array, BTN]]:
        value, p, _ = jnp.split(pre, 3, axis=-1)
        _, sigmoid_p = decay_gates(p + self.rate_bias[...], 0.0)
        rate = self.max_rate * sigmoid_p
        return jnp.exp(-rate), -jnp.expm1(-rate) * value

    def read_out(self, states: Float[Array, BTN], pre: Float[Array, BTX]) -> Float[Array, BTN]:
        *_, gate = jnp.split(pre, 3, axis=-1)
        return jax.nn.sigmoid(gate) * states


Mixer = MyMixer
