"""The recurrence in two levels of sqrt(t) steps. Twin: torch_impl/scan/chunked.py. Truth: spec/reference/liquid.py."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spec.axes import BD, BTD


def chunked(
    decay_btd: Float[Array, BTD], drive_btd: Float[Array, BTD], state_bd: Float[Array, BD]
) -> Float[Array, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, all chunks of time side by side.

    A chunk maps the state before it to the state after it by h -> product h + end, end from a zero state.
    First (product, end) of every chunk, then the state before each chunk, then the states inside.
    """
    b, t, d = drive_btd.shape
    c = math.isqrt(t - 1) + 1
    chunks = -(-t // c)
    fill = ((0, 0), (0, chunks * c - t), (0, 0))
    decay_ckbd = jnp.pad(decay_btd, fill, constant_values=1.0).reshape(b, chunks, c, d).transpose(2, 1, 0, 3)
    drive_ckbd = jnp.pad(drive_btd, fill).reshape(b, chunks, c, d).transpose(2, 1, 0, 3)

    def summarise(carry, gates):
        return (carry[0] * gates[0], gates[0] * carry[1] + gates[1]), None

    def across(before_bd, chunk):
        return chunk[0] * before_bd + chunk[1], before_bd

    def inside(before_kbd, gates):
        after_kbd = gates[0] * before_kbd + gates[1]
        return after_kbd, after_kbd

    nothing = (jnp.ones_like(decay_ckbd[0]), jnp.zeros_like(drive_ckbd[0]))
    of_chunks, _ = jax.lax.scan(summarise, nothing, (decay_ckbd, drive_ckbd))
    _, before_kbd = jax.lax.scan(across, state_bd, of_chunks)
    _, states_ckbd = jax.lax.scan(inside, before_kbd, (decay_ckbd, drive_ckbd))
    return states_ckbd.transpose(2, 1, 0, 3).reshape(b, chunks * c, d)[:, :t]
