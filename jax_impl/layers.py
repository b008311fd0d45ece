"""Linear, embedding, norm and MLP. Twin: torch_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_impl.ops.token_ids import as_ids
from jax_impl.training.distributed import cut_axis, product_of_parts
from spec.axes import BT, BTD, BTI, BTO
from spec.config import ModelConfig, require_known

COMPUTE = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def accumulate_dtype(compute_dtype: str) -> jnp.dtype:
    """The dtype of everything but the dense products: float32, or float64 where these are float64.

    Raises:
        ValueError: an unknown compute dtype, or float64 in a process that has not enabled it.
        NotImplementedError: float16, which only torch_impl has.
    """
    if compute_dtype == "float16":
        raise NotImplementedError("compute dtype float16 needs a GradScaler, which only torch has; use bfloat16")
    require_known("compute dtype", compute_dtype, COMPUTE)
    if compute_dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError("compute dtype float64 needs a process started with JAX_ENABLE_X64=1")
    return jnp.dtype(jnp.float64 if compute_dtype == "float64" else jnp.float32)


class Linear(nnx.Module):
    """y = x W^T, W (out, in): operands and product in the compute dtype, the result widened again by default."""

    def __init__(self, in_features: int, out_features: int, compute_dtype: str = "float32", widen: bool = True):
        self.widen = widen
        self.compute_dtype = compute_dtype
        self.shape = out_features, in_features
        self.weight = nnx.Param(jnp.zeros((out_features, in_features), accumulate_dtype(compute_dtype)))

    def __call__(self, x: Float[Array, BTI]) -> Float[Array, BTO]:
        compute = COMPUTE[self.compute_dtype]
        weight, x = self.weight[...], x.astype(compute)
        axis = cut_axis(weight, self.shape)
        if axis is None:
            y: Array = jnp.matmul(x, weight.astype(compute).T, precision="highest")
        else:
            y = product_of_parts(x, weight, axis, compute)
        return y.astype(weight.dtype) if self.widen else y


class Embedding(nnx.Module):
    """x = E[tokens]; E (v, d) also reads the logits out."""

    def __init__(self, vocab_size: int, d_model: int, compute_dtype: str = "float32"):
        self.weight = nnx.Param(jnp.zeros((vocab_size, d_model), accumulate_dtype(compute_dtype)))

    def __call__(self, tokens: Int[Array, BT]) -> Float[Array, BTD]:
        return self.weight[...].at[as_ids(tokens)].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


class RMSNorm(nnx.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), the mean over d, in the accumulation dtype: Zhang & Sennrich 2019."""

    def __init__(self, d_model: int, eps: float, compute_dtype: str = "float32"):
        self.eps = eps
        self.weight = nnx.Param(jnp.zeros(d_model, accumulate_dtype(compute_dtype)))

    def __call__(self, x: Float[Array, BTD]) -> Float[Array, BTD]:
        return self.weight[...] * (x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + self.eps))


class SwiGLU(nnx.Module):
    """u = W_d (silu(W_g r) * (W_a r)), the rows of `input` = gate | up: Shazeer 2020, equation 6."""

    def __init__(self, config: ModelConfig, compute_dtype: str = "float32"):
        self.input = Linear(config.d_model, 2 * config.d_ff, compute_dtype, widen=False)
        self.output = Linear(config.d_ff, config.d_model, compute_dtype)

    def __call__(self, x: Float[Array, BTD]) -> Float[Array, BTD]:
        parts = jnp.split(_kept_narrow(self.input(x)), 2, axis=-1)
        gate_btf, up_btf = (part.astype(x.dtype) for part in parts)
        return self.output(jax.nn.silu(gate_btf) * up_btf)


@jax.custom_vjp
def _kept_narrow(y: Array) -> Array:
    """y: without a barrier a TPU's compiler keeps a product wide, twice the bytes of the largest array of a block."""
    return jax.lax.optimization_barrier(y)


# Not in the backward pass: there a barrier would force both halves of the gradient to be put together first.
_kept_narrow.defvjp(lambda y: (_kept_narrow(y), None), lambda _, grad_y: (grad_y,))
