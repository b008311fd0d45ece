"""The gated scan on a CPU, one pass over memory in each direction. No twin: Numba. Truth: spec/reference/blocks.py.

A task has some channels of one sequence and goes through time with their states in the nearest cache. Backwards, with q
the gradient that reaches h_t from later steps, a step does

    g = o y' + q,   d/dp = decay sigmoid(p) g (v - h_{t-1}),   d/dvalue = (1 - decay) (1 - v^2) g,   q <- decay g.
"""

import numpy as np
from numba import prange

from torch_impl.kernels.numba import kernel, parallel
from torch_impl.kernels.numba.arithmetic import number, sigmoid, tanh, two_sigmoids


@kernel
def _forward_step(value, p, gate, bias, h, keep, rest, gated, states):
    for j in range(h.shape[0]):
        v = tanh(value[j])
        sigmoid_p, sigmoid_minus_p = two_sigmoids(p[j] + bias[j])
        after = keep * sigmoid_minus_p * h[j] + (rest + keep * sigmoid_p) * v
        h[j] = after
        states[j] = after
        gated[j] = sigmoid(gate[j]) * after


@kernel
def _still_step(gate, h, gated, states):
    for j in range(h.shape[0]):
        states[j] = h[j]
        gated[j] = sigmoid(gate[j]) * h[j]


@kernel
def _forward_task(pre, bias, constants, state, resets, padding, gated, states, last, b, lo, hi):
    """`states` has either every step, or one row that is written over."""
    d, keep, rest = bias.shape[0], constants[0], constants[1]
    h = state[b, lo:hi].copy()
    for t in range(pre.shape[1]):
        s = t if states.shape[1] > 1 else 0
        out, kept = gated[b, t, lo:hi], states[b, s, lo:hi]
        gate = pre[b, t, 2 * d + lo : 2 * d + hi]
        if padding.size > 0 and padding[b, t]:
            _still_step(gate, h, out, kept)
            continue
        if resets.size > 0 and resets[b, t]:
            h[:] = number(0.0, keep)
        _forward_step(pre[b, t, lo:hi], pre[b, t, d + lo : d + hi], gate, bias[lo:hi], h, keep, rest, out, kept)
    last[b, lo:hi] = h


@kernel
def _backward_step(
    value, p, gate, bias, previous, state, grad_gated, q, bias_sum, keep, rest, grad_value, grad_p, grad_gate
):
    one = number(1.0, keep)
    for j in range(q.shape[0]):
        v = tanh(value[j])
        sigmoid_p, sigmoid_minus_p = two_sigmoids(p[j] + bias[j])
        o = sigmoid(gate[j])
        g = o * grad_gated[j] + q[j]
        decay = keep * sigmoid_minus_p
        change = g * decay * sigmoid_p * (v - previous[j])
        grad_value[j] = g * (rest + keep * sigmoid_p) * (one - v * v)
        grad_p[j] = change
        grad_gate[j] = grad_gated[j] * state[j] * o * (one - o)
        bias_sum[j] += change
        q[j] = decay * g


@kernel
def _still_back(gate, state, grad_gated, q, grad_value, grad_p, grad_gate):
    zero, one = number(0.0, q[0]), number(1.0, q[0])
    for j in range(q.shape[0]):
        o = sigmoid(gate[j])
        grad_gate[j] = grad_gated[j] * state[j] * o * (one - o)
        grad_value[j] = zero
        grad_p[j] = zero
        q[j] += o * grad_gated[j]


@kernel
def _backward_task(
    pre, bias, constants, state, resets, padding, states, grad_gated, grad_last, grad_pre, grad_bias, grad_state,
    b, lo, hi,
):  # fmt: skip
    d, keep, rest = bias.shape[0], constants[0], constants[1]
    q = grad_last[b, lo:hi].copy()
    bias_sum, nothing = np.zeros_like(q), np.zeros_like(q)
    for t in range(pre.shape[1] - 1, -1, -1):
        previous = states[b, t - 1, lo:hi] if t > 0 else state[b, lo:hi]
        value, p, gate = pre[b, t, lo:hi], pre[b, t, d + lo : d + hi], pre[b, t, 2 * d + lo : 2 * d + hi]
        grad_value, grad_p = grad_pre[b, t, lo:hi], grad_pre[b, t, d + lo : d + hi]
        grad_gate, now, out = grad_pre[b, t, 2 * d + lo : 2 * d + hi], states[b, t, lo:hi], grad_gated[b, t, lo:hi]
        if padding.size > 0 and padding[b, t]:
            _still_back(gate, now, out, q, grad_value, grad_p, grad_gate)
            continue
        reset = resets.size > 0 and resets[b, t]
        if reset:
            previous = nothing
        _backward_step(
            value, p, gate, bias[lo:hi], previous, now, out, q, bias_sum, keep, rest, grad_value, grad_p, grad_gate
        )
        if reset:
            q[:] = number(0.0, keep)
    grad_bias[b, lo:hi] = bias_sum
    grad_state[b, lo:hi] = q


@parallel
def gated_scan_forward(pre, bias, constants, state, resets, padding, gated, states, last, cuts):
    """Gated states [b, t, d], states [b, t or 1, d] and the last of them; `cuts` pieces of the channels a task each."""
    d = bias.shape[0]
    for task in prange(pre.shape[0] * cuts):
        b, i = task // cuts, task % cuts
        lo, hi = d * i // cuts, d * (i + 1) // cuts
        _forward_task(pre, bias, constants, state, resets, padding, gated, states, last, b, lo, hi)


@parallel
def gated_scan_backward(
    pre, bias, constants, state, resets, padding, states, grad_gated, grad_last, grad_pre, grad_bias, grad_state, cuts
):
    """Gradients of pre-activations, of the bias by each sequence [b, d], and of the initial state."""
    d = bias.shape[0]
    for task in prange(pre.shape[0] * cuts):
        b, i = task // cuts, task % cuts
        lo, hi = d * i // cuts, d * (i + 1) // cuts
        _backward_task(
            pre, bias, constants, state, resets, padding, states, grad_gated, grad_last,
            grad_pre, grad_bias, grad_state, b, lo, hi,
        )  # fmt: skip
