"""A leaky integrator whose rate follows the input.

    value | p | gate = W z      r = max_rate sigmoid(p + b)
    h_t = exp(-r_t) h_{t-1} + (1 - exp(-r_t)) value_t      y = W_y (sigmoid(gate) * h)

This is dh/dt = r (value - h), solved exactly over each token, in which rate and value are constant. Source: Tallec &
Ollivier 2018, "Can recurrent neural networks warp time?", section 1, the leaky network, with a gate on what is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.mixers.base import Arrays, Parameter, Preset, normal, zeros
from spec.mixers.linear_recurrence import LinearRecurrence
from spec.reference.scan import sigmoid
from spec.validation import require_number


@dataclass(frozen=True)
class MyMixerConfig(ModelConfig):
    """Shape of a leaky integrator; the state is as wide as the model.

    Args:
        vocab_size, d_model, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig.
        max_rate: the fastest leak, in nats a token, in (0, 100].

    Raises:
        ValueError: a value out of range, named.
    """

    vocab_size: int = 50257
    d_model: int = 384
    d_ff: int = 1024
    n_layers: int = 6
    max_seq_len: int = 512
    max_rate: float = 4.0
    norm_eps: float = 1e-6

    family: ClassVar[str] = "my_mixer"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("max_rate", self.max_rate, 0.0, 100.0, low_open=True)


PRESETS = {
    "my-mixer-nano": Preset(
        MyMixerConfig(d_model=128, d_ff=344, n_layers=4, max_seq_len=64),
        TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    )
}


class MyMixerFamily(LinearRecurrence[MyMixerConfig]):
    """y = W_y (sigmoid(gate) * h), the rows of `input` = value | rate | gate."""

    name, title, operation = "my_mixer", "leaky integrator", "my_mixer"
    Config, presets = MyMixerConfig, PRESETS
    moving_average = True
    formulas = {  # noqa: RUF012
        "mixer.input": "value | rate | gate = W z",
        "mixer.gated": "gates and scan: sigmoid(gate) * h",
        "mixer.output": "y = W (sigmoid(gate) * h)",
    }
    enters = {"mixer.rate_bias": "mixer.gated"}  # noqa: RUF012
    constants = ("max_rate",)

    def parameters(self, config: MyMixerConfig) -> tuple[Parameter, ...]:
        d = config.d_model
        return (
            Parameter("input.weight", (3 * d, d), ("value | rate | gate", "d"), normal, True),
            Parameter("rate_bias", (d,), ("d",), zeros, False),
            Parameter("output.weight", (d, d), ("d", "d"), zeros, True),
        )

    def state_size(self, config: MyMixerConfig) -> int:
        return config.d_model

    def gates(self, pre_btx: np.ndarray, weights: Arrays, config: MyMixerConfig) -> tuple[np.ndarray, np.ndarray, Any]:
        value_btd, p_btd, _ = np.split(pre_btx, 3, axis=-1)
        p_btd = p_btd + weights["rate_bias"]
        rate_btd = config.max_rate * sigmoid(p_btd)
        decay_btd, one_minus_decay_btd = np.exp(-rate_btd), -np.expm1(-rate_btd)
        saved = value_btd, rate_btd * sigmoid(-p_btd), decay_btd, one_minus_decay_btd
        return decay_btd, one_minus_decay_btd * value_btd, saved

    def gates_adjoint(
        self, saved: Any, grad_decay_btn: np.ndarray, grad_drive_btn: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """With dr/dp = r sigmoid(-p): d exp(-r)/dp = -exp(-r) dr/dp, and that of 1 - exp(-r) the negative."""
        value_btd, rate_by_p_btd, decay_btd, one_minus_decay_btd = saved
        grad_value = grad_drive_btn * one_minus_decay_btd
        grad_p = decay_btd * rate_by_p_btd * (grad_drive_btn * value_btd - grad_decay_btn)
        return np.concatenate([grad_value, grad_p, np.zeros_like(grad_p)], axis=-1), {
            "rate_bias": grad_p.sum(axis=(0, 1))
        }

    def read_out(
        self, states_btn: np.ndarray, pre_btx: np.ndarray, weights: Arrays, config: MyMixerConfig
    ) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        *_, gate_btd = np.split(pre_btx, 3, axis=-1)
        return sigmoid(gate_btd) * states_btn, (gate_btd, states_btn), {}

    def read_out_adjoint(
        self, saved: Any, grad_gated_btn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        gate_btd, states_btd = saved
        grad_states = grad_gated_btn * sigmoid(gate_btd)
        grad_gate = grad_states * states_btd * sigmoid(-gate_btd)
        none = np.zeros_like(grad_gate)
        return grad_states, np.concatenate([none, none, grad_gate], axis=-1), {}


FAMILY = MyMixerFamily()
