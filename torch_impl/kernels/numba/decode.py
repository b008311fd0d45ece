"""One token a row through a whole LiquidNet on a CPU. No twin: Numba. Truth: spec/reference/model.py.

A step is a few regions a layer whose rows of weights are divided between threads, each read once for all streams:

    x = E[token];  per layer  (1) value | p | gate = W norm(x), then the gates and the new state
                              (2) x += s W_y (o h)    (3) gate | up = W norm(x), then silu(gate) up    (4) x += s W_d u
    logits = E norm(x)

Weights are float32, bfloat16 as uint16, or int8 with a scale a row; all else is float32.
"""

import math
from functools import partial
from typing import Any

import numpy as np
from numba import carray, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from torch_impl.kernels.numba import divided, kept, kernel, summing
from torch_impl.kernels.numba.arithmetic import sigmoid, tanh, two_sigmoids

#: Columns of the table of matmuls: addresses of what each reads, and what becomes of it.
WEIGHT, SCALE, NORM, BIAS, KIND = range(5)
GATES, ADD, SWIGLU, LM_HEAD = range(4)
# Below so many products to add up a second thread takes longer to begin than the first one to end.
SMALL = 1 << 15


def _to_pointer(typing_context, address):
    """An address as a pointer: parameters are read where they lie, and their number is no part of any type."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), generate


_pointer: Any = intrinsic(_to_pointer)


def _widened(weight) -> Any:
    """The float32 number that a stored weight stands for, its row's scale aside."""


@overload(_widened, inline="always")
def _of_stored(weight):
    if weight == types.uint16:
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: np.float32(weight)


@summing
def _dot(weight_i, x_i):
    total = np.float32(0.0)
    for i in range(x_i.shape[0]):
        total += _widened(weight_i[i]) * x_i[i]
    return total


@summing
def _four_dots(weight_i, x_ki, first):
    """With four streams at a time, since a weight is widened once for all."""
    a = b = c = d = np.float32(0.0)
    x_i, y_i, z_i, w_i = x_ki[first], x_ki[first + 1], x_ki[first + 2], x_ki[first + 3]
    for i in range(weight_i.shape[0]):
        weight = _widened(weight_i[i])
        a += weight * x_i[i]
        b += weight * y_i[i]
        c += weight * z_i[i]
        d += weight * w_i[i]
    return a, b, c, d


@kernel
def _rows(weight_oi, scale_o, x_bi, y_bo, lo, hi):
    """Rows lo to hi of y = x W^T, each by one thread in one order: the number of threads changes no bit."""
    count = x_bi.shape[0]
    for o in range(lo, hi):
        scale = scale_o[o] if scale_o.size > 0 else np.float32(1.0)
        for b in range(0, count - 3, 4):
            p, q, r, s = _four_dots(weight_oi[o], x_bi, b)
            y_bo[b, o], y_bo[b + 1, o], y_bo[b + 2, o], y_bo[b + 3, o] = scale * p, scale * q, scale * r, scale * s
        for b in range(count // 4 * 4, count):
            y_bo[b, o] = scale * _dot(weight_oi[o], x_bi[b])


@kernel
def _norm(x_bd, weight_d, eps, y_bd):
    d = x_bd.shape[1]
    for b in range(x_bd.shape[0]):
        x_d, y_d = x_bd[b], y_bd[b]
        r = np.float32(1.0) / math.sqrt(_dot(x_d, x_d) / np.float32(d) + eps)
        for j in range(d):
            y_d[j] = weight_d[j] * (x_d[j] * r)


@kernel
def _gates(pre_k, bias_d, keep, rest, state_d, last_d, gated_d, lo, hi):
    d = bias_d.shape[0]
    value_d, p_d, gate_d = pre_k[:d], pre_k[d : 2 * d], pre_k[2 * d :]
    for j in range(lo, hi):
        sigmoid_p, sigmoid_minus_p = two_sigmoids(p_d[j] + bias_d[j])
        after = keep * sigmoid_minus_p * state_d[j] + (rest + keep * sigmoid_p) * tanh(value_d[j])
        last_d[j] = after
        gated_d[j] = sigmoid(gate_d[j]) * after


@kernel
def _swiglu(pre_k, y_f, lo, hi):
    f = y_f.shape[0]
    gate_f, up_f = pre_k[:f], pre_k[f:]
    for j in range(lo, hi):
        y_f[j] = gate_f[j] * sigmoid(gate_f[j]) * up_f[j]


@kernel
def _part(kind, i, parts, weight_oi, scale_o, x_bi, pre_bo, bias_d, state_bd, last_bd, y_bk, constants):
    """Part i of a product and of what follows it: the same channels of each matrix that is stacked in `weight`."""
    stacked = 3 if kind == GATES else 2 if kind == SWIGLU else 1
    each = weight_oi.shape[0] // stacked
    lo, hi = each * i // parts, each * (i + 1) // parts
    for k in range(stacked):
        _rows(weight_oi, scale_o, x_bi, pre_bo, k * each + lo, k * each + hi)
    for b in range(x_bi.shape[0]):
        if kind == GATES:
            _gates(pre_bo[b], bias_d, constants[0], constants[1], state_bd[b], last_bd[b], y_bk[b], lo, hi)
        elif kind == SWIGLU:
            _swiglu(pre_bo[b], y_bk[b], lo, hi)
        elif kind == ADD:
            for j in range(lo, hi):
                y_bk[b, j] += constants[2] * pre_bo[b, j]


@divided
def _parts(kind, parts, weight_oi, scale_o, x_bi, pre_bo, bias_d, state_bd, last_bd, y_bk, constants):
    for i in prange(parts):
        _part(kind, i, parts, weight_oi, scale_o, x_bi, pre_bo, bias_d, state_bd, last_bd, y_bk, constants)


@kernel
def _vector(address, size):
    """Nothing where there is no address."""
    return carray(_pointer(address), (size if address else 0,), np.float32)


@partial(kept, fastmath={"contract"})
def step(
    threads, tokens_b, matmuls, embedding_vd, scale_v, constants, states_lbd, last_lbd, logits_bv, x_bd, normed_bd,
    pre_b3d, gated_bd, pre_b2f, hidden_bf,
):  # fmt: skip
    """Logits and states after one token a row.

    Args:
        threads: parts that each product is divided into; 1 starts no other thread.
        tokens_b: token ids, inside the vocabulary.
        matmuls: the four of each layer and the one that reads out, columns as above; none is 0.
        embedding_vd, scale_v: the embedding as it is stored, its scales or nothing.
        constants: c = exp(-delta_min), 1 - c, residual scale, epsilon of the norms.
        states_lbd: before the token. Not written to.
        last_lbd, logits_bv: the results.
        x_bd, normed_bd, pre_b3d, gated_bd, pre_b2f, hidden_bf: memory to work in.
    """
    d = x_bd.shape[1]
    for b in range(tokens_b.shape[0]):
        scale = scale_v[tokens_b[b]] if scale_v.size > 0 else np.float32(1.0)
        for j in range(d):
            x_bd[b, j] = scale * _widened(embedding_vd[tokens_b[b], j])
    for i in range(matmuls.shape[0]):
        at, layer = matmuls[i], min(i // 4, states_lbd.shape[0] - 1)
        kind = at[KIND]
        if at[NORM] != 0:
            _norm(x_bd, _vector(at[NORM], d), constants[3], normed_bd)
        # The array that is read, the product, and what becomes of it.
        if kind == GATES:
            in_bi, pre_bo, out_bk = normed_bd, pre_b3d, gated_bd
        elif kind == SWIGLU:
            in_bi, pre_bo, out_bk = normed_bd, pre_b2f, hidden_bf
        elif kind == ADD:
            in_bi, pre_bo, out_bk = gated_bd if i % 4 == 1 else hidden_bf, normed_bd, x_bd
        else:
            in_bi, pre_bo, out_bk = normed_bd, logits_bv, logits_bv
        rows = pre_bo.shape[1]
        weight_oi = carray(_pointer(at[WEIGHT]), (rows, in_bi.shape[1]), embedding_vd.dtype)
        scale_o, bias_d = _vector(at[SCALE], rows), _vector(at[BIAS], d)
        state_bd, last_bd = states_lbd[layer], last_lbd[layer]
        if threads == 1 or weight_oi.size * len(tokens_b) < SMALL:
            _part(kind, 0, 1, weight_oi, scale_o, in_bi, pre_bo, bias_d, state_bd, last_bd, out_bk, constants)
        else:
            _parts(kind, threads, weight_oi, scale_o, in_bi, pre_bo, bias_d, state_bd, last_bd, out_bk, constants)
