"""How the Pallas kernels cut their arrays, what they share. No twin: Pallas is JAX's. Truth: spec/reference/scan.py.

A kernel goes through time in blocks of `steps` steps. A vector register of a TPU has 8 rows of 128 lanes. Channels are
its lanes. What a step does by itself (gates, derivatives) is done on rows of consecutive steps, as they lie in memory;
the recurrence goes through 8 segments of the block side by side, one a row, loaded with a stride: first what each
segment does to any state, then 3 rolls for the state before each, then all states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool

from spec.axes import BT

LANES, SEGMENTS = 128, 8
ROWS = 16
"""Steps that are loaded at once: a tile of 16 bits."""

INTERPRET: Any = True
"""How kernels are interpreted on a CPU; tests that look for races put a pltpu.InterpretParams here."""


class Limits(NamedTuple):
    """How large the blocks of a kernel may be.

    Args:
        steps: most steps of time, ROWS times a power of two, at most 32 of them: a mask has a bit for each.
        tiles: most groups of 128 channels whose recurrences run side by side.
        rows: most rows of the batch; the mixer has one.
        unroll: steps of the recurrence in one iteration of a loop.
        sixteens: times 16 steps in one iteration of the other loops, forward and backward.
        vmem: bytes that blocks, two of each, and intermediate results may fill.
    """

    steps: int
    tiles: int
    rows: int
    unroll: int
    sixteens: tuple[int, int]
    vmem: int


VMEM = 16 << 20
"""Bytes of VMEM that a kernel may have: the default of a v5e; a v6e would give 32."""
# As many steps at once as neither a v5e nor a v6e spills, so that one hides the latency of another.
GATED_SCAN = Limits(steps=512, tiles=3, rows=1, unroll=4, sixteens=(2, 1), vmem=13 << 20)
SCAN = Limits(steps=520, tiles=1, rows=4, unroll=4, sixteens=(1, 1), vmem=14 << 20)


class Walk(NamedTuple):
    """How a kernel walks through its arrays.

    Args:
        length: t.
        steps, tiles, rows, unroll, sixteens: what was chosen within the Limits.
        interpret: what pallas_call is told.
    """

    length: int
    steps: int
    tiles: int
    rows: int
    unroll: int
    sixteens: int
    interpret: Any

    @property
    def blocks(self) -> int:
        return -(-self.length // self.steps)

    @property
    def ragged(self) -> bool:
        """Whether the last block reaches beyond the end."""
        return self.length % self.steps != 0

    @property
    def each(self) -> int:
        """Steps of a segment."""
        return self.steps // SEGMENTS

    @property
    def stride(self) -> int:
        """Rows from one segment to the next where a kernel keeps intermediate results.

        A load of 8 rows whose distance is a multiple of 16 is 4 loads or 8: all are in one bank.
        """
        return self.each + SEGMENTS if self.each % ROWS == 0 else self.each

    def through_segments(self, body: Callable[[Any, Any], Any], carry: Any, first: int = 0) -> Any:
        """`body` for the offsets first, ... in each segment; interpreted, unrolling would be more to compile."""
        unroll = 1 if self.interpret else max(1, min(self.unroll, self.each - first))
        return jax.lax.fori_loop(first, self.each, body, carry, unroll=unroll)

    def through_rows(self, body: Callable[[Any, Any], Any], carry: Any = None) -> Any:
        """`body` for each 16 steps of a block."""
        unroll = 1 if self.interpret else min(self.sixteens, self.steps // ROWS)
        return jax.lax.fori_loop(0, self.steps // ROWS, body, carry, unroll=unroll)

    def side_by_side(self, offset: Any, place: int = 0) -> Any:
        """The rows of step `offset` of each segment, of the group of channels that is kept at `place`."""
        return pl.ds(place * SEGMENTS * self.stride + offset, SEGMENTS, stride=self.stride)

    def kept(self, k: Any, place: int) -> Any:
        """The rows of steps 16 k ... 16 k + 15, likewise."""
        first = k * ROWS + place * SEGMENTS * self.stride
        if self.stride != self.each:
            first = first + jax.lax.div(k, self.each // ROWS) * SEGMENTS
        return pl.ds(pl.multiple_of(first, SEGMENTS), ROWS)

    def inside(self, block: Any, k: Any) -> Array:
        """Which of the 16 steps from step 16 k of the block on are before the end, [16, 128]."""
        steps = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
        return steps < self.length - block * self.steps - k * ROWS


def sixteen(k: Any) -> Any:
    """The rows of steps 16 k ... 16 k + 15 of a block."""
    return pl.ds(pl.multiple_of(k * ROWS, ROWS), ROWS)


def lanes(tile: Any, first: int = 0) -> Any:
    """The channels of a group of 128, counted from channel `first`, a multiple of 128."""
    return pl.ds(pl.multiple_of(first + tile * LANES, LANES), LANES)


def mask_words(mask_bt: Bool[Array, BT] | None, walk: Walk, beyond: bool) -> Array | None:
    """Words [b, blocks, 16, 128]: bit k of row r is for step 16 k + r of a block; steps after the end are `beyond`.

    The same in all 128 lanes: 8 KB a block, for all channels, and a kernel has nothing to rearrange.
    """
    if mask_bt is None:
        return None
    b, t = mask_bt.shape
    filled = jnp.pad(mask_bt, ((0, 0), (0, walk.blocks * walk.steps - t)), constant_values=beyond)
    bits = filled.reshape(b, walk.blocks, walk.steps // ROWS, ROWS).astype(jnp.uint32)
    words = (bits << jnp.arange(walk.steps // ROWS, dtype=jnp.uint32)[:, None]).sum(axis=2, dtype=jnp.uint32)
    words = jax.lax.bitcast_convert_type(words, jnp.int32)
    return jnp.broadcast_to(words[..., None], (*words.shape, LANES))


def is_marked(words: Any, k: Any) -> Array:
    """Bit k of the words of one block, [16, 128]."""
    return (words[0, 0] >> k) & 1 != 0


def sigmoids(x: Array) -> tuple[Array, Array]:
    """(sigmoid(x), sigmoid(-x)) from one e = exp(-x), each to relative accuracy: 1 / (1 + e), e / (1 + e).

    A tanh would do with one instruction, and lose sigmoid(-x) beyond x = 17. The reciprocal of the largest e is normal.
    """
    largest = 87.0 if x.dtype == jnp.float32 else 700.0
    e = jnp.exp(jnp.minimum(-x, largest))
    sigmoid_p = 1.0 / (1.0 + e)
    return sigmoid_p, e * sigmoid_p


def states_before(factor: Array, end: Array, state: Array, reverse: bool = False) -> tuple[Array, Array]:
    """The state before each of 8 segments, h -> factor h + end each, and the one after the last.

    Args:
        factor, end: [8, 128].
        state: before the first segment, [1, 128].
        reverse: the last segment is the first one, and "before" means after it in time.
    """
    row = jax.lax.broadcasted_iota(jnp.int32, factor.shape, 0)
    row = SEGMENTS - 1 - row if reverse else row
    end = jnp.where(row == 0, factor * state + end, end)
    for distance in (1, 2, 4):
        shift = SEGMENTS - distance if reverse else distance
        earlier_factor, earlier_end = pltpu.roll(factor, shift, 0), pltpu.roll(end, shift, 0)
        end = jnp.where(row >= distance, factor * earlier_end + end, end)
        factor = jnp.where(row >= distance, factor * earlier_factor, factor)
    before = pltpu.roll(end, SEGMENTS - 1 if reverse else 1, 0)
    return jnp.where(row == 0, state, before), end[:1] if reverse else end[SEGMENTS - 1 :]


def where_lowered(run: Callable[..., Any], *arrays: Any, only_tpu: bool) -> Any:
    """`run` of the arrays: with `interpret=False` where the program is lowered for a TPU, interpreted on a CPU.

    Args:
        only_tpu: the caller has seen to it that the program is for a TPU; a second form need not be traced.

    Raises:
        NotImplementedError: when the program is lowered for anything else, or when the kernel itself is differentiated.
    """
    compiled = partial(run, interpret=False)

    @jax.custom_jvp
    def kernel(*arrays):
        if only_tpu:
            return compiled(*arrays)
        return jax.lax.platform_dependent(*arrays, tpu=compiled, cpu=partial(run, interpret=INTERPRET))

    kernel.defjvp(_refuse)
    return kernel(*arrays)


def _refuse(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "the Pallas kernels, which a program of more than 16 tokens holds for a TPU, have no second derivative; "
        "name another method, such as 'sequential'"
    )


class Block(NamedTuple):
    """A block of an array in HBM, as pl.BlockSpec takes it.

    Args:
        shape: of the block.
        place: of the block in the grid of blocks, given the place in the grid of the kernel.
    """

    shape: tuple[int, ...]
    place: Callable[..., tuple[Any, ...]]


def moved_entries(block: Block, shape: tuple[int, ...], grid: tuple[int, ...]) -> int:
    """Entries of an array that its blocks move: one block each time that the place changes, none beyond the end."""
    count, before = 0, None
    for at in product(*map(range, grid)):
        place = block.place(*at)
        if place != before:
            inside = (min(n, whole - i * n) for n, whole, i in zip(block.shape, shape, place, strict=True))
            count, before = count + math.prod(inside), place
    return count


def launch(
    kernel: Callable[..., None],
    name: str,
    grid: tuple[int, ...],
    inputs: list[tuple[Array, Block]],
    outputs: list[tuple[jax.ShapeDtypeStruct, Block]],
    scratch: list[tuple[tuple[int, ...], Any]],
    interpret: Any,
) -> list[Array]:
    """pallas_call, time last in the grid, with a cost estimate that counts what the blocks move."""
    every = [*inputs, *outputs]
    moved = sum(x.dtype.itemsize * moved_entries(block, x.shape, grid) for x, block in every)
    size = math.prod(outputs[0][0].shape)
    cost = pl.CostEstimate(flops=20 * size, transcendentals=3 * size, bytes_accessed=moved)
    order = ("parallel",) * (len(grid) - 1) + ("arbitrary",)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[pl.BlockSpec(*block) for _, block in inputs],
        out_specs=[pl.BlockSpec(*block) for _, block in outputs],
        out_shape=[shape for shape, _ in outputs],
        scratch_shapes=[pltpu.VMEM(*one) for one in scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=VMEM),
        cost_estimate=cost,
        name=name,
        interpret=interpret,
    )(*(x for x, _ in inputs))
