"""The recurrence in two levels of sqrt(t) steps. Twin: torch_impl. Truth: spec/reference/scan.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spec.axes import BD, BTD

_Step = Callable[[Array, tuple[Array, Array]], tuple[Array, Array]]


def chunked_scan(
    decay_btd: Float[Array, BTD], drive_btd: Float[Array, BTD], state_bd: Float[Array, BD]
) -> Float[Array, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, all chunks of time side by side.

    A chunk maps the state before it to the state after it by h -> product h + end, end from a zero state.
    First (product, end) of every chunk, then the state before each chunk, then the states inside.
    """

    def advance(before: Array, gates: tuple[Array, Array]) -> tuple[Array, Array]:
        after = gates[0] * before + gates[1]
        return after, after

    return _two_levels(advance, decay_btd, drive_btd, state_bd, reverse=False)[0]


def chunked_adjoint(
    decay_btd: Float[Array, BTD],
    states_btd: Float[Array, BTD],
    state_bd: Float[Array, BD],
    grad_states_btd: Float[Array, BTD],
    grad_last_bd: Float[Array, BD],
) -> tuple[Float[Array, BTD], Float[Array, BTD], Float[Array, BD]]:
    """Gradients of decay, drive and initial state: the same two levels, backwards in time.

    What is carried is decay_t g_t, of the gradient g_t that reaches h_t: no array is shifted or turned round for it.
    """

    def advance(carried: Array, gates: tuple[Array, Array]) -> tuple[Array, Array]:
        g = gates[1] + carried
        return gates[0] * g, g

    g_btd, grad_state_bd = _two_levels(advance, decay_btd, grad_states_btd, grad_last_bd, reverse=True)
    previous_btd = jnp.concatenate([state_bd[:, None], states_btd[:, :-1]], axis=1)
    return g_btd * previous_btd, g_btd, grad_state_bd


def _two_levels(
    advance: _Step, decay_btd: Array, drive_btd: Array, state_bd: Array, reverse: bool
) -> tuple[Array, Array]:
    """What `advance` gives at every step, [b, t, d], and what it carries in the end, [b, d]."""
    b, t, d = drive_btd.shape
    c = math.isqrt(t - 1) + 1
    chunks = -(-t // c)
    fill = ((0, chunks * c - t), (0, 0), (0, 0))
    # Time-major as in `sequential`: a TPU's program is compiled in 3/4 of the time that chunks beside each other take.
    decay_kcbd = jnp.pad(decay_btd.swapaxes(0, 1), fill, constant_values=1.0).reshape(chunks, c, b, d)
    drive_kcbd = jnp.pad(drive_btd.swapaxes(0, 1), fill).reshape(chunks, c, b, d)

    def gates(i):
        return tuple(jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False) for x in (decay_kcbd, drive_kcbd))

    def summarise(carry, i):
        decay_kbd, drive_kbd = gates(i)
        return (carry[0] * decay_kbd, advance(carry[1], (decay_kbd, drive_kbd))[0]), None

    def across(before_bd, chunk):
        return chunk[0] * before_bd + chunk[1], before_bd

    def inside(carry, i):
        before_kbd, found_kcbd = carry
        before_kbd, found_kbd = advance(before_kbd, gates(i))
        return (before_kbd, jax.lax.dynamic_update_index_in_dim(found_kcbd, found_kbd, i, 1)), None

    steps = jnp.arange(c)
    zeros_kcbd = jnp.zeros_like(drive_kcbd)
    nothing = (jnp.ones_like(decay_kcbd[:, 0]), zeros_kcbd[:, 0])
    summaries, _ = jax.lax.scan(summarise, nothing, steps, reverse=reverse)
    last_bd, before_kbd = jax.lax.scan(across, state_bd, summaries, reverse=reverse)
    (_, found_kcbd), _ = jax.lax.scan(inside, (before_kbd, zeros_kcbd), steps, reverse=reverse)
    return found_kcbd.reshape(chunks * c, b, d)[:t].swapaxes(0, 1), last_bd
