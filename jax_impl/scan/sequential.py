"""The recurrence, one token after another. Twin: torch_impl/scan/sequential.py. Truth: spec/reference/liquid.py."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from spec.axes import BD, BTD


def sequential(
    decay_btd: Float[Array, BTD], drive_btd: Float[Array, BTD], state_bd: Float[Array, BD]
) -> Float[Array, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, in O(t) steps of O(b d) work."""

    def advance(before_bd, gates):
        decay_bd, drive_bd = gates
        after_bd = decay_bd * before_bd + drive_bd
        return after_bd, after_bd

    _, states_tbd = jax.lax.scan(advance, state_bd, (decay_btd.swapaxes(0, 1), drive_btd.swapaxes(0, 1)))
    return states_tbd.swapaxes(0, 1)
