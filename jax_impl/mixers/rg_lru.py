"""RG-LRU. Twin: torch_impl. Truth: spec/mixers/rg_lru.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_impl.layers import COMPUTE, Linear, accumulate_dtype
from jax_impl.mixers.linear_recurrence import METHODS, capabilities
from jax_impl.ops import scan as scans
from jax_impl.ops.gated_scan.unfused import decay_gates
from jax_impl.ops.scan import scan
from jax_impl.ops.short_convolution import short_convolution
from spec.axes import BN, BTD, BTI, BTN, BTO, N
from spec.mixers.base import NO_MASKS, Masks, Side
from spec.mixers.rg_lru import EXPONENT, RGLRUConfig
from spec.validation import require_known

__all__ = [
    "METHODS",
    "RGLRU",
    "BlockDiagonalLinear",
    "Convolution",
    "Mixer",
    "capabilities",
    "choose_method",
    "recurrence_gates",
]


class Convolution(nnx.Module):
    """The short convolution in front of the recurrence."""

    def __init__(self, config: RGLRUConfig, compute_dtype: str = "float32"):
        dtype = accumulate_dtype(compute_dtype)
        self.weight = nnx.Param(jnp.zeros((config.conv_width, config.d_rnn), dtype))
        self.bias = nnx.Param(jnp.zeros(config.d_rnn, dtype))

    def __call__(
        self, x: Float[Array, BTN], history: Float[Array, BN] | None, masks: Masks
    ) -> tuple[Float[Array, BTN], Float[Array, BN]]:
        return short_convolution(x, self.weight[...], self.bias[...], history, masks)


class BlockDiagonalLinear(nnx.Module):
    """y = W x + b of two block-diagonal matrices one above the other, the products in the compute dtype."""

    def __init__(self, config: RGLRUConfig, compute_dtype: str = "float32"):
        dtype, n = accumulate_dtype(compute_dtype), config.d_rnn
        self.compute_dtype, self.blocks = compute_dtype, config.gate_blocks
        self.weight = nnx.Param(jnp.zeros((2 * n, n // config.gate_blocks), dtype))
        self.bias = nnx.Param(jnp.zeros(2 * n, dtype))

    def __call__(self, x: Float[Array, BTI]) -> Float[Array, BTO]:
        compute, weight = COMPUTE[self.compute_dtype], self.weight[...]
        block = weight.shape[1]
        parts = x.astype(compute).reshape(*x.shape[:2], self.blocks, block)
        blocks = weight.astype(compute).reshape(2, self.blocks, block, block)
        y: Array = jnp.einsum("bthi,ghoi->btgho", parts, blocks, precision="highest").reshape(*x.shape[:2], -1)
        return y.astype(weight.dtype) + self.bias[...]


class RGLRU(nnx.Module):
    """y = W_y (gelu(gate) * h), the rows of `input` = gate | x."""

    def __init__(self, config: RGLRUConfig, compute_dtype: str = "float32", method: str = "auto"):
        require_known("mixer method", method, METHODS)
        self.method = method
        self.input = Linear(config.d_model, 2 * config.d_rnn, compute_dtype)
        self.convolution = Convolution(config, compute_dtype)
        self.gates = BlockDiagonalLinear(config, compute_dtype)
        self.decay_logit = nnx.Param(jnp.zeros(config.d_rnn, accumulate_dtype(compute_dtype)))
        self.output = Linear(config.d_rnn, config.d_model, compute_dtype)

    def __call__(
        self,
        x: Float[Array, BTD],
        state: Float[Array, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Array, BTD], Float[Array, BN]]:
        n = len(self.decay_logit[...])
        h, history = (None, None) if state is None else (state[:, :n], state[:, n:])
        gate, u = jnp.split(self.input(x), 2, axis=-1)
        u, history = self.convolution(u, history, masks)
        decay, scale, input_gate = recurrence_gates(self.gates(u), self.decay_logit[...])
        states, h = scan(decay, scale * input_gate * u, h, self.method, *masks)
        return self.output(jax.nn.gelu(gate, approximate=True) * states), jnp.concatenate([h, history], axis=-1)


Mixer = RGLRU


def recurrence_gates(
    pre: Float[Array, BTO], decay_logit: Float[Array, N]
) -> tuple[Float[Array, BTN], Float[Array, BTN], Float[Array, BTN]]:
    """a, sqrt(1 - a^2) = sqrt(-expm1(2 log a)) and the input gate, log a = c r log sigmoid(Lambda).

    Where 1 - a^2 is zero, its root, which has no derivative there, is a constant: the recurrence gate is shut.
    """
    _, (recurrence, input_gate) = zip(*(decay_gates(p, 0.0) for p in jnp.split(pre, 2, axis=-1)), strict=True)
    log_decay = EXPONENT * recurrence * jax.nn.log_sigmoid(decay_logit)
    square = -jnp.expm1(2.0 * log_decay)
    shut = square == 0.0
    scale = jnp.where(shut, 0.0, jnp.sqrt(jnp.where(shut, 1.0, square)))
    return jnp.exp(log_decay), scale, input_gate


def choose_method(config: RGLRUConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    return scans.choose_method((batch_size, seq_len, config.d_rnn))
