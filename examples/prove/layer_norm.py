"""LayerNorm, proved in PyTorch and JAX; and the port that adds eps to the deviation in place of the variance.

    python -m parity examples/prove/layer_norm.py:layer_norm    # passes
    python -m parity examples/prove/layer_norm.py:eps_outside   # fails, and most where the variance is small

Source: Ba et al. 2016, "Layer Normalization"; eps under the root as in torch.nn.LayerNorm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

import parity

EPS = 1e-5


def reference(x, weight, bias):
    """x [b, d]: (x - mean) / sqrt(variance + EPS) * weight + bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + EPS) * weight + bias


def in_torch(x, weight, bias):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)


@jax.jit
def in_jax(x, weight, bias):
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(x.var(axis=-1, keepdims=True) + EPS) * weight + bias


@jax.jit
def eps_outside_in_jax(x, weight, bias):
    """The mistake: no test with inputs of size 1 and a tolerance of 1e-4 sees it."""
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) / (jnp.sqrt(x.var(axis=-1, keepdims=True)) + EPS) * weight + bias


def draw(random):
    """Rows of all sizes, from far below EPS to far above."""
    x = random.standard_normal((3, 8)) * 10.0 ** random.uniform(-4, 1)
    return x, 1.0 + 0.3 * random.standard_normal(8), random.standard_normal(8)


layer_norm = parity.FunctionOperation(name="layer_norm", reference=reference, torch=in_torch, jax=in_jax, draw=draw)
eps_outside = parity.FunctionOperation(
    name="eps_outside", reference=reference, torch=in_torch, jax=eps_outside_in_jax, draw=draw
)
