"""A rotary position embedding, proved in PyTorch and JAX; and the port that pairs the channels otherwise.

    python -m parity examples/prove/rotary.py:rotary        # passes
    python -m parity examples/prove/rotary.py:interleaved   # fails: pairs (0, 1), (2, 3), not (0, d/2)

Source: Su et al. 2021, "RoFormer", pairs neighbours; GPT-NeoX, and Llama in transformers, pair the halves. Weights of
one in the code of the other are the classical mistake of a port.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

import parity

BASE = 10_000.0


def reference(x, positions):
    """x [b, t, d], positions [t]: each pair of channels (i, i + d/2) turned by position * BASE^(-2 i / d)."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * BASE ** (-np.arange(half) / half)
    left, right = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def in_torch(x, positions):
    half = x.shape[-1] // 2
    frequencies = BASE ** (-torch.arange(half, dtype=x.dtype) / half)
    angle = positions.to(x.dtype)[:, None] * frequencies
    angle = torch.cat([angle, angle], dim=-1)
    rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * angle.cos() + rotated * angle.sin()


@jax.jit
def in_jax(x, positions):
    half = x.shape[-1] // 2
    frequencies = BASE ** (-jnp.arange(half, dtype=x.dtype) / half)
    angle = positions.astype(x.dtype)[:, None] * frequencies
    left, right = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def interleaved_in_torch(x, positions):
    """The mistake: neighbours are a pair."""
    half = x.shape[-1] // 2
    angle = positions.to(x.dtype)[:, None] * BASE ** (-torch.arange(half, dtype=x.dtype) / half)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()
    return torch.stack(turned, dim=-1).flatten(-2)


def draw(random):
    """Few shapes, since each is compiled. Positions are an input: what angles in float32 cost is then in the bound."""
    length, start = random.choice([1, 5]), random.integers(0, 100)
    return {"x": random.standard_normal((2, length, 8)), "positions": np.arange(start, start + length)}


rotary = parity.FunctionOperation(name="rotary", reference=reference, torch=in_torch, jax=in_jax, draw=draw)
interleaved = parity.FunctionOperation(
    name="interleaved", reference=reference, torch=interleaved_in_torch, jax=in_jax, draw=draw
)
