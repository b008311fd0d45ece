"""The gated scan, forward: pre-activations to gated states. No twin: Triton. Truth: spec/reference/blocks.py.

A program has C channels of one sequence (or of one segment of it) and goes through time in blocks of W R steps. Row w
of a block holds the steps w R ... w R + R - 1: R steps in order in the registers of one warp, from a zero state, then
one scan over the W rows, which gives the state before each row, and with it all states of the row.

`resets` and `padding` [b, ceil(length / R)] hold the masks of a row's steps, a byte each, in one int64; beyond the end
padding is set. STILLS: there is padding, or the length is no multiple of a block.
"""

import triton
import triton.language as tl

from torch_impl.kernels.triton.gates import (
    compose,
    compose_beside,
    masked_step,
    row_word,
    sigmoid,
    tanh,
    two_sigmoids,
    whereabouts,
    widen,
)


@triton.jit
def decay_and_drive(v, p, KEEP: tl.constexpr, REST: tl.constexpr):
    """decay = KEEP sigmoid(-p) and (1 - decay) v: 1 - decay = REST + KEEP sigmoid(p), KEEP = exp(-delta_min)."""
    sigmoid_p, sigmoid_minus_p = two_sigmoids(p)
    return KEEP * sigmoid_minus_p, (REST + KEEP * sigmoid_p) * v


@triton.jit
def gated_scan_forward(
    pre, bias, states, resets, padding, gated, last, saved, length, segments, blocks,
    KEEP: tl.constexpr, REST: tl.constexpr, RESETS: tl.constexpr, PADDED: tl.constexpr, STILLS: tl.constexpr,
    SAVE: tl.constexpr, EVERY: tl.constexpr, STAGES: tl.constexpr,
    D: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gated states of one segment; `states` [b, segments, D] holds the state before each, `blocks` is its length.

    Writes the last state of a sequence, and to `saved` [b, ceil(length / EVERY), D] those before every EVERY-th step.
    """
    row, b, segment, channels, rows = whereabouts(segments, D, C, W)
    inside = channels < D
    shift = widen(tl.load(bias + channels, mask=inside, other=0.0))
    carry = tl.load(states + row * D + channels, mask=inside, other=0.0)
    every = tl.cdiv(length, W * R)
    for block in tl.range(segment * blocks, tl.minimum((segment + 1) * blocks, every), num_stages=STAGES):
        start, left = b * length + block * (W * R), length - block * (W * R) - rows * R
        at = pre + start * (3 * D) + (rows * (3 * R * D) + channels)
        to = gated + start * D + (rows * (R * D) + channels)
        word = b * tl.cdiv(length, R) + block * W + rows
        reset, still = row_word(resets + word, left, 0, RESETS), row_word(padding + word, left, -1, PADDED)
        product, end = tl.full([W, C], 1.0, carry.dtype), tl.zeros([W, C], carry.dtype)
        one, zero = product, end
        products, ends, gates = (), (), ()
        for r in tl.static_range(R):
            ok = inside & (r < left) if STILLS else inside
            v = tanh(widen(tl.load(at + 3 * r * D, mask=ok, other=0.0)), pre.dtype.element_ty == tl.float32)
            p = widen(tl.load(at + (3 * r + 1) * D, mask=ok, other=0.0)) + shift
            o = sigmoid(widen(tl.load(at + (3 * r + 2) * D, mask=ok, other=0.0)))
            decay, drive = decay_and_drive(v, p, KEEP, REST)
            decay, drive = masked_step(decay, drive, reset, still, left, r, RESETS, PADDED, STILLS)
            product, end = compose(product, end, decay, drive)
            products, ends, gates = products + (product,), ends + (end,), gates + (o,)
        end = tl.where(rows == 0, product * carry + end, end)
        _, after, _, before = tl.associative_scan((product, end, one, zero), 0, compose_beside)
        before = tl.where(rows == 0, carry, before)
        if SAVE:
            first = rows * R % EVERY == 0
            which = b * tl.cdiv(length, EVERY) + block * (W * R // EVERY) + rows * R // EVERY
            tl.store(saved + which * D + channels, before, mask=inside & first & (left > 0))
        carry = tl.sum(tl.where(rows == W - 1, after, 0.0), 0)[None, :]
        for r in tl.static_range(R):
            h = products[r] * before + ends[r]
            ok = inside & (r < left) if STILLS else inside
            tl.store(to + r * D, (gates[r] * h).to(gated.dtype.element_ty), mask=ok)
    if segment == segments - 1:
        tl.store(last + b * D + channels, carry, mask=inside)


@triton.jit
def gated_scan_summary(
    pre, bias, resets, padding, products, ends, length, segments, steps,
    KEEP: tl.constexpr, REST: tl.constexpr, RESETS: tl.constexpr, PADDED: tl.constexpr, STILLS: tl.constexpr,
    STAGES: tl.constexpr, D: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What one segment of `steps` steps does to any state, h -> product h + end, from value and decay alone.

    Row w has steps / W consecutive ones, so that the rows meet once, at the end.
    """
    row, b, segment, channels, rows = whereabouts(segments, D, C, W)
    inside = channels < D
    shift = widen(tl.load(bias + channels, mask=inside, other=0.0))
    product, end = tl.full([W, C], 1.0, shift.dtype), tl.zeros([W, C], shift.dtype)
    each = steps // W
    for first in tl.range(0, each, R, num_stages=STAGES):
        start, left = b * length + segment * steps + first, length - segment * steps - first - rows * each
        at = pre + start * (3 * D) + (rows * (3 * each * D) + channels)
        beside = rows * (each // R)
        word = b * tl.cdiv(length, R) + (segment * steps + first) // R + beside
        reset, still = row_word(resets + word, left, 0, RESETS), row_word(padding + word, left, -1, PADDED)
        for r in tl.static_range(R):
            ok = inside & (r < left) if STILLS else inside
            v = tanh(widen(tl.load(at + 3 * r * D, mask=ok, other=0.0)), pre.dtype.element_ty == tl.float32)
            p = widen(tl.load(at + (3 * r + 1) * D, mask=ok, other=0.0)) + shift
            decay, drive = decay_and_drive(v, p, KEEP, REST)
            decay, drive = masked_step(decay, drive, reset, still, left, r, RESETS, PADDED, STILLS)
            product, end = compose(product, end, decay, drive)
    product, end = tl.associative_scan((product, end), 0, compose)
    whole = inside & (rows == W - 1)
    to = row * D + channels + 0 * rows
    tl.store(products + to, product, mask=whole)
    tl.store(ends + to, end, mask=whole)
