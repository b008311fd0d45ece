"""HGRN. Twin: jax_impl. Truth: spec/mixers/hgrn.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spec.axes import BTN, BTX
from spec.mixers.hgrn import HGRNConfig
from torch_impl.layers import RMSNorm, accumulate_dtype
from torch_impl.mixers.linear_recurrence import METHODS, LinearRecurrence, capabilities, choose_method
from torch_impl.ops.gated_scan.unfused import decay_gates

__all__ = ["HGRN", "METHODS", "Mixer", "capabilities", "choose_method"]


class HGRN(LinearRecurrence):
    """y = W_y (silu(gate) * RMSNorm(h)), the rows of `input` = value | forget | gate."""

    def __init__(self, config: HGRNConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__(config, 3, compute_dtype, method)
        self.lower_bound = nn.Parameter(torch.zeros(config.d_model, dtype=accumulate_dtype(compute_dtype)))
        self.norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)

    def gates(self, pre: Float[Tensor, BTX]) -> tuple[Float[Tensor, BTN], Float[Tensor, BTN]]:
        value, p, _ = pre.chunk(3, dim=-1)
        one_minus_gate, gate = decay_gates(p, 0.0)
        one_minus_bound, bound = decay_gates(self.lower_bound, 0.0)
        return bound + one_minus_bound * gate, one_minus_bound * one_minus_gate * nn.functional.silu(value)

    def read_out(self, states: Float[Tensor, BTN], pre: Float[Tensor, BTX]) -> Float[Tensor, BTN]:
        *_, gate = pre.chunk(3, dim=-1)
        return nn.functional.silu(gate) * self.norm(states)


Mixer = HGRN
