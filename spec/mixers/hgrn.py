"""HGRN: a gated recurrence whose forget gates have a learned lower bound, the higher the deeper the layer.

    value | p | gate = W z      gamma = sigmoid(lower_bound)      f = gamma + (1 - gamma) sigmoid(p)
    h_t = f_t h_{t-1} + (1 - f_t) silu(value_t)                   y = W_y (silu(gate) * RMSNorm(h))

Source: Qin et al. 2023, "Hierarchically Gated Recurrent Neural Network", section 3: its equations with a real state, as
`HGRNAttention` of flash-linear-attention 0.4 has it, without the rotation exp(i theta). There the bounds of all layers
follow from one softmax over layers; here each layer learns its own, from where that one begins: gamma = k / l in layer
k of l.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.mixers.base import Arrays, Parameter, Preset, normal, ones, zeros
from spec.mixers.linear_recurrence import LinearRecurrence
from spec.reference.blocks import rms_norm, rms_norm_adjoint
from spec.reference.scan import sigmoid

LEAST_BOUND = 2.0**-10
"""What stands for the first layer's bound 0, which no sigmoid reaches, in units of 1 / l."""


@dataclass(frozen=True)
class HGRNConfig(ModelConfig):
    """Shape of an HGRN; the state is as wide as the model.

    Args:
        vocab_size, d_model, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig.

    Raises:
        ValueError: a value out of range, named.
    """

    vocab_size: int = 50257
    d_model: int = 384
    d_ff: int = 1024
    n_layers: int = 6
    max_seq_len: int = 512
    norm_eps: float = 1e-6

    family: ClassVar[str] = "hgrn"


PRESETS = {
    "hgrn-nano": Preset(
        HGRNConfig(d_model=128, d_ff=344, n_layers=4, max_seq_len=64),
        TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    )
}


def initial_bound(fraction: float, draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The logit of a fraction in (0, 1), everywhere; float32."""
    return np.full(shape, math.log(fraction) - math.log1p(-fraction), np.float32)


def forget_gates(p_btd: np.ndarray, bound_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f, 1 - f) of f = gamma + (1 - gamma) sigmoid(p), gamma = sigmoid(bound), neither of them by subtraction.

    1 - f = (1 - gamma) (1 - sigmoid(p)) = sigmoid(-bound) sigmoid(-p).
    """
    return sigmoid(bound_d) + sigmoid(-bound_d) * sigmoid(p_btd), sigmoid(-bound_d) * sigmoid(-p_btd)


class HGRNFamily(LinearRecurrence[HGRNConfig]):
    """y = W_y (silu(gate) * RMSNorm(h)), the rows of `input` = value | forget | gate."""

    name, title, article, operation = "hgrn", "HGRN", "an", "hgrn"
    Config, presets = HGRNConfig, PRESETS
    moving_average = True
    activations = ("input", "norm", "gated", "output")
    formulas = {  # noqa: RUF012
        "mixer.input": "value | forget | gate = W z",
        "mixer.norm": "gates, scan and RMSNorm(h)",
        "mixer.gated": "silu(gate) * RMSNorm(h)",
        "mixer.output": "y = W (silu(gate) * RMSNorm(h))",
    }
    enters = {"mixer.lower_bound": "mixer.norm"}  # noqa: RUF012

    def parameters(self, config: HGRNConfig) -> tuple[Parameter, ...]:
        return self.layer_parameters(config, 0)

    def layer_parameters(self, config: HGRNConfig, layer: int) -> tuple[Parameter, ...]:
        d = config.d_model
        bound = partial(initial_bound, max(layer, LEAST_BOUND) / config.n_layers)
        return (
            Parameter("input.weight", (3 * d, d), ("value | forget | gate", "d"), normal, True),
            Parameter("lower_bound", (d,), ("d",), bound, False),
            Parameter("norm.weight", (d,), ("d",), ones, False),
            Parameter("output.weight", (d, d), ("d", "d"), zeros, True),
        )

    def state_size(self, config: HGRNConfig) -> int:
        return config.d_model

    def gates(self, pre_btx: np.ndarray, weights: Arrays, config: HGRNConfig) -> tuple[np.ndarray, np.ndarray, Any]:
        d = config.d_model
        value_btd, p_btd, bound_d = pre_btx[..., :d], pre_btx[..., d : 2 * d], weights["lower_bound"]
        forget_btd, one_minus_forget_btd = forget_gates(p_btd, bound_d)
        drive_btd = one_minus_forget_btd * value_btd * sigmoid(value_btd)
        return forget_btd, drive_btd, (value_btd, p_btd, bound_d, one_minus_forget_btd)

    def gates_adjoint(
        self, saved: Any, grad_decay_btn: np.ndarray, grad_drive_btn: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """With g = df - d(1 - f): dL/dp = (1 - f) sigmoid(p) g and dL/d bound = (1 - f) gamma g."""
        value_btd, p_btd, bound_d, one_minus_forget_btd = saved
        s_btd = sigmoid(value_btd)
        g_btd = one_minus_forget_btd * (grad_decay_btn - grad_drive_btn * value_btd * s_btd)
        grad_value = grad_drive_btn * one_minus_forget_btd * s_btd * (1.0 + value_btd * sigmoid(-value_btd))
        grad_p = g_btd * sigmoid(p_btd)
        grad_bound = (g_btd * sigmoid(bound_d)).sum(axis=(0, 1))
        return np.concatenate([grad_value, grad_p, np.zeros_like(grad_p)], axis=-1), {"lower_bound": grad_bound}

    def read_out(
        self, states_btn: np.ndarray, pre_btx: np.ndarray, weights: Arrays, config: HGRNConfig
    ) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        gate_btd = pre_btx[..., 2 * config.d_model :]
        norm_btd, saved = rms_norm(states_btn, weights["norm.weight"], config.norm_eps)
        return gate_btd * sigmoid(gate_btd) * norm_btd, (gate_btd, norm_btd, saved), {"norm": norm_btd}

    def read_out_adjoint(
        self, saved: Any, grad_gated_btn: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        gate_btd, norm_btd, of_norm = saved
        s_btd = sigmoid(gate_btd)
        grad_gate = grad_gated_btn * norm_btd * s_btd * (1.0 + gate_btd * sigmoid(-gate_btd))
        grad_states, grad_weight = rms_norm_adjoint(of_norm, grad_gated_btn * gate_btd * s_btd)
        none = np.zeros((*grad_gate.shape[:-1], 2 * grad_gate.shape[-1]), grad_gate.dtype)
        return grad_states, np.concatenate([none, grad_gate], axis=-1), {"norm.weight": grad_weight}

    def each_alone(
        self, z_btd: np.ndarray, weights: Arrays, config: HGRNConfig, given: Arrays
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """The norm follows from `input`, the gated states from the norm that was given."""
        found, last_bn, y_btd = super().each_alone(z_btd, weights, config, given)
        gate_btd = given["input"][..., 2 * config.d_model :]
        return {**found, "gated": gate_btd * sigmoid(gate_btd) * given["norm"]}, last_bn, y_btd


FAMILY = HGRNFamily()
