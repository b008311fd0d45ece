"""RG-LRU: a linear recurrence with recurrence and input gates, behind a short convolution, beside a GeLU branch.

    gate | x = W z      u = convolution(x)      r = sigmoid(W_r u + b_r)      i = sigmoid(W_i u + b_i)
    log a_t = c r_t log sigmoid(Lambda), c = 8      h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t * u_t)
    y = W_y (gelu(gate) * h)

Source: De et al. 2024 (Griffin), section 2.4, equations 1 to 4, in the recurrent block of section 2.3; W_r and W_i are
block-diagonal and the GeLU is that of tanh, as in recurrentgemma 1.0. There the input of a document's first token is
not scaled by sqrt(1 - a^2); here it is, so that a reset is a zero state and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.mixers.base import Arrays, Masks, Mixed, MixerFamily, Parameter, Preset, Side, normal, zeros
from spec.mixers.linear_recurrence import masked_gradients
from spec.reference.block_diagonal import block_diagonal, block_diagonal_adjoint
from spec.reference.blocks import linear_adjoint
from spec.reference.convolution import short_convolution, short_convolution_adjoint
from spec.reference.scan import mask, scan, scan_adjoint, sigmoid
from spec.validation import require_integer

EXPONENT = 8.0
"""c: the power of sigmoid(Lambda) that a is where the recurrence gate is 1."""

SLOWEST, FASTEST = 0.999, 0.9
"""sigmoid(Lambda) begins between these."""


@dataclass(frozen=True)
class RGLRUConfig(ModelConfig):
    """Shape of an RG-LRU model.

    Args:
        vocab_size, d_model, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig.
        d_rnn: width of the recurrence; with the inputs that the convolution remembers a layer's state is conv_width
            times as large.
        gate_blocks: blocks of the two gates' block-diagonal matrices; divides d_rnn.
        conv_width: tokens that the convolution reads, k.

    Raises:
        ValueError: a value out of range, named.
    """

    vocab_size: int = 50257
    d_model: int = 384
    d_ff: int = 1024
    n_layers: int = 6
    max_seq_len: int = 512
    d_rnn: int = 384
    gate_blocks: int = 2
    conv_width: int = 4
    norm_eps: float = 1e-6

    family: ClassVar[str] = "rg_lru"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("d_rnn", self.d_rnn, 1)
        require_integer("gate_blocks", self.gate_blocks, 1)
        require_integer("conv_width", self.conv_width, 2)
        if self.d_rnn % self.gate_blocks:
            raise ValueError(f"gate_blocks must divide d_rnn {self.d_rnn}, got {self.gate_blocks}")


PRESETS = {
    "rglru-nano": Preset(
        RGLRUConfig(d_model=128, d_ff=344, n_layers=4, max_seq_len=64, d_rnn=128),
        TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=6e-3, warmup_steps=100),
    )
}


def initial_decay_logit(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Lambda with sigmoid(Lambda)^2 uniform between FASTEST^2 and SLOWEST^2; float32. Source: recurrentgemma 1.0."""
    log_decay = 0.5 * np.log(draw.uniform(FASTEST**2, SLOWEST**2, shape))
    return (log_decay - np.log(-np.expm1(log_decay))).astype(np.float32)


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)), to full relative accuracy, of real and complex numbers."""
    large = np.real(x) > 0.0
    return np.where(large, x, 0.0) + np.log1p(np.exp(np.where(large, -x, x)))


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x sigmoid(2 u) and its derivative, u = sqrt(2 / pi) (x + 0.044715 x^3). Source: Hendrycks & Gimpel 2016."""
    slope, cubic = 2.0 * math.sqrt(2.0 / math.pi), 0.044715
    twice_u = slope * (x + cubic * x * x * x)
    s = sigmoid(twice_u)
    return x * s, s * (1.0 + x * sigmoid(-twice_u) * slope * (1.0 + 3.0 * cubic * x * x))


class Gates(NamedTuple):
    """What the two gates give: r, i, log a, a and sqrt(1 - a^2), [b, t, n] each."""

    recurrence: np.ndarray
    input: np.ndarray
    log_decay: np.ndarray
    decay: np.ndarray
    scale: np.ndarray


def gates_of(pre_btx: np.ndarray, decay_logit_n: np.ndarray) -> Gates:
    """The gates of their pre-activations; 1 - a^2 = -expm1(2 log a), without the cancellation of a subtraction."""
    recurrence_btn, input_btn = np.split(sigmoid(pre_btx), 2, axis=-1)
    log_decay_btn = -EXPONENT * softplus(-decay_logit_n) * recurrence_btn
    scale_btn = np.sqrt(-np.expm1(2.0 * log_decay_btn))
    return Gates(recurrence_btn, input_btn, log_decay_btn, np.exp(log_decay_btn), scale_btn)


class Saved(NamedTuple):
    """What the adjoint needs."""

    z: np.ndarray
    weights: Arrays
    config: RGLRUConfig
    pre: np.ndarray
    convolved: np.ndarray
    convolution: Any
    pre_gates: np.ndarray
    gates: Gates
    masked_decay: np.ndarray
    states: np.ndarray
    state: np.ndarray | None
    masks: Masks
    gated: np.ndarray


class RGLRUFamily(MixerFamily[RGLRUConfig]):
    """y = W_y (gelu(gate) * h), the rows of `input` = gate | x."""

    name, title, article, operation = "rg_lru", "RG-LRU", "an", "rg_lru"
    Config, presets = RGLRUConfig, PRESETS
    activations, recurrence = ("input", "convolution", "gates", "gated", "output"), "gated"
    formulas = {  # noqa: RUF012
        "mixer.input": "gate | x = W z",
        "mixer.convolution": "u = convolution(x)",
        "mixer.gates": "recurrence | input = W u + b",
        "mixer.gated": "gates, scan and gelu(gate) * h",
        "mixer.output": "y = W (gelu(gate) * h)",
    }
    enters = {"mixer.decay_logit": "mixer.gated"}  # noqa: RUF012
    shape_fields = ("d_rnn", "gate_blocks", "conv_width")

    def parameters(self, config: RGLRUConfig) -> tuple[Parameter, ...]:
        d, n, k, block = config.d_model, config.d_rnn, config.conv_width, config.d_rnn // config.gate_blocks

        def taps(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return normal(draw, shape, k**-0.5)

        def gates(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return normal(draw, shape, block**-0.5)

        return (
            Parameter("input.weight", (2 * n, d), ("gate | x", "d"), normal, True),
            Parameter("convolution.weight", (k, n), ("k", "n"), taps, True, blocks=0),
            Parameter("convolution.bias", (n,), ("n",), zeros, False),
            Parameter("gates.weight", (2 * n, block), ("recurrence | input", "block"), gates, True, blocks=n // block),
            Parameter("gates.bias", (2 * n,), ("recurrence | input",), zeros, False),
            Parameter("decay_logit", (n,), ("n",), initial_decay_logit, False),
            Parameter("output.weight", (d, n), ("d", "n"), zeros, True),
        )

    def state_size(self, config: RGLRUConfig) -> int:
        return config.d_rnn * config.conv_width

    def forward(
        self,
        z_btd: np.ndarray,
        weights: Arrays,
        config: RGLRUConfig,
        state_bn: np.ndarray | None,
        masks: Masks,
        side: Side,
    ) -> Mixed:
        n = config.d_rnn
        h_bn, history_bx = (None, None) if state_bn is None else (state_bn[:, :n], state_bn[:, n:])
        pre_btx = z_btd @ weights["input.weight"].T
        convolved_btn, history_bx, convolution = short_convolution(
            pre_btx[..., n:], weights["convolution.weight"], weights["convolution.bias"], history_bx, masks
        )
        pre_gates = block_diagonal(convolved_btn, weights["gates.weight"], config.gate_blocks) + weights["gates.bias"]
        gates = gates_of(pre_gates, weights["decay_logit"])
        masked_decay, drive_btn = mask(gates.decay, gates.scale * gates.input * convolved_btn, *masks)
        states_btn, last_bn = scan(masked_decay, drive_btn, h_bn)
        gated_btn = gelu(pre_btx[..., :n])[0] * states_btn
        y_btd = gated_btn @ weights["output.weight"].T
        inside = {
            "input": pre_btx,
            "convolution": convolved_btn,
            "gates": pre_gates,
            "gated": gated_btn,
            "output": y_btd,
        }
        saved = Saved(
            z_btd, weights, config, pre_btx, convolved_btn, convolution, pre_gates, gates, masked_decay, states_btn,
            h_bn, masks, gated_btn,
        )  # fmt: skip
        return Mixed(y_btd, np.concatenate([last_bn, history_bx], axis=-1), saved, inside)

    def adjoint(
        self, saved: Saved, grad_y_btd: np.ndarray, grad_last_bn: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """With g the gradient of log a: dL/d pre_r = g log a sigmoid(-pre_r), dL/d Lambda = g c r sigmoid(-Lambda)."""
        n, weights, gates = saved.config.d_rnn, saved.weights, saved.gates
        grad_last_h, grad_last_history = (None, None) if grad_last_bn is None else np.split(grad_last_bn, [n], axis=-1)
        grad_gated, grad_output = linear_adjoint(saved.gated, weights["output.weight"], grad_y_btd)
        branch, slope = gelu(saved.pre[..., :n])
        grad_decay, grad_drive, grad_h = scan_adjoint(
            saved.masked_decay, saved.states, saved.state, grad_gated * branch, grad_last_h
        )
        grad_decay, grad_drive = masked_gradients(grad_decay, grad_drive, saved.masks)
        grad_scale = grad_drive * gates.input * saved.convolved
        # d sqrt(1 - a^2) / d log a = -a^2 / sqrt(1 - a^2); where a is 1 the gate is shut and nothing passes.
        shut = gates.scale == 0.0
        scale_slope = np.where(shut, 0.0, gates.decay * gates.decay / np.where(shut, 1.0, gates.scale))
        g_btn = grad_decay * gates.decay - grad_scale * scale_slope
        grad_input_gate = grad_drive * gates.scale * saved.convolved
        one_minus_r, one_minus_i = np.split(sigmoid(-saved.pre_gates), 2, axis=-1)
        grad_r, grad_i = g_btn * gates.log_decay * one_minus_r, grad_input_gate * gates.input * one_minus_i
        grad_pre_gates = np.concatenate([grad_r, grad_i], axis=-1)
        grad_u, grad_gates = block_diagonal_adjoint(
            saved.convolved, weights["gates.weight"], saved.config.gate_blocks, grad_pre_gates
        )
        grad_u = grad_u + grad_drive * gates.scale * gates.input
        grad_x, grad_taps, grad_bias, grad_history = short_convolution_adjoint(
            saved.convolution, grad_u, grad_last_history
        )
        grad_pre = np.concatenate([grad_gated * saved.states * slope, grad_x], axis=-1)
        grad_z, grad_input = linear_adjoint(saved.z, weights["input.weight"], grad_pre)
        grad_logit = EXPONENT * sigmoid(-weights["decay_logit"]) * (g_btn * gates.recurrence).sum(axis=(0, 1))
        gradients = {
            "input.weight": grad_input,
            "convolution.weight": grad_taps,
            "convolution.bias": grad_bias,
            "gates.weight": grad_gates,
            "gates.bias": grad_pre_gates.sum(axis=(0, 1)),
            "decay_logit": grad_logit,
            "output.weight": grad_output,
        }
        return grad_z, gradients, np.concatenate([grad_h, grad_history], axis=-1)

    def each_alone(
        self, z_btd: np.ndarray, weights: Arrays, config: RGLRUConfig, given: Arrays
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        n, pre_btx, convolved_btn = config.d_rnn, given["input"], given["convolution"]
        again_btn, history_bx, _ = short_convolution(
            pre_btx[..., n:], weights["convolution.weight"], weights["convolution.bias"], None, Masks()
        )
        gates = gates_of(given["gates"], weights["decay_logit"])
        states_btn, last_bn = scan(gates.decay, gates.scale * gates.input * convolved_btn)
        product = block_diagonal(convolved_btn, weights["gates.weight"], config.gate_blocks)
        found = {
            "input": z_btd @ weights["input.weight"].T,
            "convolution": again_btn,
            "gates": product + weights["gates.bias"],
            "gated": gelu(pre_btx[..., :n])[0] * states_btn,
            "output": given["gated"] @ weights["output.weight"].T,
        }
        return found, np.concatenate([last_bn, history_bx], axis=-1), given["output"]

    def decay_rates(
        self, weights: Arrays, config: RGLRUConfig, inside: Arrays | None = None, resets_bt: np.ndarray | None = None
    ) -> np.ndarray:
        """-log a of the recurrence; the inputs that the convolution remembers have no half-life."""
        pre_gates = weights["gates.bias"][None, None] if inside is None else inside["gates"]
        return -gates_of(pre_gates, weights["decay_logit"]).log_decay


FAMILY = RGLRUFamily()
