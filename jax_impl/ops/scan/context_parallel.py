"""The scan of a shared sequence. Twin: torch_impl. Truth: spec/reference/scan.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

Scan = Callable[[Array, Array, Array], Array]
Adjoint = Callable[..., tuple[Array, Array, Array]]

# Not an argument: it would pass through every layer. A program is traced inside.
_group: str | None = None


@contextmanager
def time_sharded(group: str | None) -> Iterator[None]:
    """Inside, forward and backward, each member of the group holds one stretch of time, in the order of ranks.

    The initial state is that of the first device; each is given the last state of the whole sequence. Gradients are
    those of the sum of all devices' objectives.

    Args:
        group: name of the axis of a mesh, inside `jax.shard_map`; None is this device alone.
    """
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before


def sharing() -> str | None:
    """The group that the sequence is shared between just now."""
    return _group


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def context_parallel_scan(
    decay_btd: Array, drive_btd: Array, state_bd: Array, scan: Scan, adjoint: Adjoint, group: str
) -> tuple[Array, Array]:
    """One stretch of h_t = decay_t h_{t-1} + drive_t, with one all_gather of 2 b d numbers in either direction.

    A stretch maps the state before it to the state after it by h -> product h + end, end from a zero state. Everyone
    gathers (product, end) and folds those of the ranks before: that is the state to start the ordinary scan from.
    The adjoint is the same in reversed time: what a stretch hands back for a zero gradient from its right, and the
    products already gathered, give the gradient that reaches each stretch's last state.
    """
    return _forward(decay_btd, drive_btd, state_bd, scan, adjoint, group)[0]


def _forward(decay_btd, drive_btd, state_bd, scan, adjoint, group):
    rank, none_bd = jax.lax.axis_index(group), jnp.zeros_like(state_bd)
    # The initial state travels as part of the end of the first stretch.
    before_bd = jnp.where(rank == 0, state_bd, none_bd)
    end_bd = scan(decay_btd, drive_btd, before_bd)[:, -1]
    product_rbd, end_rbd = _gather(decay_btd.prod(axis=1), end_bd, group)
    before_bd = jnp.where(rank == 0, before_bd, _fold(product_rbd, end_rbd, none_bd, jnp.arange(len(end_rbd)) < rank))
    states_btd = scan(decay_btd, drive_btd, before_bd)
    last_bd = _fold(product_rbd, end_rbd, none_bd, jnp.ones(len(end_rbd), bool))
    return (states_btd, last_bd), (decay_btd, states_btd, before_bd, product_rbd)


def _backward(scan, adjoint, group, saved, gradients):
    decay_btd, states_btd, before_bd, product_rbd = saved
    grad_states_btd, grad_last_bd = gradients
    rank, none_bd = jax.lax.axis_index(group), jnp.zeros_like(before_bd)
    *_, back_bd = adjoint(decay_btd, states_btd, before_bd, grad_states_btd, none_bd)
    back_rbd, last_rbd = _gather(back_bd, grad_last_bd, group)
    after = jnp.arange(len(back_rbd))[::-1] > rank
    reaching_bd = _fold(product_rbd[::-1], back_rbd[::-1], last_rbd.sum(axis=0), after)
    grad_decay, grad_drive, grad_state = adjoint(decay_btd, states_btd, before_bd, grad_states_btd, reaching_bd)
    return grad_decay, grad_drive, jnp.where(rank == 0, grad_state, none_bd)


context_parallel_scan.defvjp(_forward, _backward)


def context_parallel_shift(states_btd: Array, state_bd: Array, group: str) -> Array:
    """What stands before each token of a stretch, [b, t, d]: h_{t-1}, the first from the stretch before it.

    One exchange of b d numbers between neighbours in either direction.

    Args:
        states_btd: h_t of this stretch.
        state_bd: h_{-1} of the whole sequence; that of the first device counts.
        group: name of the axis of a mesh, inside `jax.shard_map`.
    """
    neighbours = [(i, i + 1) for i in range(jax.lax.axis_size(group) - 1)]
    last_bd = jax.lax.ppermute(states_btd[:, -1], group, neighbours)
    before_bd = jnp.where(jax.lax.axis_index(group) == 0, state_bd, last_bd)
    return jnp.concatenate([before_bd[:, None], states_btd[:, :-1]], axis=1)


def _fold(product_rbd: Array, end_rbd: Array, value_bd: Array, counts_r: Array) -> Array:
    """h -> product h + end, one stretch after another, of those that count."""
    for product_bd, end_bd, counts in zip(product_rbd, end_rbd, counts_r, strict=True):
        value_bd = jnp.where(counts, product_bd * value_bd + end_bd, value_bd)
    return value_bd


def _gather(first_bd: Array, second_bd: Array, group: str) -> tuple[Array, Array]:
    """Everyone's pair, stacked in the order of ranks: the one collective of a direction."""
    everyone = jax.lax.all_gather(jnp.stack([first_bd, second_bd]), group)
    return everyone[:, 0], everyone[:, 1]
