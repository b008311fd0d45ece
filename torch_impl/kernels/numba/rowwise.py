"""RMSNorm and the product of SwiGLU on a CPU, row by row. No twin: Numba. Truth: spec/reference/blocks.py.

Sums over rows are taken in blocks of ROWS whatever the number of threads, so that they do not depend on it.
"""

import math

from numba import prange

from torch_impl.kernels.numba import kernel, parallel, summing
from torch_impl.kernels.numba.arithmetic import number, sigmoid

ROWS = 32


@summing
def _dot(a, b):
    total = number(0.0, a[0])
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@kernel
def _norm_row(x, weight, eps, y):
    r = number(1.0, eps) / math.sqrt(_dot(x, x) / number(x.shape[0], eps) + eps)
    for j in range(x.shape[0]):
        y[j] = weight[j] * (x[j] * r)
    return r


@kernel
def _norm_row_back(x, weight, r, grad_y, grad_x, weight_sum):
    """With n = x r and q = w g: r (q - n mean(q n))."""
    for j in range(x.shape[0]):
        weight_sum[j] += grad_y[j] * (x[j] * r)
        grad_x[j] = grad_y[j] * weight[j]
    mean = _dot(grad_x, x) * r / number(x.shape[0], r)
    for j in range(x.shape[0]):
        grad_x[j] = r * (grad_x[j] - x[j] * r * mean)


@parallel
def norm_forward(x, weight, eps, y, r):
    """y = weight x r, r = (mean(x^2) + eps)^(-1/2), of rows [n, d]; `eps` in an array of their format."""
    for block in prange((x.shape[0] + ROWS - 1) // ROWS):
        for i in range(block * ROWS, min((block + 1) * ROWS, x.shape[0])):
            r[i] = _norm_row(x[i], weight, eps[0], y[i])


@parallel
def norm_backward(x, weight, r, grad_y, grad_x, partial_sums):
    """Gradients of x, and of the weight by each block of rows [blocks, d]."""
    for block in prange(partial_sums.shape[0]):
        partial_sums[block] = number(0.0, r[0])
        for i in range(block * ROWS, min((block + 1) * ROWS, x.shape[0])):
            _norm_row_back(x[i], weight, r[i], grad_y[i], grad_x[i], partial_sums[block])


@kernel
def _swiglu_row(gate, up, y):
    for j in range(y.shape[0]):
        y[j] = gate[j] * sigmoid(gate[j]) * up[j]


@kernel
def _swiglu_row_back(gate, up, grad_y, grad_gate, grad_up):
    """silu' = s (1 + x (1 - s))."""
    one = number(1.0, grad_y[0])
    for j in range(grad_y.shape[0]):
        s = sigmoid(gate[j])
        grad_gate[j] = grad_y[j] * up[j] * (s * (one + gate[j] * (one - s)))
        grad_up[j] = grad_y[j] * (gate[j] * s)


@parallel
def swiglu_forward(pre, y):
    """silu(gate) up, of rows gate | up [n, 2 f]."""
    f = y.shape[1]
    for block in prange((y.shape[0] + ROWS - 1) // ROWS):
        for i in range(block * ROWS, min((block + 1) * ROWS, y.shape[0])):
            _swiglu_row(pre[i, :f], pre[i, f:], y[i])


@parallel
def swiglu_backward(pre, grad_y, grad_pre):
    """Gradients of gate | up."""
    f = grad_y.shape[1]
    for block in prange((grad_y.shape[0] + ROWS - 1) // ROWS):
        for i in range(block * ROWS, min((block + 1) * ROWS, grad_y.shape[0])):
            _swiglu_row_back(pre[i, :f], pre[i, f:], grad_y[i], grad_pre[i, :f], grad_pre[i, f:])
