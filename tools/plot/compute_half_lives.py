"""Half-lives of the channels of a state, computed: in tokens, as the parameters alone set them, and as a text does."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from spec.config import LiquidNetConfig, LiquidSSMConfig, ModelConfig
from spec.mixers.liquid_ssm.hippo import NORMAL_RATE, legs_rates
from spec.mixers.liquid_ssm.reference import clock
from spec.reference import activations
from spec.reference.blocks import Weights, within


def half_lives(parameters: Mapping[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """The tokens after which half of each channel is left where the content says nothing: by the biases alone.

        LiquidNet      ln 2 / (softplus(b_delta) + delta_min)
        Liquid SSM     ln 2 / ln |m_k|,   m_k = 1 + dt (1 / tau_base,k - A_kk),   dt = min(target_dt, min tau_base / 10)

    m_k are the eigenvalues of the matrix that a step of the Liquid SSM solves with, so that a mode is divided by |m_k|
    at each token: what the model computes, where exp(Re(A_kk) dt) would be what that approximates. The matrix is
    diagonal or lower triangular, so that its diagonal holds them either way. The modes of a dense state are not its
    numbers, which the triangle couples: those can grow for a while before they decay so.

    Args:
        parameters: every parameter by path, of any dtype.
        config: the model.

    Returns:
        float64 [l, n], n channels of each layer's state; the real and the imaginary part of a mode have the same.
        Infinite where a channel never forgets.
    """
    nothing = np.zeros((1, 1, _inputs(config)))
    at_rest = (nothing, np.zeros((1, 1, config.d_state)))
    return _halved([_rates(_mixer(parameters, i), config, *at_rest) for i in range(config.n_layers)])


def half_lives_on_text(
    parameters: Mapping[str, np.ndarray], config: ModelConfig, tokens_bt: np.ndarray, resets_bt: np.ndarray
) -> np.ndarray:
    """The tokens after which half of each channel is left on a text: ln 2 / mean_t(rate_t).

    Decays multiply, so that the mean of their rates is exact: over the text a channel decays as one of this half-life.
    That holds for a dense Liquid SSM too, since the diagonal of a product of triangular matrices is that of their
    diagonals, with the clock as the text has set it.

    Args:
        parameters, config: as in `half_lives`.
        tokens_bt: the text, [b, t].
        resets_bt: true where a document begins, [b, t]; the forgetting there is not counted.

    Returns:
        float64 [l, n].
    """
    inside = activations(parameters, config, tokens_bt, resets=resets_bt)
    rates = []
    for i in range(config.n_layers):
        states_btn = inside.get(f"blocks.{i}.mixer.states", np.zeros((*tokens_bt.shape, 0)))
        previous_btn = np.where(resets_bt[..., None], 0.0, np.roll(states_btn, 1, axis=1))
        previous_btn[:, 0] = 0.0
        rates.append(_rates(_mixer(parameters, i), config, inside[f"blocks.{i}.mixer.input"], previous_btn))
    return _halved(rates)


def _halved(rates: list[np.ndarray]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return math.log(2.0) / np.stack([rate_btn.mean(axis=(0, 1)) for rate_btn in rates])


def _mixer(parameters: Mapping[str, np.ndarray], layer: int) -> Weights:
    weights = within(parameters, f"blocks.{layer}.mixer.")
    return {name: np.asarray(array, np.float64) for name, array in weights.items()}


def _inputs(config: ModelConfig) -> int:
    return config.d_state + config.d_tau if isinstance(config, LiquidSSMConfig) else 3 * config.d_model


def _rates(weights: Weights, config: ModelConfig, pre_btx: np.ndarray, previous_btn: np.ndarray) -> np.ndarray:
    """-ln |factor| of each channel at each token, [b, t, n], from pre-activations and the states before."""
    if isinstance(config, LiquidNetConfig):
        d = config.d_model
        return np.logaddexp(0.0, pre_btx[..., d : 2 * d] + weights["decay_bias"]) + config.delta_min
    now = clock(previous_btn, pre_btx[..., config.d_state :], weights, config, None)
    stretch_m = np.exp(2.0 * weights["log_scale"])
    if config.state == "dense":
        return np.log1p(now.dt * (1.0 / now.tau + stretch_m * legs_rates(config.d_state, config.hippo)))
    along = now.dt * (1.0 / now.tau + NORMAL_RATE * stretch_m)
    turn = now.dt * stretch_m * weights["frequency"]
    rate_btm = 0.5 * np.log1p(2.0 * along + along * along + turn * turn)
    return np.concatenate([rate_btm, rate_btm], axis=-1)
