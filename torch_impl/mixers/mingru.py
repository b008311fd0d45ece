"""minGRU. Twin: jax_impl. Truth: spec/mixers/mingru.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spec.axes import BTN, BTX
from spec.mixers.mingru import MinGRUConfig
from torch_impl.layers import accumulate_dtype
from torch_impl.mixers.linear_recurrence import METHODS, LinearRecurrence, capabilities, choose_method
from torch_impl.ops.gated_scan.unfused import decay_gates

__all__ = ["METHODS", "MinGRU", "Mixer", "capabilities", "choose_method"]


class MinGRU(LinearRecurrence):
    """y = W_y h, the rows of `input` = value | update."""

    def __init__(self, config: MinGRUConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__(config, 2, compute_dtype, method)
        self.update_bias = nn.Parameter(torch.zeros(config.d_state, dtype=accumulate_dtype(compute_dtype)))

    def gates(self, pre: Float[Tensor, BTX]) -> tuple[Float[Tensor, BTN], Float[Tensor, BTN]]:
        value, p = pre.chunk(2, dim=-1)
        decay, update = decay_gates(p + self.update_bias, 0.0)
        return decay, update * value


Mixer = MinGRU
