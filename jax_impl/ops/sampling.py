"""One token a row from logits. Twin: torch_impl. Truth: spec/sampling/reference.py."""

from __future__ import annotations

import numpy as np

from spec.sampling import Sampling
from spec.sampling import sample as sample_in_numpy


def sample(logits_bv: np.ndarray, sampling: Sampling, uniforms_b: np.ndarray) -> np.ndarray:
    """Draw one token a row, see `spec.sampling.sample`.

    Args:
        logits_bv: logits, [b, v].
        sampling: temperature, top-k, top-p and min-p.
        uniforms_b: one uniform a row.

    Raises:
        ValueError: a logit is not finite.
    """
    return sample_in_numpy(logits_bv, sampling, uniforms_b)
