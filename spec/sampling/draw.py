"""One token from logits: what is kept of the vocabulary is selected, never sorted whole. Truth: reference.py."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from spec.sampling.parameters import Sampling

#: Numbers that are sorted at once; of more, those that are needed are found first.
_SORTED = 1 << 10
#: Numbers of a block of short rows: what is computed of them stays in a processor's cache.
_BLOCK = 1 << 16
#: Tokens whose weights are summed at a time before one of them is drawn.
_SEGMENT = 256
_kept = threading.local()


def sample(logits_bv: np.ndarray, sampling: Sampling, uniforms_b: np.ndarray) -> np.ndarray:
    """Draw one token a row by inverting the cumulative distribution, in float64.

    The token of uniform u is the least i with w_0 + ... + w_i > u (w_0 + ... + w_{v-1}), w the weights that are left.
    Temperature, top-k, top-p and min-p in this order, each over what the one before has left, as in transformers'
    `generate`; of equal weights the lower token ids are kept. Penalties and biases belong to the logits: `adjusted`.
    Source: the inversion method, Devroye 1986, section III.2.

    Args:
        logits_bv: logits, [b, v].
        sampling: temperature, top-k, top-p and min-p.
        uniforms_b: one uniform a row.

    Raises:
        ValueError: a logit is not finite.
    """
    _require_finite(logits_bv)
    if sampling.temperature == 0.0:
        return logits_bv.argmax(axis=-1)
    v = logits_bv.shape[-1]
    rows = 1 if v > _SORTED else _BLOCK // v
    blocks = [slice(start, start + rows) for start in range(0, len(logits_bv) or 1, rows)]
    return np.concatenate([_sample(logits_bv[block], sampling, uniforms_b[block]) for block in blocks])


def not_finite() -> ValueError:
    """What is told of logits that are not finite."""
    return ValueError("the model produced a logit that is not finite; its weights are broken; take others")


def _require_finite(logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise not_finite()


def _sample(logits_bv: np.ndarray, sampling: Sampling, uniforms_b: np.ndarray) -> np.ndarray:
    weight_bv, scratch_bv = _buffers(logits_bv.shape)
    np.subtract(logits_bv, logits_bv.max(axis=-1, keepdims=True), out=weight_bv, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):  # a temperature near 0 takes the others to exp(-inf)
        weight_bv /= sampling.temperature
        np.exp(weight_bv, out=weight_bv)
    if sampling.top_k > 0 or sampling.top_p < 1.0:
        np.copyto(scratch_bv, weight_bv)
    if 0 < sampling.top_k < weight_bv.shape[-1]:
        scratch_bv = _keep_top_k(weight_bv, sampling.top_k, scratch_bv)
    if sampling.top_p < 1.0:
        _keep_top_p(weight_bv, sampling.top_p, scratch_bv)
    if sampling.min_p > 0.0:
        weight_bv *= weight_bv >= sampling.min_p  # the most likely token has weight 1
    return _inverted(weight_bv, uniforms_b)


def _buffers(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of the shape to work in, this thread's own: those of a vocabulary are so large that the system would
    clear new memory for them at every token, which takes as long as the rest."""
    if getattr(_kept, "shape", None) != shape:
        _kept.shape, _kept.arrays = shape, (np.empty(shape), np.empty(shape))
    return _kept.arrays


def _keep_top_k(weight_bv: np.ndarray, k: int, copy_bv: np.ndarray) -> np.ndarray:
    """The weights of all but the k largest of a row become 0; returns the k largest, in any order."""
    place = weight_bv.shape[-1] - k
    copy_bv.partition(place, axis=-1)
    _keep_largest(weight_bv, copy_bv[:, place], np.full(len(weight_bv), k))
    return copy_bv[:, place:]


def _keep_top_p(weight_bv: np.ndarray, p: float, copy_bk: np.ndarray) -> None:
    """The same of all but the smallest set of largest weights that holds at least p of the whole, which `copy` has."""
    needed_b = p * weight_bv.sum(axis=-1)
    count, mass, among_bk = _narrowed(copy_bk, needed_b)
    ranked_bk = np.sort(among_bk, axis=-1)[:, ::-1]
    before_bk = mass + np.cumsum(ranked_bk, axis=-1) - ranked_bk
    # One at least: what `mass` was rounded by may have it seem that none is needed.
    more_b = np.maximum((before_bk < needed_b[:, None]).sum(axis=-1), 1)
    _keep_largest(weight_bv, np.take_along_axis(ranked_bk, more_b[:, None] - 1, axis=-1)[:, 0], count + more_b)


def _narrowed(weight_bk: np.ndarray, needed_b: np.ndarray) -> tuple[int, float, np.ndarray]:
    """How many of the largest weights surely belong to those that are needed, their sum, and the next ones.

    Of one row, halved in place as in quickselect (Hoare 1961), so that it takes time in proportion to k; several rows
    are left whole.
    """
    count, mass = 0, 0.0
    while len(weight_bk) == 1 and weight_bk.size > _SORTED:
        half = weight_bk.size // 2
        weight_bk.partition(half, axis=-1)
        through = mass + float(weight_bk[0, half:].sum())
        if through >= needed_b[0]:
            weight_bk = weight_bk[:, half:]
        else:
            count, mass, weight_bk = count + weight_bk.size - half, through, weight_bk[:, :half]
    return count, mass, weight_bk


def _keep_largest(weight_bv: np.ndarray, least_b: np.ndarray, count_b: np.ndarray) -> None:
    """All but the `count` largest weights of a row, of which `least` is the smallest, become 0.

    Of equal ones the first are kept.
    """
    kept_bv = weight_bv >= least_b[:, None]
    if np.count_nonzero(kept_bv) > count_b.sum():
        equal_bv = weight_bv == least_b[:, None]
        missing_b = count_b - (weight_bv > least_b[:, None]).sum(axis=-1)
        kept_bv &= ~equal_bv | (np.cumsum(equal_bv, axis=-1) <= missing_b[:, None])
    weight_bv *= kept_bv  # a processor guesses wrong at every other one, where it is asked which


def _inverted(weight_bk: np.ndarray, uniforms_b: np.ndarray) -> np.ndarray:
    """The least index whose cumulative weight exceeds u times the whole: first the segment of it, then its place."""
    k = weight_bk.shape[-1]
    starts = np.arange(0, k, _SEGMENT)
    through_bs = np.cumsum(np.add.reduceat(weight_bk, starts, axis=-1), axis=-1)
    target_b = uniforms_b * through_bs[:, -1]
    segment_b = np.minimum((through_bs <= target_b[:, None]).sum(axis=-1), len(starts) - 1)
    before_b = np.where(segment_b > 0, np.take_along_axis(through_bs, segment_b[:, None] - 1, axis=-1)[:, 0], 0.0)
    index_bi = segment_b[:, None] * _SEGMENT + np.arange(min(_SEGMENT, k))
    inside_bi = np.take_along_axis(weight_bk, np.minimum(index_bi, k - 1), axis=-1)
    inside_bi[index_bi >= k] = 0.0
    below_b = (before_b[:, None] + np.cumsum(inside_bi, axis=-1) <= target_b[:, None]).sum(axis=-1)
    # The two sums are rounded apart: a target at the very end of the segment is its last token's.
    last_b = inside_bi.shape[-1] - 1 - (inside_bi[:, ::-1] > 0.0).argmax(axis=-1)
    return segment_b * _SEGMENT + np.minimum(below_b, last_b)


def adjusted(logits_v: np.ndarray, sampling: Sampling, counts: Mapping[int, int]) -> np.ndarray:
    """Logits with biases added and penalties taken away, float64; the logits themselves where there are none.

    l_i + bias_i - presence_penalty [n_i > 0] - frequency_penalty n_i, n_i how often token i was drawn so far.
    Source: OpenAI's API, "Frequency and presence penalties".

    Args:
        logits_v: logits, [v].
        sampling: biases and penalties.
        counts: how often each token was drawn, those that were.

    Raises:
        ValueError: a bias of a token outside the vocabulary.
    """
    penalized = counts if sampling.presence_penalty or sampling.frequency_penalty else {}
    if not sampling.logit_bias and not penalized:
        return logits_v
    logits_v = logits_v.astype(np.float64)
    for token, bias in sampling.logit_bias:
        if token >= len(logits_v):
            raise ValueError(f"logit_bias names token {token}; the vocabulary has {len(logits_v)}")
        logits_v[token] += bias
    for token, count in penalized.items():
        logits_v[token] -= sampling.presence_penalty + sampling.frequency_penalty * count
    return logits_v


def logprobs(logits_v: np.ndarray, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """ln p of a token, and of the `count` most likely ones, best first, of equal ones the lower ids: log-softmax.

    l_i - m - ln sum_j exp(l_j - m), m the largest logit, in float64.

    Args:
        logits_v: logits, [v].
        token: an id.
        count: how many of the most likely ones.

    Raises:
        ValueError: a logit is not finite.
    """
    _require_finite(logits_v)
    logits_v = logits_v.astype(np.float64)
    logprob_v = logits_v - logits_v.max()
    logprob_v -= np.log(np.exp(logprob_v).sum())
    v, count = len(logprob_v), min(count, len(logprob_v))
    if count == 0:
        return float(logprob_v[token]), ()
    least = np.partition(logprob_v, v - count)[v - count]
    likely = np.flatnonzero(logprob_v >= least)
    ranked = likely[np.argsort(-logprob_v[likely], kind="stable")][:count]
    return float(logprob_v[token]), tuple((int(index), float(logprob_v[index])) for index in ranked)
