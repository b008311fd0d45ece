"""Exploration noise: a pure function of seed and sample, so that every backend and any number of processes agree."""

from __future__ import annotations

import numpy as np

from spec.init import stream
from spec.mixers.liquid_ssm.config import LiquidSSMConfig


def exploration_noise(config: LiquidSSMConfig, seed: int, sample: int, seq_len: int) -> np.ndarray:
    """xi of one training sample: standard normal, [t, l, n], float32, from a stream of its own.

    Args:
        config: layers and size of the state.
        seed: of the run.
        sample: its number in the run, from 0: another one at every step and row.
        seq_len: tokens a sample.
    """
    shape = (seq_len, config.n_layers, config.d_state)
    return stream(seed, f"exploration {sample}").standard_normal(shape, dtype=np.float32)
