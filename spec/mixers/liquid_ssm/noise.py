"""Exploration noise: a pure function of seed and sample, so that every backend and any number of processes agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spec.config import LiquidSSMConfig, ModelConfig, TrainingConfig
from spec.data import WHOLE, Batch, BatchShard
from spec.init import stream


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


def with_noise(
    batch: Batch, config: ModelConfig, training: TrainingConfig, samples_consumed: int, shard: BatchShard = WHOLE
) -> Batch:
    """The share of the batch that follows `samples_consumed` samples, with its noise where the model explores."""
    if not isinstance(config, LiquidSSMConfig) or config.exploration_rate == 0.0:
        return batch
    rows = np.arange(training.batch_size)[shard.of_rows(training.batch_size)]
    noise = [exploration_noise(config, training.seed, samples_consumed + int(row), training.seq_len) for row in rows]
    return replace(batch, noise=np.stack(noise))
