"""Initial weights: the same bits on every machine, in any order, for every backend."""

from __future__ import annotations

import hashlib

import numpy as np

from spec.config import ModelConfig
from spec.parameters import parameter_table


def initial_parameters(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """The initial value of every parameter, float32, by path.

    Linear and embedding weights are N(0, 0.02), output projections zero, norms one; what else a mixer has begins as its
    family says in its rows of the parameter table.
    Each parameter draws from a Philox stream of its own, keyed by the seed and the SHA-256 of its
    path, so its bits depend on neither order, backend, device count nor sharding.

    Args:
        config: the model.
        seed: 0 <= seed < 2**64.

    Raises:
        ValueError: seed out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return {row.path: row.init(stream(seed, row.path), row.shape) for row in parameter_table(config)}


def stream(seed: int, name: str) -> np.random.Generator:
    """The counter-based stream of one named quantity: Philox keyed by the seed and the name's SHA-256."""
    digest = hashlib.sha256(name.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
