"""The scan, its masks and its gradient. Twin: torch_impl/scan/__init__.py. Truth: spec/reference/liquid.py."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_impl.scan.associative import associative
from jax_impl.scan.chunked import chunked
from jax_impl.scan.sequential import sequential
from spec.axes import BD, BT, BTD
from spec.config import require_known

METHODS = {"sequential": sequential, "associative": associative, "chunked": chunked}


def choose_method(shape: tuple[int, ...]) -> str:
    """The method that `auto` takes for a scan of shape [b, t, d]."""
    return "sequential" if shape[1] <= 16 else "chunked"


def scan(
    decay_btd: Float[Array, BTD],
    drive_btd: Float[Array, BTD],
    state_bd: Float[Array, BD] | None = None,
    method: str = "auto",
    resets_bt: Bool[Array, BT] | None = None,
    padding_bt: Bool[Array, BT] | None = None,
) -> tuple[Float[Array, BTD], Float[Array, BD]]:
    """All states of h_t = decay_t h_{t-1} + drive_t and the last one, differentiable in all three inputs.

    Args:
        decay_btd: in [0, 1], [b, t, d].
        drive_btd: [b, t, d].
        state_bd: h_{-1}, [b, d]; None is zero.
        method: a key of METHODS, or `auto`.
        resets_bt: true clears the state before token t is absorbed.
        padding_bt: true at positions that change nothing.

    Returns:
        states [b, t, d], the last state [b, d].

    Raises:
        ValueError: shapes that do not agree, or an unknown method.
    """
    shapes = tuple(decay_btd.shape), tuple(drive_btd.shape)
    if decay_btd.ndim != 3 or shapes[0] != shapes[1] or shapes[0][1] == 0:
        raise ValueError(f"decay and drive need one shape [b, t, d] with t >= 1, got {shapes[0]} and {shapes[1]}")
    b, _, d = shapes[0]
    state_bd = jnp.zeros((b, d), drive_btd.dtype) if state_bd is None else state_bd
    if tuple(state_bd.shape) != (b, d):
        raise ValueError(f"the state needs shape {(b, d)}, got {tuple(state_bd.shape)}")
    method = choose_method(decay_btd.shape) if method == "auto" else method
    require_known("scan method", method, METHODS)
    if resets_bt is not None:
        decay_btd = jnp.where(resets_bt[..., None], 0.0, decay_btd)
    if padding_bt is not None:
        decay_btd = jnp.where(padding_bt[..., None], 1.0, decay_btd)
        drive_btd = jnp.where(padding_bt[..., None], 0.0, drive_btd)
    states_btd: Array = _scan(decay_btd, drive_btd, state_bd, method)
    return states_btd, states_btd[:, -1]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(decay_btd, drive_btd, state_bd, method):
    """The adjoint of any method is the same method in reversed time; only decay, states and h_{-1} are kept."""
    return METHODS[method](decay_btd, drive_btd, state_bd)


def _forward(decay_btd, drive_btd, state_bd, method):
    states_btd = METHODS[method](decay_btd, drive_btd, state_bd)
    return states_btd, (decay_btd, states_btd, state_bd)


def _backward(method, saved, states_gradient_btd):
    decay_btd, states_btd, state_bd = saved
    following_btd = jnp.concatenate([jnp.ones_like(state_bd)[:, None], jnp.flip(decay_btd[:, 1:], 1)], axis=1)
    g_btd = jnp.flip(METHODS[method](following_btd, jnp.flip(states_gradient_btd, 1), jnp.zeros_like(state_bd)), 1)
    previous_btd = jnp.concatenate([state_bd[:, None], states_btd[:, :-1]], axis=1)
    return g_btd * previous_btd, g_btd, decay_btd[:, 0] * g_btd[:, 0]


_scan.defvjp(_forward, _backward)
