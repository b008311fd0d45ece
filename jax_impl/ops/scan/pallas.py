"""The recurrence as one kernel in each direction. No twin: Pallas is JAX's. Truth: spec/reference/scan.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_impl.kernels.pallas import blocks as pallas_blocks
from jax_impl.kernels.pallas.blocks import LANES, SEGMENTS, Block, Limits, Walk, launch, where_lowered
from jax_impl.kernels.pallas.scan import scan_backward, scan_forward
from spec.axes import BD, BTD


def pallas_scan(
    decay_btd: Float[Array, BTD], drive_btd: Float[Array, BTD], state_bd: Float[Array, BD], *, only_tpu: bool = False
) -> Float[Array, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, in one pass over memory.

    Compiled where the program is lowered for a TPU; on the CPU the kernel is interpreted, which is right and slow.
    `only_tpu`: this is a branch that nothing but a TPU's program has.

    Raises:
        NotImplementedError: the program is lowered for neither.
    """
    run = partial(_forward, limits=pallas_blocks.SCAN)
    return where_lowered(run, decay_btd, drive_btd, state_bd, only_tpu=only_tpu)


def pallas_adjoint(*arrays: Array, only_tpu: bool = False) -> tuple[Array, Array, Array]:
    """Gradients of decay, drive and initial state, in one pass over memory; the arguments of `sequential_adjoint`."""
    return where_lowered(partial(_backward, limits=pallas_blocks.SCAN), *arrays, only_tpu=only_tpu)


@partial(jax.jit, static_argnames=("limits", "interpret"))
def _forward(decay, drive, state, *, limits, interpret):
    walk, grid = _plan(drive, 3, limits, interpret)
    steps, row = _blocks(walk, backwards=False)
    inputs = [(decay, steps), (drive, steps), (state[:, None], row)]
    outputs = [(_like(drive), steps), (_like(state[:, None]), row)]
    states, _ = launch(partial(scan_forward, walk=walk), "scan_forward", grid, inputs, outputs, [], interpret)
    return states


@partial(jax.jit, static_argnames=("limits", "interpret"))
def _backward(decay, states, state, grad_states, grad_last, *, limits, interpret):
    walk, grid = _plan(states, 5, limits, interpret)
    steps, row = _blocks(walk, backwards=True)
    last = walk.blocks - 1

    def place(b, d, k):
        # The 8 steps before the block; of the first one any others.
        one = jnp.int32(k != last) if isinstance(k, jax.Array) else k != last
        return b, (last - k) * walk.each - one, d

    earlier = Block((walk.rows, SEGMENTS, LANES), place)
    inputs = [(decay, steps), (states, steps), (states, earlier)]
    inputs += [(state[:, None], row), (grad_states, steps), (grad_last[:, None], row)]
    outputs = [(_like(decay), steps), (_like(states), steps), (_like(state[:, None]), row)]
    kernel = partial(scan_backward, walk=walk)
    grad_decay, grad_drive, grad_state = launch(kernel, "scan_backward", grid, inputs, outputs, [], interpret)
    return grad_decay, grad_drive, grad_state[:, 0]


def _plan(x: Array, arrays: int, limits: Limits, interpret: Any) -> tuple[Walk, tuple[int, int, int]]:
    b, t, d = x.shape
    rows = min(b, limits.rows)
    # Two of each block, one of them on its way.
    most = min(limits.steps, limits.vmem // (2 * arrays * rows * LANES * x.dtype.itemsize))
    blocks = -(-t // (most - most % SEGMENTS))
    each = -(-t // (SEGMENTS * blocks))
    # The 8 steps that are loaded at once would lie in one bank.
    each += each % SEGMENTS == 0
    walk = Walk(t, SEGMENTS * each, 1, rows, limits.unroll, 1, interpret)
    return walk, (-(-b // rows), -(-d // LANES), walk.blocks)


def _blocks(walk: Walk, backwards: bool) -> tuple[Block, Block]:
    """Of an array [b, t, d], time from the end if need be, and of one of [b, 1, d]."""
    last = walk.blocks - 1
    steps = Block((walk.rows, walk.steps, LANES), lambda b, d, k: (b, last - k if backwards else k, d))
    return steps, Block((walk.rows, 1, LANES), lambda b, d, k: (b, 0, d))


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
