"""The scan and its adjoint as kernels. No twin: Triton. Truth: spec/reference/scan.py.

Blocks of W R steps, as in gated_scan_forward.py; REVERSE goes through time from the end.
"""

import triton
import triton.language as tl

from torch_impl.kernels.triton.gates import compose, compose_beside, whereabouts


@triton.jit
def scan_forward(
    decay, drive, state, states, length,
    REVERSE: tl.constexpr, STAGES: tl.constexpr, D: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """All states of h_t = decay_t h_{t-1} + drive_t, one sequence and C channels a program."""
    FORTH: tl.constexpr = -D if REVERSE else D
    _row, b, _segment, channels, rows = whereabouts(1, D, C, W)
    inside = channels < D
    carry = tl.load(state + b * D + channels, mask=inside, other=0.0)
    one, zero = tl.full([W, C], 1.0, carry.dtype), tl.zeros([W, C], carry.dtype)
    for block in tl.range(0, tl.cdiv(length, W * R), num_stages=STAGES):
        first, left = block * (W * R), length - block * (W * R) - rows * R
        if REVERSE:
            first = length - 1 - first
        start, offset = (b * length + first) * D, rows * (R * FORTH) + channels
        from_decay, from_drive, to = decay + start + offset, drive + start + offset, states + start + offset
        product, end = one, zero
        decays, drives = (), ()
        for r in tl.static_range(R):
            ok = inside & (r < left)
            decay_r = tl.load(from_decay + r * FORTH, mask=ok, other=1.0)
            drive_r = tl.load(from_drive + r * FORTH, mask=ok, other=0.0)
            product, end = compose(product, end, decay_r, drive_r)
            decays, drives = decays + (decay_r,), drives + (drive_r,)
        end = tl.where(rows == 0, product * carry + end, end)
        _, after, _, before = tl.associative_scan((product, end, one, zero), 0, compose_beside)
        h = tl.where(rows == 0, carry, before)
        carry = tl.sum(tl.where(rows == W - 1, after, 0.0), 0)[None, :]
        for r in tl.static_range(R):
            h = decays[r] * h + drives[r]
            tl.store(to + r * FORTH, h, mask=inside & (r < left))


@triton.jit
def scan_backward(
    decay, states, state, grad_states, grad_last, grad_decay, grad_drive, length,
    STAGES: tl.constexpr, D: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Gradients g of the drive and g h_{t-1} of the decay: g_t = grad_states_t + decay_{t+1} g_{t+1}, backwards."""
    _row, b, _segment, channels, rows = whereabouts(1, D, C, W)
    inside = channels < D
    q_after = tl.load(grad_last + b * D + channels, mask=inside, other=0.0)
    initial = tl.load(state + b * D + channels, mask=inside, other=0.0)
    one, zero = tl.full([W, C], 1.0, q_after.dtype), tl.zeros([W, C], q_after.dtype)
    every = tl.cdiv(length, W * R)
    for back in tl.range(0, every, num_stages=STAGES):
        first = (every - 1 - back) * (W * R)
        start, left = (b * length + first) * D + (rows * (R * D) + channels), length - first - rows * R
        product, arrives = one, zero
        decays, grad_outs = (), ()
        for i in tl.static_range(R):
            ok = inside & (R - 1 - i < left)
            decay_r = tl.load(decay + start + (R - 1 - i) * D, mask=ok, other=1.0)
            grad_out = tl.load(grad_states + start + (R - 1 - i) * D, mask=ok, other=0.0)
            product, arrives = product * decay_r, decay_r * (grad_out + arrives)
            decays, grad_outs = decays + (decay_r,), grad_outs + (grad_out,)
        arrives = tl.where(rows == W - 1, product * q_after + arrives, arrives)
        _, reach, _, later = tl.associative_scan((product, arrives, one, zero), 0, compose_beside, reverse=True)
        q = tl.where(rows == W - 1, q_after, later)
        q_after = tl.sum(tl.where(rows == 0, reach, 0.0), 0)[None, :]
        for i in tl.static_range(R):
            r = R - 1 - i
            ok, later_than_first = inside & (r < left), first + rows * R + r > 0
            g = grad_outs[i] + q
            previous = tl.load(states + start + (r - 1) * D, mask=ok & later_than_first, other=0.0)
            tl.store(grad_drive + start + r * D, g, mask=ok)
            tl.store(grad_decay + start + r * D, g * tl.where(later_than_first, previous, initial), mask=ok)
            q = decays[i] * g
