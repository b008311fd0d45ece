"""The gated scan, backward: the gradients of its inputs. No twin: Pallas. Truth: spec/reference/blocks.py.

The blocks of `gated_scan_forward`, last first. With q the gradient that reaches h_t from later steps, a step does

    g = o y' + q,   d/dp = decay sigmoid(p) g (v - h_{t-1}),   d/dvalue = (1 - decay) (1 - v^2) g,   q <- decay g.

The states of a block are made again from the one that was saved before it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jax_impl.kernels.pallas.blocks import (
    LANES,
    ROWS,
    SEGMENTS,
    Walk,
    is_marked,
    lanes,
    sigmoids,
    sixteen,
    states_before,
)
from jax_impl.kernels.pallas.gated_scan_forward import masked

SCRATCH = 7
"""Intermediate results for each step and channel that is worked on."""


def gated_scan_backward(*refs: Any, walk: Walk, d: int, keep: float, rest: float, resets: bool, stills: bool) -> None:
    """Gradients of the pre-activations of one block, of the bias by one row of the batch, and of the initial state.

    Args:
        refs: pre, bias, saved, gradients of gated and last, words of resets and of padding where there are any;
            gradients of pre, bias and state; scratch, [tiles * 8 * stride, 128] each.
        keep, rest: exp(-delta_min) and 1 - exp(-delta_min).
    """
    given = iter(refs)
    pre, bias, saved, grad_gated, grad_last = (next(given) for _ in range(5))
    reset, still = (next(given) if present else None for present in (resets, stills))
    grad_pre, grad_bias, grad_state = (next(given) for _ in range(3))
    # What begins as drive ends as h_{t-1}, what begins as o y' ends as g.
    decays, drives, arriving, sigmoid_ps, sigmoid_minus_ps, values, grad_gates = given
    at, dtype = pl.program_id(1), decays.dtype

    @pl.when(at == 0)
    def _():
        grad_state[...] = grad_last[...]
        grad_bias[...] = jnp.zeros_like(grad_bias)

    def group(first, _):
        tiles = [(n, first * walk.tiles + n) for n in range(walk.tiles)]

        def gates(k, _):
            marks = [None if words is None else is_marked(words, k) for words in (reset, still)]
            for n, tile in tiles:
                to = walk.kept(k, n)
                v, p, gate = (pre[0, sixteen(k), lanes(tile, part * d)].astype(dtype) for part in range(3))
                grad_out = grad_gated[0, sixteen(k), lanes(tile)].astype(dtype)
                if walk.ragged:
                    # Beyond the end there may be anything, and 0 NaN is NaN.
                    inside = walk.inside(walk.blocks - 1 - at, k)
                    v, p, gate, grad_out = (jnp.where(inside, x, 0.0) for x in (v, p, gate, grad_out))
                v, (o, one_minus_o) = jnp.tanh(v), sigmoids(gate)
                sigmoid_p, sigmoid_minus_p = sigmoids(p + bias[:, lanes(tile)])
                decays[to, :], drives[to, :] = masked(keep * sigmoid_minus_p, (rest + keep * sigmoid_p) * v, *marks)
                sigmoid_ps[to, :], sigmoid_minus_ps[to, :], values[to, :] = sigmoid_p, sigmoid_minus_p, v
                arriving[to, :], grad_gates[to, :] = o * grad_out, o * one_minus_o * grad_out

        def summarise(i, carry):
            found = []
            for (n, _), (factor, end, arrives) in zip(tiles, carry, strict=True):
                rows = walk.side_by_side(i, n)
                decay = decays[rows, :]
                factor = factor * decay
                found.append((factor, decay * end + drives[rows, :], arrives + factor * arriving[rows, :]))
            return found

        def advance(i, carry):
            found = []
            for (n, _), (h, q) in zip(tiles, carry, strict=True):
                rows, back = walk.side_by_side(i, n), walk.side_by_side(walk.each - 1 - i, n)
                after, g = decays[rows, :] * h + drives[rows, :], arriving[back, :] + q
                drives[rows, :], arriving[back, :] = h, g
                found.append((after, decays[back, :] * g))
            return found

        def gradients(k, bias_sums):
            marks = [None if words is None else is_marked(words, k) for words in (reset, still)]
            found = []
            for (n, tile), bias_sum in zip(tiles, bias_sums, strict=True):
                rows = walk.kept(k, n)
                sigmoid_p, sigmoid_minus_p, v, before, g = (
                    x[rows, :] for x in (sigmoid_ps, sigmoid_minus_ps, values, drives, arriving)
                )
                decay, drive = masked(keep * sigmoid_minus_p, (rest + keep * sigmoid_p) * v, *marks)
                previous = before if marks[0] is None else jnp.where(marks[0], 0.0, before)
                grad_p = keep * sigmoid_minus_p * sigmoid_p * g * (v - previous)
                grad_value = (rest + keep * sigmoid_p) * g * ((1.0 - v) * (1.0 + v))
                if marks[1] is not None:
                    grad_p, grad_value = jnp.where(marks[1], 0.0, grad_p), jnp.where(marks[1], 0.0, grad_value)
                for part, grad in enumerate((grad_value, grad_p, grad_gates[rows, :] * (decay * before + drive))):
                    grad_pre[0, sixteen(k), lanes(tile, part * d)] = grad.astype(grad_pre.dtype)
                found.append(bias_sum + grad_p)
            return found

        walk.through_rows(gates)
        zero = jnp.zeros((SEGMENTS, LANES), dtype)
        summaries = walk.through_segments(summarise, [(jnp.ones_like(zero), zero, zero) for _ in tiles])
        carry = []
        for (factor, end, arrives), (_, tile) in zip(summaries, tiles, strict=True):
            before, _ = states_before(factor, end, saved[0, 0, :, lanes(tile)])
            after, grad_state[0, :, lanes(tile)] = states_before(factor, arrives, grad_state[0, :, lanes(tile)], True)
            carry.append((before, after))
        walk.through_segments(advance, carry)
        bias_sums = walk.through_rows(gradients, [jnp.zeros((ROWS, LANES), dtype) for _ in tiles])
        for bias_sum, (_, tile) in zip(bias_sums, tiles, strict=True):
            grad_bias[0, :, lanes(tile)] += bias_sum.sum(axis=0, keepdims=True)
        return 0

    jax.lax.fori_loop(0, d // (LANES * walk.tiles), group, 0)
