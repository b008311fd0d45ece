"""The fused mixer, backward: the gradients of its inputs. No twin: Triton. Truth: spec/reference/blocks.py.

The blocks of `mixer_forward`, last first. With q the gradient that reaches h_t from later steps, a step does

    g = o y' + q,   d/dp = alpha sigmoid(p) g (v - h_{t-1}),   d/dvalue = (1 - alpha) (1 - v^2) g,   q <- alpha g.

The states of a block are made again from the one that was saved before it.
"""

import triton
import triton.language as tl

from torch_impl.kernels.triton.gates import (
    compose,
    compose_beside,
    is_marked,
    is_still,
    masked_step,
    row_word,
    sigmoid,
    tanh,
    two_sigmoids,
    whereabouts,
    widen,
)


@triton.jit
def mixer_backward(
    pre, bias, resets, padding, saved, of_gated, arriving, of_pre, of_bias, of_state, length, segments, blocks,
    KEEP: tl.constexpr, REST: tl.constexpr, RESETS: tl.constexpr, PADDED: tl.constexpr, STILLS: tl.constexpr,
    STAGES: tl.constexpr, D: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of the pre-activations of one segment, its share of the bias's, and the initial state's.

    `arriving` [b, segments, D] is the gradient that reaches the state after each segment from later ones, `of_bias`
    [b, segments, D] takes one share for each; `blocks` is the length of a segment.
    """
    row, b, segment, channels, rows = whereabouts(segments, D, C, W)
    inside = channels < D
    shift = widen(tl.load(bias + channels, mask=inside, other=0.0))
    q_after = tl.load(arriving + row * D + channels, mask=inside, other=0.0)
    shard = tl.zeros([W, C], q_after.dtype)
    every = tl.cdiv(length, W * R)
    end_block = tl.minimum((segment + 1) * blocks, every)
    for back in tl.range(0, end_block - segment * blocks, num_stages=STAGES):
        block = end_block - 1 - back
        start, left = b * length + block * (W * R), length - block * (W * R) - rows * R
        offset = rows * (3 * R * D) + channels
        at, to = pre + start * (3 * D) + offset, of_pre + start * (3 * D) + offset
        at_out = of_gated + start * D + (rows * (R * D) + channels)
        word = b * tl.cdiv(length, R) + block * W + rows
        reset, still = row_word(resets + word, left, 0, RESETS), row_word(padding + word, left, -1, PADDED)
        before = tl.load(saved + (b * every + block) * D + channels, mask=inside, other=0.0)
        one, zero = tl.full([W, C], 1.0, shard.dtype), tl.zeros([W, C], shard.dtype)
        product, end, arrives = one, zero, zero
        alphas, opens, values, products, ends = (), (), (), (), ()
        for r in tl.static_range(R):
            ok = inside & (r < left) if STILLS else inside
            v = tanh(widen(tl.load(at + 3 * r * D, mask=ok, other=0.0)), pre.dtype.element_ty == tl.float32)
            p = widen(tl.load(at + (3 * r + 1) * D, mask=ok, other=0.0)) + shift
            o = sigmoid(widen(tl.load(at + (3 * r + 2) * D, mask=ok, other=0.0)))
            of_out = widen(tl.load(at_out + r * D, mask=ok, other=0.0))
            opened, closed = two_sigmoids(p)
            alpha, drive = KEEP * closed, (REST + KEEP * opened) * v
            alpha, drive = masked_step(alpha, drive, reset, still, left, r, RESETS, PADDED, STILLS)
            arrives += product * alpha * (o * of_out)
            product, end = compose(product, end, alpha, drive)
            alphas, opens, values = alphas + (KEEP * closed,), opens + (opened,), values + (v,)
            products, ends = products + (product,), ends + (end,)
        end = tl.where(rows == 0, product * before + end, end)
        _, _, _, earlier = tl.associative_scan((product, end, one, zero), 0, compose_beside)
        before = tl.where(rows == 0, before, earlier)
        states = (before,)
        for r in tl.static_range(R):
            states = states + (products[r] * before + ends[r],)
        arrives = tl.where(rows == W - 1, product * q_after + arrives, arrives)
        _, reach, _, later = tl.associative_scan((product, arrives, one, zero), 0, compose_beside, reverse=True)
        q = tl.where(rows == W - 1, q_after, later)
        q_after = tl.sum(tl.where(rows == 0, reach, 0.0), 0)[None, :]
        for r in tl.static_range(R - 1, -1, -1):
            ok = inside & (r < left) if STILLS else inside
            v = values[r]
            # Read again, from the cache: kept since the first pass, they would not fit into the registers.
            o = sigmoid(widen(tl.load(at + (3 * r + 2) * D, mask=ok, other=0.0)))
            of_out = widen(tl.load(at_out + r * D, mask=ok, other=0.0))
            g = o * of_out + q
            changes = tl.where(is_still(still, left, r, PADDED), 0.0, g) if STILLS else g
            previous = tl.where(is_marked(reset, r), 0.0, states[r]) if RESETS else states[r]
            of_p = changes * alphas[r] * opens[r] * (v - previous)
            shard += of_p
            q = masked_step(alphas[r], 0.0, reset, still, left, r, RESETS, PADDED, STILLS)[0] * g
            of_value = changes * (REST + KEEP * opens[r]) * (1.0 - v * v)
            tl.store(to + 3 * r * D, of_value.to(of_pre.dtype.element_ty), mask=ok)
            tl.store(to + (3 * r + 1) * D, of_p.to(of_pre.dtype.element_ty), mask=ok)
            of_gate = of_out * states[r + 1] * o * (1.0 - o)
            tl.store(to + (3 * r + 2) * D, of_gate.to(of_pre.dtype.element_ty), mask=ok)
    tl.store(of_bias + row * D + channels, tl.sum(shard, 0)[None, :], mask=inside)
    if segment == 0:
        tl.store(of_state + b * D + channels, q_after, mask=inside)


@triton.jit
def adjoint_summary(
    pre, bias, resets, padding, of_gated, products, ends, length, segments, steps,
    KEEP: tl.constexpr, REST: tl.constexpr, RESETS: tl.constexpr, PADDED: tl.constexpr, STILLS: tl.constexpr,
    STAGES: tl.constexpr, D: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What one segment of `steps` steps does to the gradient that arrives after it: q -> product q + end.

    From decay, output gate and the gradient of the gated states alone; row w has steps / W consecutive steps.
    """
    row, b, segment, channels, rows = whereabouts(segments, D, C, W)
    inside = channels < D
    shift = widen(tl.load(bias + channels, mask=inside, other=0.0))
    product, end = tl.full([W, C], 1.0, shift.dtype), tl.zeros([W, C], shift.dtype)
    each = steps // W
    for back in tl.range(0, each, R, num_stages=STAGES):
        first = segment * steps + each - R - back
        start, left = b * length + first, length - first - rows * each
        at = pre + start * (3 * D) + (rows * (3 * each * D) + channels)
        at_out = of_gated + start * D + (rows * (each * D) + channels)
        word = b * tl.cdiv(length, R) + first // R + rows * (each // R)
        reset, still = row_word(resets + word, left, 0, RESETS), row_word(padding + word, left, -1, PADDED)
        for r in tl.static_range(R - 1, -1, -1):
            ok = inside & (r < left) if STILLS else inside
            p = widen(tl.load(at + (3 * r + 1) * D, mask=ok, other=0.0)) + shift
            o = sigmoid(widen(tl.load(at + (3 * r + 2) * D, mask=ok, other=0.0)))
            of_out = widen(tl.load(at_out + r * D, mask=ok, other=0.0))
            _, closed = two_sigmoids(p)
            alpha, _ = masked_step(KEEP * closed, 0.0, reset, still, left, r, RESETS, PADDED, STILLS)
            product, end = product * alpha, alpha * (o * of_out + end)
    product, end = tl.associative_scan((product, end), 0, compose, reverse=True)
    whole = inside & (rows == 0)
    to = row * D + channels + 0 * rows
    tl.store(products + to, product, mask=whole)
    tl.store(ends + to, end, mask=whole)
