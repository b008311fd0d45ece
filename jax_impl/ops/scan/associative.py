"""The recurrence as a parallel prefix of an associative combine. No twin: XLA's. Truth: spec/reference/scan.py."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from spec.axes import BD, BTD


def combine(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """(a2, b2) after (a1, b1) is (a2 a1, a2 b1 + b2). Source: Blelloch 1990, section 1.4."""
    return second[0] * first[0], second[0] * first[1] + second[1]


def associative_scan(
    decay_btd: Float[Array, BTD], drive_btd: Float[Array, BTD], state_bd: Float[Array, BD]
) -> Float[Array, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, in O(log t) steps. Source: Martin & Cundy 2018."""
    drive_btd = drive_btd.at[:, 0].add(decay_btd[:, 0] * state_bd)
    return jax.lax.associative_scan(combine, (decay_btd, drive_btd), axis=1)[1]
