"""The recurrence on a CPU, one pass over memory in each direction. No twin: Numba. Truth: spec/reference/scan.py."""

from numba import prange

from torch_impl.kernels.numba import kernel, parallel


@kernel
def _advance(decay, drive, h, states):
    for j in range(h.shape[0]):
        h[j] = decay[j] * h[j] + drive[j]
        states[j] = h[j]


@kernel
def _forward_task(decay, drive, state, states, b, lo, hi):
    h = state[b, lo:hi].copy()
    for t in range(decay.shape[1]):
        _advance(decay[b, t, lo:hi], drive[b, t, lo:hi], h, states[b, t, lo:hi])


@kernel
def _retreat(decay, previous, grad_state, q, grad_decay, grad_drive):
    for j in range(q.shape[0]):
        g = grad_state[j] + q[j]
        grad_drive[j] = g
        grad_decay[j] = g * previous[j]
        q[j] = decay[j] * g


@kernel
def _backward_task(decay, states, state, grad_states, grad_last, grad_decay, grad_drive, grad_state, b, lo, hi):
    q = grad_last[b, lo:hi].copy()
    for t in range(decay.shape[1] - 1, -1, -1):
        previous = states[b, t - 1, lo:hi] if t > 0 else state[b, lo:hi]
        now, out = decay[b, t, lo:hi], grad_states[b, t, lo:hi]
        _retreat(now, previous, out, q, grad_decay[b, t, lo:hi], grad_drive[b, t, lo:hi])
    grad_state[b, lo:hi] = q


@parallel
def scan_forward(decay, drive, state, states, cuts):
    """All states [b, t, d]; `cuts` pieces of the channels a task each."""
    d = decay.shape[2]
    for task in prange(decay.shape[0] * cuts):
        b, i = task // cuts, task % cuts
        _forward_task(decay, drive, state, states, b, d * i // cuts, d * (i + 1) // cuts)


@parallel
def scan_backward(decay, states, state, grad_states, grad_last, grad_decay, grad_drive, grad_state, cuts):
    """Gradients of decay, drive and initial state."""
    d = decay.shape[2]
    for task in prange(decay.shape[0] * cuts):
        b, i = task // cuts, task % cuts
        lo, hi = d * i // cuts, d * (i + 1) // cuts
        _backward_task(decay, states, state, grad_states, grad_last, grad_decay, grad_drive, grad_state, b, lo, hi)
