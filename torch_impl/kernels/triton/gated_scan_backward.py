"""The gated scan, backward: the gradients of its inputs. No twin: Triton. Truth: spec/reference/blocks.py.

The blocks of `gated_scan_forward`, last first. With q the gradient that reaches h_t from later steps, a step does

    g = o y' + q,   d/dp = decay sigmoid(p) g (v - h_{t-1}),   d/dvalue = (1 - decay) (1 - v^2) g,   q <- decay g.

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
def gated_scan_backward(
    pre, bias, resets, padding, saved, grad_gated, arriving, grad_pre, grad_bias, grad_state, length, segments, blocks,
    KEEP: tl.constexpr, REST: tl.constexpr, RESETS: tl.constexpr, PADDED: tl.constexpr, STILLS: tl.constexpr,
    STAGES: tl.constexpr, D: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients of the pre-activations of one segment, its share of the bias's, and the initial state's.

    `arriving` [b, segments, D] is the gradient that reaches the state after each segment from later ones, `grad_bias`
    [b, segments, D] takes one share for each; `blocks` is the length of a segment.
    """
    row, b, segment, channels, rows = whereabouts(segments, D, C, W)
    inside = channels < D
    shift = widen(tl.load(bias + channels, mask=inside, other=0.0))
    q_after = tl.load(arriving + row * D + channels, mask=inside, other=0.0)
    bias_sum = tl.zeros([W, C], q_after.dtype)
    every = tl.cdiv(length, W * R)
    end_block = tl.minimum((segment + 1) * blocks, every)
    for back in tl.range(0, end_block - segment * blocks, num_stages=STAGES):
        block = end_block - 1 - back
        start, left = b * length + block * (W * R), length - block * (W * R) - rows * R
        offset = rows * (3 * R * D) + channels
        at, to = pre + start * (3 * D) + offset, grad_pre + start * (3 * D) + offset
        at_out = grad_gated + start * D + (rows * (R * D) + channels)
        word = b * tl.cdiv(length, R) + block * W + rows
        reset, still = row_word(resets + word, left, 0, RESETS), row_word(padding + word, left, -1, PADDED)
        before = tl.load(saved + (b * every + block) * D + channels, mask=inside, other=0.0)
        one, zero = tl.full([W, C], 1.0, bias_sum.dtype), tl.zeros([W, C], bias_sum.dtype)
        product, end, arrives = one, zero, zero
        decays, sigmoid_ps, values, products, ends = (), (), (), (), ()
        for r in tl.static_range(R):
            ok = inside & (r < left) if STILLS else inside
            v = tanh(widen(tl.load(at + 3 * r * D, mask=ok, other=0.0)), pre.dtype.element_ty == tl.float32)
            p = widen(tl.load(at + (3 * r + 1) * D, mask=ok, other=0.0)) + shift
            o = sigmoid(widen(tl.load(at + (3 * r + 2) * D, mask=ok, other=0.0)))
            grad_out = widen(tl.load(at_out + r * D, mask=ok, other=0.0))
            sigmoid_p, sigmoid_minus_p = two_sigmoids(p)
            decay, drive = KEEP * sigmoid_minus_p, (REST + KEEP * sigmoid_p) * v
            decay, drive = masked_step(decay, drive, reset, still, left, r, RESETS, PADDED, STILLS)
            arrives += product * decay * (o * grad_out)
            product, end = compose(product, end, decay, drive)
            decays, sigmoid_ps, values = decays + (KEEP * sigmoid_minus_p,), sigmoid_ps + (sigmoid_p,), values + (v,)
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
            grad_out = widen(tl.load(at_out + r * D, mask=ok, other=0.0))
            g = o * grad_out + q
            changes = tl.where(is_still(still, left, r, PADDED), 0.0, g) if STILLS else g
            previous = tl.where(is_marked(reset, r), 0.0, states[r]) if RESETS else states[r]
            grad_p = changes * decays[r] * sigmoid_ps[r] * (v - previous)
            bias_sum += grad_p
            q = masked_step(decays[r], 0.0, reset, still, left, r, RESETS, PADDED, STILLS)[0] * g
            grad_value = changes * (REST + KEEP * sigmoid_ps[r]) * (1.0 - v * v)
            tl.store(to + 3 * r * D, grad_value.to(grad_pre.dtype.element_ty), mask=ok)
            tl.store(to + (3 * r + 1) * D, grad_p.to(grad_pre.dtype.element_ty), mask=ok)
            grad_gate = grad_out * states[r + 1] * o * (1.0 - o)
            tl.store(to + (3 * r + 2) * D, grad_gate.to(grad_pre.dtype.element_ty), mask=ok)
    tl.store(grad_bias + row * D + channels, tl.sum(bias_sum, 0)[None, :], mask=inside)
    if segment == 0:
        tl.store(grad_state + b * D + channels, q_after, mask=inside)


@triton.jit
def gated_scan_adjoint_summary(
    pre, bias, resets, padding, grad_gated, products, ends, length, segments, steps,
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
        at_out = grad_gated + start * D + (rows * (each * D) + channels)
        word = b * tl.cdiv(length, R) + first // R + rows * (each // R)
        reset, still = row_word(resets + word, left, 0, RESETS), row_word(padding + word, left, -1, PADDED)
        for r in tl.static_range(R - 1, -1, -1):
            ok = inside & (r < left) if STILLS else inside
            p = widen(tl.load(at + (3 * r + 1) * D, mask=ok, other=0.0)) + shift
            o = sigmoid(widen(tl.load(at + (3 * r + 2) * D, mask=ok, other=0.0)))
            grad_out = widen(tl.load(at_out + r * D, mask=ok, other=0.0))
            _, sigmoid_minus_p = two_sigmoids(p)
            decay, _ = masked_step(KEEP * sigmoid_minus_p, 0.0, reset, still, left, r, RESETS, PADDED, STILLS)
            product, end = product * decay, decay * (o * grad_out + end)
    product, end = tl.associative_scan((product, end), 0, compose, reverse=True)
    whole = inside & (rows == 0)
    to = row * D + channels + 0 * rows
    tl.store(products + to, product, mask=whole)
    tl.store(ends + to, end, mask=whole)
