"""Online softmax and its gradient over blocks of the vocabulary. No twin: Numba. Truth: spec/reference/model.py."""

from numba import prange

from torch_impl.kernels.numba import kernel, parallel, summing
from torch_impl.kernels.numba.arithmetic import exp, number, row_maximum


@summing
def _sum_of_exp(z, largest):
    total = number(0.0, largest)
    for j in range(z.shape[0]):
        total += exp(z[j] - largest)
    return total


@kernel
def _softmax_gradient_row(z, largest, total):
    for j in range(z.shape[0]):
        z[j] = exp(z[j] - largest) / total


@parallel
def online_softmax(z, labels, first, largest, total, label_logit):
    """Take a block of words [n, w], the first of them `first`, into each row's statistics.

    `largest` logit, `total` = sum of exp(logit - largest), and the label's logit; of no words yet: -inf, 0, NaN.
    """
    for i in prange(z.shape[0]):
        most = row_maximum(z[i])
        if most > largest[i]:
            total[i] *= exp(largest[i] - most)
            largest[i] = most
        total[i] += _sum_of_exp(z[i], largest[i])
        if first <= labels[i] < first + z.shape[1]:
            label_logit[i] = z[i, labels[i] - first]


@parallel
def softmax_gradient(z, labels, first, largest, total):
    """Put softmax - one hot in the place of the logits; 0 in rows without a label."""
    for i in prange(z.shape[0]):
        if labels[i] < 0:
            z[i] = number(0.0, total[0])
            continue
        _softmax_gradient_row(z[i], largest[i], total[i])
        if first <= labels[i] < first + z.shape[1]:
            z[i, labels[i] - first] -= number(1.0, total[0])
