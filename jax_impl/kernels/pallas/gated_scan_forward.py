"""The gated scan, forward: pre-activations to gated states. No twin: Pallas. Truth: spec/reference/blocks.py.

The grid is (b, blocks of time); a block has all channels of value | p | gate, so that nothing is split in HBM.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jax_impl.kernels.pallas.blocks import LANES, SEGMENTS, Walk, is_marked, lanes, sigmoids, sixteen, states_before


def gated_scan_forward(
    *refs: Any, walk: Walk, d: int, keep: float, rest: float, resets: bool, stills: bool, save: bool
) -> None:
    """Gated states of one block, and the state after it; with `save` also the state before it.

    Args:
        refs: pre, bias, state, words of resets and of padding where there are any; gated, last, saved where it is to
            be; decay and drive, [tiles * 8 * stride, 128] each.
        keep, rest: exp(-delta_min) and 1 - exp(-delta_min).
    """
    given = iter(refs)
    pre, bias, state = (next(given) for _ in range(3))
    reset, still = (next(given) if present else None for present in (resets, stills))
    gated, last = next(given), next(given)
    saved = next(given) if save else None
    decays, drives = given
    block, dtype = pl.program_id(1), decays.dtype

    @pl.when(block == 0)
    def _():
        last[...] = state[...]

    if saved is not None:
        saved[0] = last[...]

    def group(first, _):
        tiles = [(n, first * walk.tiles + n) for n in range(walk.tiles)]

        def gates(k, _):
            marks = [None if words is None else is_marked(words, k) for words in (reset, still)]
            for n, tile in tiles:
                v, p = (pre[0, sixteen(k), lanes(tile, part * d)].astype(dtype) for part in range(2))
                sigmoid_p, sigmoid_minus_p = sigmoids(p + bias[:, lanes(tile)])
                decay, drive = masked(keep * sigmoid_minus_p, (rest + keep * sigmoid_p) * jnp.tanh(v), *marks)
                decays[walk.kept(k, n), :] = decay
                drives[walk.kept(k, n), :] = drive

        def summarise(i, carry):
            at = [walk.side_by_side(i, n) for n, _ in tiles]
            gates = [(decays[rows, :], drives[rows, :]) for rows in at]
            return [(f * decay, decay * end + drive) for (f, end), (decay, drive) in zip(carry, gates, strict=True)]

        def advance(i, carry):
            at = [walk.side_by_side(i, n) for n, _ in tiles]
            after = [decays[rows, :] * h + drives[rows, :] for rows, h in zip(at, carry, strict=True)]
            for rows, h in zip(at, after, strict=True):
                drives[rows, :] = h
            return after

        def output(k, _):
            for n, tile in tiles:
                o, _ = sigmoids(pre[0, sixteen(k), lanes(tile, 2 * d)].astype(dtype))
                h = drives[walk.kept(k, n), :]
                gated[0, sixteen(k), lanes(tile)] = (o * h).astype(gated.dtype)

        walk.through_rows(gates)
        nothing = jnp.ones((SEGMENTS, LANES), dtype), jnp.zeros((SEGMENTS, LANES), dtype)
        summaries = walk.through_segments(summarise, [nothing for _ in tiles])
        found = [
            states_before(factor, end, last[0, :, lanes(tile)])
            for (factor, end), (_, tile) in zip(summaries, tiles, strict=True)
        ]
        walk.through_segments(advance, [before for before, _ in found])
        walk.through_rows(output)
        for (_, after), (_, tile) in zip(found, tiles, strict=True):
            last[0, :, lanes(tile)] = after
        return 0

    jax.lax.fori_loop(0, d // (LANES * walk.tiles), group, 0)


def masked(decay: Any, drive: Any, reset: Any, still: Any) -> tuple[Any, Any]:
    """Decay and drive where a step clears the state before it, (0, drive), or changes nothing, (1, 0)."""
    if reset is not None:
        decay = jnp.where(reset, 0.0, decay)
    if still is not None:
        decay, drive = jnp.where(still, 1.0, decay), jnp.where(still, 0.0, drive)
    return decay, drive
