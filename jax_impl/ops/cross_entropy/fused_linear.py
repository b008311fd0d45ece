"""Linear layer and cross-entropy in one, with their gradients. Twin: torch_impl. Truth: spec/reference/model.py.

The gradient of -log softmax(logits)[label] by the logits needs nothing that comes after it but one factor, the gradient
of the sum of nats. So the forward pass turns each tile of logits into its gradients where it stands, and drops it; the
backward pass multiplies what was kept, n d + v d numbers, by that factor. Source: FusedLinearCrossEntropy of Liger
Kernel (Hsu et al. 2024); a row's statistics come from one pass over its logits (Milakov & Gimelshein 2018).

A tile has so many rows and so many words of the vocabulary. Where it has all words its logits are made once. Where it
has some of them they are made twice, for the statistics and for the gradients, as in Wijmans et al. 2024 ("Cut Your
Losses in Large-Vocabulary Language Models"): a fourth product, but a tile small enough for a TPU's vector memory never
crosses the HBM. Base on a v6e, 65,536 tokens: 10 GB with four products, 31 GB with three.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spec.axes import ND, SCALAR, VD, N
from spec.inputs import IGNORED_LABEL

ALIGNMENT = 128
"""Blocks of words are multiples of it: the lanes of a TPU's register."""
TPU_ROWS = 4096
"""Rows of a tile on a TPU: each chunk of rows reads and writes the whole gradient of the embedding."""
TPU_WORDS = 4224
"""Words of a tile on a TPU: with TPU_ROWS 66 MiB of float32 logits, in a vector memory of 128 MiB."""
CHUNK_FACTOR = 4
"""Times as many logits a chunk on a CPU: each chunk reads and writes the whole gradient of the embedding."""

_Pair = tuple[Array, Array]
_Several = tuple[Array, ...]


class _Tiling(NamedTuple):
    """How the logits are cut, and in what dtypes they are made and kept; static."""

    rows: int
    words: int
    blocks: int
    v: int
    compute: Any
    wide: Any
    narrow: bool


class _Chunk(NamedTuple):
    """So many rows of operands and labels, and what is taken off their logits before these are rounded, if they are."""

    x_rd: Array
    labels_r: Array
    shift_r: Array | None


def fused_linear_cross_entropy(
    hidden_nd: Float[Array, ND],
    embedding_vd: Float[Array, VD],
    labels_n: Int[Array, N],
    compute: jnp.dtype,
    chunk_logits: int,
    block_words: int | None = None,
    narrow_logits: bool = False,
) -> Float[Array, SCALAR]:
    """Sum of -log softmax(hidden E^T)[label] over the labels that are not -100; no logits are kept for its gradients.

    Where a gradient is wanted, both gradients are computed with the sum; elsewhere the sum alone. A label that is
    neither -100 nor a word makes the sum NaN.

    Args:
        hidden_nd: [n, d], float32 or float64, which are the dtypes of sums and statistics too.
        embedding_vd: [v, d], the same dtype.
        labels_n: integers, [n].
        compute: dtype that the operands of all products are rounded to, the gradient of the logits among them.
        chunk_logits: most logits at a time; one row at least.
        block_words: most words at a time, their logits made twice; None is all, their logits made once.
        narrow_logits: between product and softmax keep logits, less the label's, in the compute dtype. Half the bytes
            where logits are made once; where a label costs 14 nats, 2.3 times the error of rounded operands alone.
    """
    (n, _), v = hidden_nd.shape, embedding_vd.shape[0]
    blocks = 1 if block_words is None else -(-v // block_words)
    words = v if blocks == 1 else -(-v // blocks // ALIGNMENT) * ALIGNMENT
    # Chunks of one length, for the rows that fill up the last of them are computed like any other.
    chunks = -(-max(n, 1) // max(1, chunk_logits // words))
    rows = -(-max(n, 1) // chunks)
    dtypes = jnp.dtype(compute), hidden_nd.dtype
    tiling = _Tiling(rows, words, -(-v // words), v, *dtypes, narrow_logits and dtypes[0] != dtypes[1])
    nats: Array = _cross_entropy(hidden_nd, embedding_vd, labels_n, tiling)
    return nats


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(hidden_nd: Array, embedding_vd: Array, labels_n: Array, tiling: _Tiling) -> Array:
    blocks = _blocks(embedding_vd, tiling)

    def add(nats: Array, rows: _Pair) -> tuple[Array, None]:
        chunk = _chunk(*rows, blocks, tiling)
        summary, _ = _fold(partial(_online_softmax, chunk, tiling), _nothing(tiling), blocks)
        return nats + _nats(summary, chunk, tiling)[1], None

    return jax.lax.scan(add, tiling.wide.type(0), _rows(hidden_nd, labels_n, tiling))[0]


def _forward(hidden_nd: Array, embedding_vd: Array, labels_n: Array, tiling: _Tiling) -> tuple[Array, _Pair]:
    """The nats; kept are both gradients, that of the embedding with the rows that fill up its last block."""
    n, d = hidden_nd.shape
    blocks = _blocks(embedding_vd, tiling)

    def step(carry: _Pair, rows: _Pair) -> tuple[_Pair, Array]:
        nats, grad_embedding_kwd = carry
        chunk = _chunk(*rows, blocks, tiling)
        summary, kept = _fold(partial(_online_softmax, chunk, tiling), _nothing(tiling), blocks)
        log_total_r, more = _nats(summary, chunk, tiling)
        grad_x_rd = jnp.zeros((tiling.rows, d), tiling.wide)
        accumulate = partial(_accumulate_gradients, chunk, log_total_r, kept, tiling)
        (grad_x_rd, grad_embedding_kwd), _ = _fold(accumulate, (grad_x_rd, grad_embedding_kwd), blocks)
        return (nats + more, grad_embedding_kwd), grad_x_rd

    start = tiling.wide.type(0), jnp.zeros((tiling.blocks, tiling.words, d), tiling.wide)
    (nats, grad_embedding_kwd), grad_hidden_crd = jax.lax.scan(step, start, _rows(hidden_nd, labels_n, tiling))
    return nats, (grad_hidden_crd.reshape(-1, d)[:n], grad_embedding_kwd.reshape(-1, d))


def _backward(tiling: _Tiling, kept: _Pair, grad_nats: Array) -> tuple[Array, Array, None]:
    grad_hidden_nd, grad_embedding_vd = kept
    return grad_nats * grad_hidden_nd, grad_nats * grad_embedding_vd[: tiling.v], None


_cross_entropy.defvjp(_forward, _backward)


def _rows(hidden_nd: Array, labels_n: Array, tiling: _Tiling) -> _Pair:
    """Operands [c, r, d] and labels [c, r]; rows that fill up the last chunk are ignored."""
    n, d = hidden_nd.shape
    fill = -n % tiling.rows if n else 1
    hidden_nd = jnp.pad(hidden_nd.astype(tiling.compute), ((0, fill), (0, 0)))
    labels_n = jnp.pad(labels_n, (0, fill), constant_values=IGNORED_LABEL)
    return hidden_nd.reshape(-1, tiling.rows, d), labels_n.reshape(-1, tiling.rows)


def _blocks(embedding_vd: Array, tiling: _Tiling) -> _Pair:
    """Operands [k, w, d] and the index of each block's first word [k]."""
    fill = tiling.blocks * tiling.words - tiling.v
    operand_vd = jnp.pad(embedding_vd.astype(tiling.compute), ((0, fill), (0, 0)))
    return operand_vd.reshape(tiling.blocks, tiling.words, -1), jnp.arange(
        tiling.blocks, dtype=jnp.int32
    ) * tiling.words


def _chunk(x_rd: Array, labels_r: Array, blocks: _Pair, tiling: _Tiling) -> _Chunk:
    """Logits that are rounded are rounded as differences to the label's: where that is likely they are small."""
    if not tiling.narrow:
        return _Chunk(x_rd, labels_r, None)
    label_weight_rd = blocks[0].reshape(-1, x_rd.shape[1])[jnp.clip(labels_r, 0, tiling.v - 1)]
    return _Chunk(x_rd, labels_r, (x_rd.astype(tiling.wide) * label_weight_rd.astype(tiling.wide)).sum(axis=1))


def _fold(
    step: Callable[[_Several, _Pair], tuple[_Several, Array | None]], start: _Several, blocks: _Pair
) -> tuple[_Several, Array | None]:
    """`step` over the blocks of words; what it has beside its sum is kept of a single block, its logits."""
    if len(blocks[0]) == 1:
        return step(start, (blocks[0][0], blocks[1][0]))
    return jax.lax.scan(lambda so_far, block: (step(so_far, block)[0], None), start, blocks)


def _logits(chunk: _Chunk, block: _Pair, tiling: _Tiling) -> Array:
    """Of one tile as they are kept, [r, w]; of what only fills up the last block too."""
    z_rw = _matmul(chunk.x_rd, block[0], (1, 1), tiling)
    return z_rw if chunk.shift_r is None else (z_rw - chunk.shift_r[:, None]).astype(tiling.compute)


def _nothing(tiling: _Tiling) -> _Several:
    """Largest logit, sum of exp(logit - largest) and the label's logit, of no words."""
    zeros_r = jnp.zeros(tiling.rows, tiling.wide)
    return zeros_r - jnp.inf, zeros_r, zeros_r


def _online_softmax(chunk: _Chunk, tiling: _Tiling, summary: _Several, block: _Pair) -> tuple[_Several, Array]:
    """The summary with one more block of words, in the accumulation dtype whatever the logits are kept in."""
    largest_r, total_r, label_logit_r = summary
    kept_rw = _logits(chunk, block, tiling)
    z_rw = kept_rw.astype(tiling.wide)
    if tiling.blocks * tiling.words > tiling.v:
        z_rw = jnp.where(_columns(tiling) < tiling.v - block[1], z_rw, -jnp.inf)
    now_r = jnp.maximum(largest_r, z_rw.max(axis=1))
    total_r = total_r * jnp.exp(largest_r - now_r) + jnp.exp(z_rw - now_r[:, None]).sum(axis=1)
    label_logit_r = label_logit_r + jnp.where(_is_label(chunk, block, tiling), z_rw, 0.0).sum(axis=1)
    return (now_r, total_r, label_logit_r), kept_rw


def _nats(summary: _Several, chunk: _Chunk, tiling: _Tiling) -> _Pair:
    """log sum exp of each row's logits, [r], and the sum of nats."""
    largest_r, total_r, label_logit_r = summary
    log_total_r = largest_r + jnp.log(total_r)
    known_r = (chunk.labels_r >= 0) & (chunk.labels_r < tiling.v)
    nats_r = jnp.where(known_r, log_total_r - label_logit_r, jnp.nan)
    return log_total_r, jnp.where(chunk.labels_r == IGNORED_LABEL, 0.0, nats_r).sum()


def _accumulate_gradients(
    chunk: _Chunk, log_total_r: Array, kept_rw: Array | None, tiling: _Tiling, gradients: _Several, block: _Pair
) -> tuple[_Several, None]:
    """The gradients with one more block of words; softmax - one hot is rounded to the compute dtype."""
    grad_x_rd, grad_embedding_kwd = gradients
    weight_wd, first = block
    z_rw = (_logits(chunk, block, tiling) if kept_rw is None else kept_rw).astype(tiling.wide)
    p_rw = jnp.exp(z_rw - log_total_r[:, None]) - _is_label(chunk, block, tiling).astype(tiling.wide)
    # One mask for rows that are ignored and for columns beyond the vocabulary.
    end_r = jnp.where(chunk.labels_r == IGNORED_LABEL, 0, tiling.v) - first
    grad_z_rw = jnp.where(_columns(tiling) < end_r[:, None], p_rw, 0.0).astype(tiling.compute)
    # As a scatter, which XLA adds where the product is made; a slice that is updated it copies first.
    grad_embedding_kwd = grad_embedding_kwd.at[first // tiling.words].add(
        _matmul(grad_z_rw, chunk.x_rd, (0, 0), tiling)
    )
    return (grad_x_rd + _matmul(grad_z_rw, weight_wd, (1, 0), tiling), grad_embedding_kwd), None


def _is_label(chunk: _Chunk, block: _Pair, tiling: _Tiling) -> Array:
    column_r = chunk.labels_r - block[1].astype(chunk.labels_r.dtype)
    return _columns(tiling).astype(column_r.dtype) == column_r[:, None]


def _columns(tiling: _Tiling) -> Array:
    """The column of each entry of a tile; of one dimension it would be an array to read, of two it is none."""
    return jax.lax.broadcasted_iota(jnp.int32, (tiling.rows, tiling.words), 1)


def _matmul(a: Array, b: Array, axes: tuple[int, int], tiling: _Tiling) -> Array:
    """a b, summed over one axis of each, operands as they are, sums and result in the wide dtype."""
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision="highest", preferred_element_type=tiling.wide)
