"""Cross-entropy with its gradients in one pass, on a CPU. No twin: Numba. Truth: spec/reference/model.py.

So many rows at a time, and of these so many words: a block of logits stays in the cache between the product that makes
it and the pass over it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spec.data import IGNORED_LABEL
from torch_impl.kernels.numba import softmax as kernels
from torch_impl.kernels.numba.calls import arrays
from torch_impl.ops.matmul import IMAGES, gradients, product

BLOCK_LOGITS = 2**21
"""Most logits in a block: 8 MiB of float32."""


def one_pass_on_cpu(
    hidden: Tensor, embedding: Tensor, labels: Tensor, chunk_logits: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(nats of each row, gradient of hidden, gradient of the embedding); the gradients are empty if not wanted.

    Args:
        hidden: [n, d], float32 or float64.
        embedding: [v, d].
        labels: int64, [n].
        chunk_logits: most logits at a time; one row at least.
        wanted: whether gradients are.

    Raises:
        ValueError: a label that is neither -100 nor a word.
    """
    (n, d), v = hidden.shape, len(embedding)
    strange = labels[((labels < 0) & (labels != IGNORED_LABEL)) | (labels >= v)]
    if len(strange):
        raise ValueError(f"labels must be {IGNORED_LABEL} or in [0, {v}), got {strange[0].item()}")
    nats = hidden.new_empty(n)
    of_hidden = hidden.new_empty(n, d) if wanted else hidden.new_empty(0)
    of_embedding = embedding.new_empty(v, d) if wanted else embedding.new_empty(0)
    rows = max(1, chunk_logits // v)
    rows -= rows % IMAGES if rows > IMAGES else 0
    for start in range(0, n, rows):
        here = slice(start, start + rows)
        chunk = _Chunk(hidden[here], embedding, labels[here], wanted)
        nats[here] = chunk.nats()
        if wanted:
            chunk.push_back(of_hidden[here], of_embedding, first=start == 0)
        # Else its logits would live beside those of the next one.
        del chunk
    if wanted and n == 0:
        of_embedding.zero_()
    return nats, of_hidden, of_embedding


class _Chunk:
    """The logits of some rows as blocks of words, and what softmax needs of each row."""

    def __init__(self, x: Tensor, embedding: Tensor, labels: Tensor, keep: bool):
        self.x, self.labels = x, labels
        words = max(1, BLOCK_LOGITS // len(x))
        self.weights = embedding.split(words)
        self.firsts = range(0, len(embedding), words)
        self.largest, self.total = x.new_full((len(x),), -torch.inf), x.new_zeros(len(x))
        self.of_label = x.new_full((len(x),), torch.nan)
        self.blocks = []
        for weight, first in zip(self.weights, self.firsts, strict=True):
            z = product(x, weight)
            kernels.absorb(*arrays(z, labels), first, *arrays(self.largest, self.total, self.of_label))
            if keep:
                self.blocks.append(z)

    def nats(self) -> Tensor:
        """log sum exp - the label's logit; 0 without a label."""
        nats = self.total.log() - (self.of_label - self.largest)
        return nats.masked_fill(self.labels == IGNORED_LABEL, 0.0)

    def push_back(self, of_x: Tensor, of_embedding: Tensor, first: bool) -> None:
        """Write the gradient of the rows, and write or add that of the embedding."""
        of_x.zero_()
        for z, weight, begin in zip(self.blocks, self.weights, self.firsts, strict=True):
            kernels.to_gradients(*arrays(z, self.labels), begin, *arrays(self.largest, self.total))
            back, of_weight = gradients(self.x, weight, z)
            of_x += back
            target = of_embedding[begin : begin + len(weight)]
            target.copy_(of_weight) if first else target.add_(of_weight)
