"""Linear layer and cross-entropy in one, on a CPU. No twin: Numba. Truth: spec/reference/model.py.

So many rows at a time, and of these so many words: a block of logits stays in the cache between the product that makes
it and the pass over it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spec.inputs import IGNORED_LABEL, check_label_values
from torch_impl.kernels.numba import cross_entropy as kernels
from torch_impl.kernels.numba.calls import arrays
from torch_impl.ops.matmul import IMAGES, matmul, matmul_gradients

BLOCK_LOGITS = 2**21
"""Most logits in a block: 8 MiB of float32."""


def numba_fused_linear(
    hidden: Tensor, embedding: Tensor, labels: Tensor, chunk_logits: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(nats of each row, gradient of hidden, gradient of the embedding); the gradients are empty if not wanted.

    Args:
        hidden, embedding, labels, chunk_logits: as in `fused_linear_cross_entropy`.
        wanted: whether gradients are.

    Raises:
        ValueError: a label that is neither -100 nor a word.
    """
    (n, d), v = hidden.shape, len(embedding)
    # Here too: in a compiled program the numbers are seen by this operation alone.
    check_label_values(labels.numpy(), v)
    nats = hidden.new_empty(n)
    grad_hidden = hidden.new_empty(n, d) if wanted else hidden.new_empty(0)
    grad_embedding = embedding.new_empty(v, d) if wanted else embedding.new_empty(0)
    rows = max(1, chunk_logits // v)
    rows -= rows % IMAGES if rows > IMAGES else 0
    for start in range(0, n, rows):
        here = slice(start, start + rows)
        chunk = _Chunk(hidden[here], embedding, labels[here], wanted)
        nats[here] = chunk.nats()
        if wanted:
            chunk.backward(grad_hidden[here], grad_embedding, first=start == 0)
        # Else its logits would live beside those of the next one.
        del chunk
    if wanted and n == 0:
        grad_embedding.zero_()
    return nats, grad_hidden, grad_embedding


class _Chunk:
    """The logits of some rows as blocks of words, and what softmax needs of each row."""

    def __init__(self, x: Tensor, embedding: Tensor, labels: Tensor, keep: bool):
        self.x, self.labels = x, labels
        words = max(1, BLOCK_LOGITS // len(x))
        self.weights = embedding.split(words)
        self.firsts = range(0, len(embedding), words)
        self.largest, self.total = x.new_full((len(x),), -torch.inf), x.new_zeros(len(x))
        self.label_logit = x.new_full((len(x),), torch.nan)
        self.blocks = []
        for weight, first in zip(self.weights, self.firsts, strict=True):
            z = matmul(x, weight)
            kernels.online_softmax(*arrays(z, labels), first, *arrays(self.largest, self.total, self.label_logit))
            if keep:
                self.blocks.append(z)

    def nats(self) -> Tensor:
        """log sum exp - the label's logit; 0 without a label."""
        nats = self.total.log() - (self.label_logit - self.largest)
        return nats.masked_fill(self.labels == IGNORED_LABEL, 0.0)

    def backward(self, grad_x: Tensor, grad_embedding: Tensor, first: bool) -> None:
        """Write the gradient of the rows, and write or add that of the embedding."""
        grad_x.zero_()
        for z, weight, begin in zip(self.blocks, self.weights, self.firsts, strict=True):
            kernels.softmax_gradient(*arrays(z, self.labels), begin, *arrays(self.largest, self.total))
            block_grad_x, grad_weight = matmul_gradients(self.x, weight, z)
            grad_x += block_grad_x
            target = grad_embedding[begin : begin + len(weight)]
            target.copy_(grad_weight) if first else target.add_(grad_weight)
