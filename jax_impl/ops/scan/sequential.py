"""The recurrence, one token after another. Twin: torch_impl. Truth: spec/reference/scan.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spec.axes import BD, BTD


def sequential_scan(
    decay_btd: Float[Array, BTD], drive_btd: Float[Array, BTD], state_bd: Float[Array, BD]
) -> Float[Array, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, in O(t) steps of O(b d) work."""

    def advance(carry, i):
        before_bd, states_btd = carry
        after_bd = _at(decay_btd, i) * before_bd + _at(drive_btd, i)
        return (after_bd, _put(states_btd, after_bd, i)), None

    wide = jnp.result_type(decay_btd, drive_btd, state_bd)
    start = state_bd.astype(wide), jnp.zeros_like(drive_btd, wide)
    (_, states_btd), _ = jax.lax.scan(advance, start, jnp.arange(drive_btd.shape[1]))
    return states_btd


def sequential_adjoint(
    decay_btd: Float[Array, BTD],
    states_btd: Float[Array, BTD],
    state_bd: Float[Array, BD],
    grad_states_btd: Float[Array, BTD],
    grad_last_bd: Float[Array, BD],
) -> tuple[Float[Array, BTD], Float[Array, BTD], Float[Array, BD]]:
    """Gradients of decay, drive and initial state: backwards in time, no array is shifted or turned round for it.

    What is carried is decay_t g_t, of the gradient g_t that reaches h_t.
    """

    def advance(carry, i):
        carried_bd, found_btd = carry
        g_bd = _at(grad_states_btd, i) + carried_bd
        return (_at(decay_btd, i) * g_bd, _put(found_btd, g_bd, i)), None

    wide = jnp.result_type(decay_btd, grad_states_btd, grad_last_bd)
    start = grad_last_bd.astype(wide), jnp.zeros_like(states_btd, wide)
    (grad_state_bd, g_btd), _ = jax.lax.scan(advance, start, jnp.arange(states_btd.shape[1]), reverse=True)
    previous_btd = jnp.concatenate([state_bd[:, None], states_btd[:, :-1]], axis=1)
    return g_btd * previous_btd, g_btd, grad_state_bd


# By index, where `lax.scan` would take and give arrays whose first axis is time: a transposed copy of each.
def _at(x_btd: Array, i: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x_btd, i, axis=1, keepdims=False)


def _put(x_btd: Array, value_bd: Array, i: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x_btd, value_bd, i, axis=1)
