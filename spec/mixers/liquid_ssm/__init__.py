"""The Liquid SSM in NumPy: a state space model in continuous time whose time constants follow the content.

    (I + dt_t (diag(1 / tau_t) - A)) x_t = x_{t-1} + dt_t (B u_t + exploration_rate xi_t)        y_t = C x_t + D u_t

`reference.py` has the equations, `hippo.py` the matrix A. Sources of A: Gu et al. 2020 (HiPPO), Gu et al. 2022 (S4D).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spec.config import TrainingConfig
from spec.init import stream
from spec.mixers.base import (
    STANDARD_DEVIATION,
    Arrays,
    Masks,
    Mixed,
    MixerFamily,
    Parameter,
    Preset,
    Side,
    SideInput,
    normal,
    zeros,
)
from spec.mixers.liquid_ssm.config import LiquidSSMConfig
from spec.mixers.liquid_ssm.hippo import NORMAL_RATE, legs_frequencies, legs_rates
from spec.mixers.liquid_ssm.reference import Evolved, clock, liquid_states, liquid_states_adjoint

__all__ = ["FAMILY", "LiquidSSMConfig", "LiquidSSMFamily", "SavedMixer", "log_time_constants"]


def log_time_constants(config: LiquidSSMConfig) -> np.ndarray:
    """log tau_base, evenly spaced from tau_min to tau_max over the modes; float32."""
    return np.linspace(math.log(config.tau_min), math.log(config.tau_max), config.modes).astype(np.float32)


class SavedMixer(NamedTuple):
    """What the mixer's adjoint needs."""

    input: np.ndarray
    weights: Arrays
    evolved: Evolved


PRESETS = {
    "ssm-nano": Preset(
        LiquidSSMConfig(50257, d_model=128, d_ff=344, n_layers=4, max_seq_len=64, d_state=128, state="diagonal"),
        TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    ),
    "ssm-small": Preset(
        LiquidSSMConfig(50257, d_model=384, d_ff=1024, n_layers=6, max_seq_len=512, d_state=384, state="diagonal"),
        TrainingConfig(steps=4069, batch_size=48, seq_len=512, peak_lr=6e-4, warmup_steps=400),
    ),
}


class LiquidSSMFamily(MixerFamily[LiquidSSMConfig]):
    """y = C x + D u over the states x, the rows of `input` = drive | time constants."""

    name, title, operation, place = "liquid_ssm", "Liquid SSM", "liquid_ssm", 1
    Config, presets = LiquidSSMConfig, PRESETS
    half_lives_of = "time constants and rates"
    activations, recurrence = ("input", "states", "output"), "states"
    formulas = {  # noqa: RUF012
        "mixer.input": "drive | tau = W z",
        "mixer.states": "linearly implicit Euler steps: all h",
        "mixer.output": "C h",
        "mlp_norm": "RMSNorm(x + s y), y = C h + D z",
    }
    # The sum after the mixer has no name, and is met in the norm that it enters.
    enters = {  # noqa: RUF012
        "mixer.tau_state.weight": "mixer.states",
        "mixer.tau_output.weight": "mixer.states",
        "mixer.log_tau": "mixer.states",
        "mixer.log_scale": "mixer.states",
        "mixer.frequency": "mixer.states",
        "mixer.skip": "mlp_norm",
    }
    shape_fields = ("d_state", "d_tau", "state")
    constants = ("eta", "target_dt", "hippo")

    def parameters(self, config: LiquidSSMConfig) -> tuple[Parameter, ...]:
        d, n, m, h = config.d_model, config.d_state, config.modes, config.d_tau
        # B is N(0, 1 / sqrt(d)), for a drive of variance 1.
        deviation = np.array([1.0 / math.sqrt(d)] * n + [STANDARD_DEVIATION] * h, np.float32)[:, None]
        frequency = Parameter("frequency", (m,), ("m",), lambda *_: legs_frequencies(n), False)
        return (
            Parameter(
                "input.weight",
                (n + h, d),
                ("drive | tau", "d"),
                lambda draw, shape: normal(draw, shape, deviation),
                True,
                rows=(n, h),
            ),
            Parameter("tau_state.weight", (h, n), ("h", "n"), normal, True),
            Parameter("tau_output.weight", (m, h), ("m", "h"), normal, True),
            Parameter("log_tau", (m,), ("m",), lambda *_: log_time_constants(config), False),
            Parameter("log_scale", (m,), ("m",), zeros, False),
            *([frequency] if config.state == "diagonal" else []),
            Parameter("output.weight", (d, n), ("d", "n"), zeros, True),
            Parameter("skip", (d,), ("d",), zeros, False),
        )

    def state_size(self, config: LiquidSSMConfig) -> int:
        return config.d_state

    def small_config(self) -> LiquidSSMConfig:
        """One that explores: the noise counts."""
        return replace(super().small_config(), exploration_rate=0.5)

    def side_inputs(self, config: LiquidSSMConfig) -> tuple[SideInput, ...]:
        """xi in training, and the time since the token before in units of its usual distance."""
        return SideInput("noise", ("l", "b", "t", "n")), SideInput("dt_scale", ("b", "t"), alias="gaps", least=0.0)

    def training_side_inputs(
        self, config: LiquidSSMConfig, seed: int, sample: int, seq_len: int
    ) -> dict[str, np.ndarray]:
        """xi where the model explores: standard normal, [t, l, n], float32, from a stream of the sample's own."""
        if config.exploration_rate == 0.0:
            return {}
        shape = (seq_len, config.n_layers, config.d_state)
        return {"noise": stream(seed, f"exploration {sample}").standard_normal(shape, dtype=np.float32)}

    def forward(
        self,
        z_btd: np.ndarray,
        weights: Arrays,
        config: LiquidSSMConfig,
        state_bn: np.ndarray | None,
        masks: Masks,
        side: Side,
    ) -> Mixed:
        pre_btx = z_btd @ weights["input.weight"].T
        more = side.get("noise"), side.get("dt_scale")
        states_btn, last_bn, evolved = liquid_states(pre_btx, weights, config, state_bn, *masks, *more)
        output_btd = states_btn @ weights["output.weight"].T
        inside = {"input": pre_btx, "states": states_btn, "output": output_btd}
        return Mixed(output_btd + weights["skip"] * z_btd, last_bn, SavedMixer(z_btd, weights, evolved), inside)

    def adjoint(
        self, saved: SavedMixer, grad_y_btd: np.ndarray, grad_last_bn: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        weights = saved.weights
        grad_pre, gradients, grad_state = liquid_states_adjoint(
            saved.evolved, grad_y_btd @ weights["output.weight"], grad_last_bn
        )
        gradients = {
            "input.weight": np.einsum("bto,bti->oi", grad_pre, saved.input),
            **gradients,
            "output.weight": np.einsum("bto,bti->oi", grad_y_btd, saved.evolved.states),
            "skip": (grad_y_btd * saved.input).sum(axis=(0, 1)),
        }
        return grad_pre @ weights["input.weight"] + weights["skip"] * grad_y_btd, gradients, grad_state

    def each_alone(
        self, z_btd: np.ndarray, weights: Arrays, config: LiquidSSMConfig, given: Arrays
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        states_btn, last_bn, _ = liquid_states(given["input"], weights, config)
        found = {
            "input": z_btd @ weights["input.weight"].T,
            "states": states_btn,
            "output": given["states"] @ weights["output.weight"].T,
        }
        return found, last_bn, given["output"] + weights["skip"] * z_btd

    def decay_rates(
        self,
        weights: Arrays,
        config: LiquidSSMConfig,
        inside: Arrays | None = None,
        resets_bt: np.ndarray | None = None,
    ) -> np.ndarray:
        """ln |m_k|, m_k = 1 + dt (1 / tau_k - A_kk): the eigenvalues of the matrix that a step solves with.

        It is diagonal or lower triangular, so that its diagonal holds them either way. The modes of a dense state are
        not its numbers, which the triangle couples: those can grow for a while before they decay so.
        """
        n = config.d_state
        pre_bth, previous_btn = np.zeros((1, 1, config.d_tau)), np.zeros((1, 1, n))
        if inside is not None:
            pre_bth, previous_btn = inside["input"][..., n:], np.roll(inside["states"], 1, axis=1)
            previous_btn[:, 0] = 0.0
            if resets_bt is not None:
                previous_btn = np.where(resets_bt[..., None], 0.0, previous_btn)
        now = clock(previous_btn, pre_bth, weights, config, None)
        stretch_m = np.exp(2.0 * weights["log_scale"])
        if config.state == "dense":
            return np.log1p(now.dt * (1.0 / now.tau + stretch_m * legs_rates(n, config.hippo)))
        along = now.dt * (1.0 / now.tau + NORMAL_RATE * stretch_m)
        turn = now.dt * stretch_m * weights["frequency"]
        rate_btm = 0.5 * np.log1p(2.0 * along + along * along + turn * turn)
        return np.concatenate([rate_btm, rate_btm], axis=-1)


FAMILY = LiquidSSMFamily()
