"""Initial weights: the same bits on every machine, in any order, for every backend."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from spec.config import LiquidSSMConfig, ModelConfig
from spec.mixers.liquid_ssm.hippo import legs_frequencies
from spec.parameters import Parameter, parameter_table

STANDARD_DEVIATION = 0.02
LONGEST_HALF_LIFE = 4096.0


def initial_parameters(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """The initial value of every parameter, float32, by path.

    Linear and embedding weights are N(0, 0.02), output projections zero, norms one, and
    `b_delta = softplus^-1(ln 2 / tau)` with tau log-spaced over [1, 4096] across channels. In a Liquid SSM B is
    N(0, 1 / sqrt(d)), for a drive of variance 1, time constants are log-spaced over [tau_min, tau_max] across modes,
    and frequencies those of LegS.
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
    return {row.path: _draw(row, config, seed) for row in parameter_table(config)}


def stream(seed: int, name: str) -> np.random.Generator:
    """The counter-based stream of one named quantity: Philox keyed by the seed and the name's SHA-256."""
    digest = hashlib.sha256(name.encode()).digest()
    key = np.array([seed, int.from_bytes(digest[:8], "little")], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def half_life_bias(channels: int) -> np.ndarray:
    """`b_delta` such that channel i halves in tau_i tokens at zero input, tau log-spaced over [1, 4096]; float32."""
    exponent = np.arange(channels) / max(channels - 1, 1)
    rate = math.log(2.0) / LONGEST_HALF_LIFE**exponent
    return np.log(np.expm1(rate)).astype(np.float32)


def log_time_constants(config: LiquidSSMConfig) -> np.ndarray:
    """log tau_base, evenly spaced from tau_min to tau_max over the modes; float32."""
    return np.linspace(math.log(config.tau_min), math.log(config.tau_max), config.modes).astype(np.float32)


def _draw(row: Parameter, config: ModelConfig, seed: int) -> np.ndarray:
    if row.init == "zero":
        return np.zeros(row.shape, np.float32)
    if row.init == "one":
        return np.ones(row.shape, np.float32)
    if row.init == "half_life":
        return half_life_bias(*row.shape)
    if isinstance(config, LiquidSSMConfig) and row.init == "time_constant":
        return log_time_constants(config)
    if isinstance(config, LiquidSSMConfig) and row.init == "legs_frequency":
        return legs_frequencies(config.d_state)
    drawn = stream(seed, row.path).standard_normal(row.shape, dtype=np.float32)
    deviation = np.full((row.shape[0], 1), STANDARD_DEVIATION, np.float32)
    if isinstance(config, LiquidSSMConfig) and row.init == "drive":
        deviation[: config.d_state] = 1.0 / math.sqrt(config.d_model)
    return drawn * deviation
