"""One token a row from logits. Twin: jax_impl. Truth: spec/sampling/reference.py."""

from __future__ import annotations

import threading

import numpy as np

from spec.sampling import Sampling, not_finite
from spec.sampling import sample as sample_in_numpy
from torch_impl.ops.devices import HAS_NUMBA

if HAS_NUMBA:
    from torch_impl.kernels.numba import sampling as kernels
# Words of a vocabulary below which NumPy has drawn a token before threads are awake.
_SMALL = 1 << 12
# Of a lower temperature the inverse may be infinite; 0 takes the most likely token.
_LEAST_TEMPERATURE = 1e-300
_memory = threading.local()


def sample(logits_bv: np.ndarray, sampling: Sampling, uniforms_b: np.ndarray) -> np.ndarray:
    """Draw one token a row, see `spec.sampling.sample`.

    A kernel's weights differ from those of NumPy by the rounding of an exponential and of sums.

    Args:
        logits_bv: logits, [b, v].
        sampling: temperature, top-k, top-p and min-p.
        uniforms_b: one uniform a row.

    Raises:
        ValueError: a logit is not finite.
    """
    takes = HAS_NUMBA and logits_bv.shape[-1] >= _SMALL and logits_bv.dtype in (np.float32, np.float64)
    if not takes or sampling.temperature < _LEAST_TEMPERATURE:
        return sample_in_numpy(logits_bv, sampling, uniforms_b)
    return np.array([_token(logit_v, sampling, u) for logit_v, u in zip(logits_bv, uniforms_b, strict=True)], np.int64)


def _token(logit_v: np.ndarray, sampling: Sampling, uniform: float) -> int:
    memory = _memory_of(len(logit_v))
    inverse, top_p, min_p = 1.0 / float(sampling.temperature), float(sampling.top_p), float(sampling.min_p)
    kernels.sample(np.ascontiguousarray(logit_v), *memory, inverse, int(sampling.top_k), top_p, min_p, float(uniform))
    token = int(memory[-1][0])
    if token == kernels.NO_TOKEN:
        raise not_finite()
    return token


def _memory_of(v: int) -> tuple[np.ndarray, ...]:
    """This thread's own, kept: the system would clear new memory at every token, which takes as long as the rest."""
    if getattr(_memory, "v", None) != v:
        segments = -(-v // kernels.SEGMENT)
        shapes = (v, v, segments, (kernels.PARTS, kernels.BUCKETS), kernels.PARTS)
        _memory.v, _memory.arrays = v, (*map(np.empty, shapes), np.empty(1, np.int64))
    return _memory.arrays
