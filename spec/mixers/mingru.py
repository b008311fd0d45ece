"""minGRU: a GRU whose gate and candidate do not read the state.

    value | p = W z      u = sigmoid(p + b)      h_t = (1 - u_t) h_{t-1} + u_t value_t      y = W_y h

Source: Feng et al. 2024, "Were RNNs All We Needed?", section 3.1, with the projection of its language model after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.mixers.base import Arrays, Parameter, Preset, normal, zeros
from spec.mixers.linear_recurrence import LinearRecurrence
from spec.reference.scan import decay_gates
from spec.validation import require_integer


@dataclass(frozen=True)
class MinGRUConfig(ModelConfig):
    """Shape of a minGRU model.

    Args:
        vocab_size, d_model, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig.
        d_state: width of a layer's state, n.

    Raises:
        ValueError: a value out of range, named.
    """

    vocab_size: int = 50257
    d_model: int = 384
    d_ff: int = 1024
    n_layers: int = 6
    max_seq_len: int = 512
    d_state: int = 512
    norm_eps: float = 1e-6

    family: ClassVar[str] = "mingru"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("d_state", self.d_state, 1)


PRESETS = {
    "mingru-nano": Preset(
        MinGRUConfig(d_model=128, d_ff=344, n_layers=4, max_seq_len=64, d_state=170),
        TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    )
}


class MinGRUFamily(LinearRecurrence[MinGRUConfig]):
    """y = W_y h, the rows of `input` = value | update."""

    name, title, operation = "mingru", "minGRU", "mingru"
    Config, presets = MinGRUConfig, PRESETS
    moving_average = True
    formulas = {  # noqa: RUF012
        "mixer.input": "value | update = W z",
        "mixer.gated": "gate and scan: h",
        "mixer.output": "y = W h",
    }
    enters = {"mixer.update_bias": "mixer.gated"}  # noqa: RUF012
    shape_fields = ("d_state",)

    def parameters(self, config: MinGRUConfig) -> tuple[Parameter, ...]:
        d, n = config.d_model, config.d_state
        return (
            Parameter("input.weight", (2 * n, d), ("value | update", "d"), normal, True),
            Parameter("update_bias", (n,), ("n",), zeros, False),
            Parameter("output.weight", (d, n), ("d", "n"), zeros, True),
        )

    def state_size(self, config: MinGRUConfig) -> int:
        return config.d_state

    def gates(self, pre_btx: np.ndarray, weights: Arrays, config: MinGRUConfig) -> tuple[np.ndarray, np.ndarray, Any]:
        value_btn, p_btn = np.split(pre_btx, 2, axis=-1)
        decay_btn, update_btn = decay_gates(p_btn + weights["update_bias"], 0.0)
        return decay_btn, update_btn * value_btn, (value_btn, decay_btn, update_btn)

    def gates_adjoint(
        self, saved: Any, grad_decay_btn: np.ndarray, grad_drive_btn: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        value_btn, decay_btn, update_btn = saved
        grad_p = decay_btn * update_btn * (grad_drive_btn * value_btn - grad_decay_btn)
        grad_pre = np.concatenate([grad_drive_btn * update_btn, grad_p], axis=-1)
        return grad_pre, {"update_bias": grad_p.sum(axis=(0, 1))}


FAMILY = MinGRUFamily()
