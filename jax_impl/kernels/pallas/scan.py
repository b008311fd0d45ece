"""The scan and its adjoint as kernels. No twin: Pallas is JAX's. Truth: spec/reference/scan.py.

The grid is (blocks of the batch, groups of 128 channels, blocks of time). Rows and channels do not mix: what a block
has beyond the last of them is computed on and never written.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jax_impl.kernels.pallas.blocks import LANES, SEGMENTS, Walk, states_before


def scan_forward(decay: Any, drive: Any, state: Any, states: Any, last: Any, *, walk: Walk) -> None:
    """All states of one block of h_t = decay_t h_{t-1} + drive_t, and in `last` the one after it."""

    def at(row, i):
        return pl.ds(row, 1), walk.side_by_side(i), slice(None)

    @pl.when(pl.program_id(2) == 0)
    def _():
        last[...] = state[...]

    def summarise(i, carry):
        found = []
        for row, (factor, end) in enumerate(carry):
            decay_i = decay[at(row, i)][0]
            found.append((factor * decay_i, decay_i * end + drive[at(row, i)][0]))
        return found

    def advance(i, carry):
        after = [decay[at(row, i)][0] * h + drive[at(row, i)][0] for row, h in enumerate(carry)]
        for row, h in enumerate(after):
            states[at(row, i)] = h[None]
        return after

    nothing = jnp.ones((SEGMENTS, LANES), decay.dtype), jnp.zeros((SEGMENTS, LANES), decay.dtype)
    carry = []
    for row, (factor, end) in enumerate(walk.through_segments(summarise, [nothing] * walk.rows)):
        before, last[row] = states_before(factor, end, last[row])
        carry.append(before)
    walk.through_segments(advance, carry)


def scan_backward(
    decay: Any, states: Any, earlier: Any, state: Any, grad_states: Any, grad_last: Any,
    grad_decay: Any, grad_drive: Any, grad_state: Any, *, walk: Walk,
) -> None:  # fmt: skip
    """Gradients g of the drive and g h_{t-1} of the decay: g_t = grad_states_t + decay_{t+1} g_{t+1}, backwards.

    `earlier` ends with the state before the block, unless it is the first one; `grad_state` carries the gradient that
    reaches that state.
    """
    block = walk.blocks - 1 - pl.program_id(2)
    segment = jax.lax.broadcasted_iota(jnp.int32, (SEGMENTS, LANES), 0)

    def at(row, i):
        return pl.ds(row, 1), walk.side_by_side(i), slice(None)

    @pl.when(pl.program_id(2) == 0)
    def _():
        grad_state[...] = grad_last[...]

    def arrived(row, i):
        decay_i, grad_h = decay[at(row, i)][0], grad_states[at(row, i)][0]
        if not walk.ragged:
            return decay_i, grad_h
        # Beyond the end, where a pass backwards begins, there may be anything.
        inside = segment * walk.each + i < walk.length - block * walk.steps
        return jnp.where(inside, decay_i, 1.0), jnp.where(inside, grad_h, 0.0)

    def summarise(i, carry):
        found = []
        for row, (factor, arrives) in enumerate(carry):
            decay_i, grad_h = arrived(row, i)
            factor = factor * decay_i
            found.append((factor, arrives + factor * grad_h))
        return found

    def finish(i, q, previous):
        """The gradients at step i of each segment, given the states before; what reaches these."""
        found = []
        for row, (later, before) in enumerate(zip(q, previous, strict=True)):
            decay_i, grad_h = arrived(row, i)
            g = grad_h + later
            grad_drive[at(row, i)], grad_decay[at(row, i)] = g[None], (g * before)[None]
            found.append(decay_i * g)
        return found

    def retreat(i, q):
        i = walk.each - i
        return finish(i, q, [states[at(row, i - 1)][0] for row in range(walk.rows)])

    nothing = jnp.ones((SEGMENTS, LANES), decay.dtype), jnp.zeros((SEGMENTS, LANES), decay.dtype)
    q, first = [], []
    for row, (factor, arrives) in enumerate(walk.through_segments(summarise, [nothing] * walk.rows)):
        after, grad_state[row] = states_before(factor, arrives, grad_state[row], reverse=True)
        q.append(after)
        # The state before a segment is the last one of the segment before it.
        ends = pltpu.roll(states[at(row, walk.each - 1)][0], 1, 0)
        before = jnp.where(block == 0, state[row], earlier[row, SEGMENTS - 1 :, :])
        first.append(jnp.where(segment == 0, before, ends))
    finish(0, walk.through_segments(retreat, q, first=1), first)
