"""LiquidNet: a linear recurrence whose decay follows its input, read out through a gate.

    v = tanh(value)    alpha = exp(-softplus(p + b_delta) - delta_min)    o = sigmoid(gate)      value | p | gate = W z
    h_t = alpha_t h_{t-1} + (1 - alpha_t) v_t            y = W_y (o * h)

Gated linear recurrences of this kind: Qin et al. 2023 (HGRN), De et al. 2024 (Griffin's RG-LRU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.inputs import INEXACT, check_gated_scan
from spec.mixers.base import Arrays, Masks, Mixed, MixerFamily, Parameter, Preset, Side, normal, zeros
from spec.reference.blocks import linear_adjoint
from spec.reference.scan import decay_gates, mask, scan, scan_adjoint, sigmoid
from spec.validation import require_number

LONGEST_HALF_LIFE = 4096.0


@dataclass(frozen=True)
class LiquidNetConfig(ModelConfig):
    """Shape and constants of a LiquidNet.

    Args:
        vocab_size, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig.
        d_model: width of the residual stream and of the state, d.
        delta_min: least decay rate a token; bounds every half-life by ln 2 / delta_min.

    Raises:
        ValueError: a value out of range, named.
    """

    vocab_size: int = 50257
    d_model: int = 384
    d_ff: int = 1024
    n_layers: int = 6
    max_seq_len: int = 512
    delta_min: float = 1e-6
    norm_eps: float = 1e-6

    family: ClassVar[str] = "liquidnet"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("delta_min", self.delta_min, 0.0, 1.0)

    @property
    def d_state(self) -> int:
        """Width of a layer's state."""
        return self.d_model


def half_life_bias(channels: int) -> np.ndarray:
    """`b_delta` such that channel i halves in tau_i tokens at zero input, tau log-spaced over [1, 4096]; float32."""
    exponent = np.arange(channels) / max(channels - 1, 1)
    rate = math.log(2.0) / LONGEST_HALF_LIFE**exponent
    return np.log(np.expm1(rate)).astype(np.float32)


def gated_states(
    pre_btx: np.ndarray,
    decay_bias_d: np.ndarray,
    delta_min: float,
    state_bd: np.ndarray | None = None,
    resets_bt: np.ndarray | None = None,
    padding_bt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """o * h over the recurrence h_t = alpha_t h_{t-1} + (1 - alpha_t) v_t: the mixer between its two matrices.

    Args:
        pre_btx: pre-activations value | p | gate.
        decay_bias_d: b_delta.
        delta_min: least decay rate a token.
        state_bd: h_{-1}; None is zero.
        resets_bt: true clears the state before the token.
        padding_bt: true changes nothing.

    Returns:
        o * h, the last state, and what the adjoint needs.

    Raises:
        ValueError: shapes or dtypes that do not agree.
    """
    check_gated_scan(pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, INEXACT)
    d = decay_bias_d.shape[0]
    value_btd = np.tanh(pre_btx[..., :d])
    p_btd = pre_btx[..., d : 2 * d] + decay_bias_d
    gate_btd = sigmoid(pre_btx[..., 2 * d :])
    decay_btd, one_minus_decay_btd = decay_gates(p_btd, delta_min)
    masked_decay_btd, drive_btd = mask(decay_btd, one_minus_decay_btd * value_btd, resets_bt, padding_bt)
    states_btd, last_bd = scan(masked_decay_btd, drive_btd, state_bd)
    gates = value_btd, p_btd, gate_btd, decay_btd, one_minus_decay_btd
    saved = *gates, masked_decay_btd, states_btd, state_bd, Masks(resets_bt, padding_bt)
    return gate_btd * states_btd, last_bd, saved


def gated_states_adjoint(
    saved: Any, grad_gated: np.ndarray, grad_last_bd: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of the pre-activations, of b_delta and of the initial state.

    With g the gradient that reaches h: dL/dp = alpha sigmoid(p) g (v - h_{t-1}), where h_{t-1} is 0 at a reset,
    and on padding the gradients of value and p are zero.
    """
    value_btd, p_btd, gate_btd, decay_btd, one_minus_decay_btd, masked_decay_btd, states_btd, state_bd, masks = saved
    grad_decay, g_btd, grad_state = scan_adjoint(
        masked_decay_btd, states_btd, state_bd, grad_gated * gate_btd, grad_last_bd
    )
    if masks.resets is not None:
        grad_decay = np.where(masks.resets[..., None], 0.0, grad_decay)
    grad_p = decay_btd * sigmoid(p_btd) * (g_btd * value_btd - grad_decay)
    grad_value = g_btd * one_minus_decay_btd * (1.0 - value_btd * value_btd)
    if masks.padding is not None:
        grad_p = np.where(masks.padding[..., None], 0.0, grad_p)
        grad_value = np.where(masks.padding[..., None], 0.0, grad_value)
    grad_gate = grad_gated * states_btd * gate_btd * (1.0 - gate_btd)
    grad_pre = np.concatenate([grad_value, grad_p, grad_gate], axis=-1)
    return grad_pre, grad_p.sum(axis=(0, 1)), grad_state


PRESETS = {
    "nano": Preset(
        LiquidNetConfig(d_model=128, d_ff=344, n_layers=4, max_seq_len=64),
        TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    ),
    "tiny": Preset(
        LiquidNetConfig(d_model=192, d_ff=576, n_layers=4, max_seq_len=256),
        TrainingConfig(steps=12_000, batch_size=16, seq_len=256, peak_lr=1e-3, warmup_steps=400),
    ),
    "small": Preset(
        LiquidNetConfig(d_model=384, d_ff=1024, n_layers=6, max_seq_len=512),
        TrainingConfig(steps=4069, batch_size=48, seq_len=512, peak_lr=6e-4, warmup_steps=400),
    ),
    "base": Preset(
        LiquidNetConfig(d_model=768, d_ff=2560, n_layers=8, max_seq_len=8192),
        TrainingConfig(steps=20_000, batch_size=64, seq_len=8192, peak_lr=3e-4, warmup_steps=1000),
    ),
}


class LiquidNetFamily(MixerFamily[LiquidNetConfig]):
    """y = W_y (o * h), the rows of `input` = value | decay | output gate."""

    name, title, operation, place = "liquidnet", "LiquidNet", "mixer", 0
    Config, presets = LiquidNetConfig, PRESETS
    moving_average, half_lives_of = True, "biases"
    activations, recurrence = ("input", "gated", "output"), "gated"
    formulas = {  # noqa: RUF012
        "mixer.input": "value | decay | gate = W z",
        "mixer.gated": "gates and scan: o * h",
        "mixer.output": "y = W (o * h)",
    }
    enters = {"mixer.decay_bias": "mixer.gated"}  # noqa: RUF012
    constants = ("delta_min",)

    def parameters(self, config: LiquidNetConfig) -> tuple[Parameter, ...]:
        d = config.d_model
        return (
            Parameter("input.weight", (3 * d, d), ("value | decay | gate", "d"), normal, True),
            Parameter("decay_bias", (d,), ("d",), lambda _, shape: half_life_bias(*shape), False),
            Parameter("output.weight", (d, d), ("d", "d"), zeros, True),
        )

    def state_size(self, config: LiquidNetConfig) -> int:
        return config.d_model

    def forward(
        self,
        z_btd: np.ndarray,
        weights: Arrays,
        config: LiquidNetConfig,
        state_bn: np.ndarray | None,
        masks: Masks,
        side: Side,
    ) -> Mixed:
        pre_btx = z_btd @ weights["input.weight"].T
        gated_btd, last_bd, recurrence = gated_states(
            pre_btx, weights["decay_bias"], config.delta_min, state_bn, *masks
        )
        y_btd = gated_btd @ weights["output.weight"].T
        inside = {"input": pre_btx, "gated": gated_btd, "output": y_btd}
        return Mixed(y_btd, last_bd, (z_btd, weights, recurrence, gated_btd), inside)

    def adjoint(
        self, saved: Any, grad_y_btd: np.ndarray, grad_last_bn: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        z_btd, weights, recurrence, gated_btd = saved
        grad_gated, grad_output = linear_adjoint(gated_btd, weights["output.weight"], grad_y_btd)
        grad_pre, grad_bias, grad_state = gated_states_adjoint(recurrence, grad_gated, grad_last_bn)
        grad_z, grad_input = linear_adjoint(z_btd, weights["input.weight"], grad_pre)
        gradients = {"input.weight": grad_input, "decay_bias": grad_bias, "output.weight": grad_output}
        return grad_z, gradients, grad_state

    def each_alone(
        self, z_btd: np.ndarray, weights: Arrays, config: LiquidNetConfig, given: Arrays
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        gated_btd, last_bd, _ = gated_states(given["input"], weights["decay_bias"], config.delta_min)
        found = {
            "input": z_btd @ weights["input.weight"].T,
            "gated": gated_btd,
            "output": given["gated"] @ weights["output.weight"].T,
        }
        return found, last_bd, given["output"]

    def decay_rates(
        self,
        weights: Arrays,
        config: LiquidNetConfig,
        inside: Arrays | None = None,
        resets_bt: np.ndarray | None = None,
    ) -> np.ndarray:
        """delta = softplus(p + b_delta) + delta_min."""
        d = config.d_model
        p_btd = np.zeros((1, 1, d)) if inside is None else inside["input"][..., d : 2 * d]
        return np.logaddexp(0.0, p_btd + weights["decay_bias"]) + config.delta_min


FAMILY = LiquidNetFamily()
