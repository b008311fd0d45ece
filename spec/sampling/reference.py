"""What `draw.py` computes, written down as it is defined: the whole vocabulary sorted, sums one after the other."""

from __future__ import annotations

import numpy as np

from spec.sampling.parameters import Sampling


def sample(logits_bv: np.ndarray, sampling: Sampling, uniforms_b: np.ndarray) -> np.ndarray:
    """See `spec.sampling.draw.sample`.

    Args:
        logits_bv: finite logits, [b, v].
        sampling: temperature, top-k, top-p and min-p.
        uniforms_b: one uniform a row.
    """
    if sampling.temperature == 0.0:
        return logits_bv.argmax(axis=-1)
    below_best = logits_bv.astype(np.float64) - logits_bv.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", under="ignore"):
        weight = np.exp(below_best / sampling.temperature)
    order = np.argsort(-weight, axis=-1, kind="stable")
    if 0 < sampling.top_k < weight.shape[-1]:
        np.put_along_axis(weight, order[:, sampling.top_k :], 0.0, axis=-1)
    if sampling.top_p < 1.0:
        ranked = np.take_along_axis(weight, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked
        outside = before >= sampling.top_p * ranked.sum(axis=-1, keepdims=True)
        np.put_along_axis(weight, order, np.where(outside, 0.0, ranked), axis=-1)
    weight[weight < sampling.min_p * weight.max(axis=-1, keepdims=True)] = 0.0
    cumulative = np.cumsum(weight, axis=-1)
    below = cumulative <= uniforms_b[:, None] * cumulative[:, -1:]
    return below.sum(axis=-1)
