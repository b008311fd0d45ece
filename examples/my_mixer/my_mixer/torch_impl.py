"""The leaky integrator in PyTorch. Twin: my_mixer/jax_impl.py. Truth: my_mixer/spec.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from my_mixer.spec import MyMixerConfig
from spec.axes import BTN, BTX
from torch_impl.layers import accumulate_dtype
from torch_impl.mixers.linear_recurrence import METHODS, LinearRecurrence, capabilities, choose_method
from torch_impl.ops.gated_scan.unfused import decay_gates

__all__ = ["METHODS", "Mixer", "MyMixer", "capabilities", "choose_method"]


class MyMixer(LinearRecurrence):
    """y = W_y (sigmoid(gate) * h), the rows of `input` = value | rate | gate."""

    def __init__(self, config: MyMixerConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__(config, 3, compute_dtype, method)
        self.max_rate = config.max_rate
        self.rate_bias = nn.Parameter(torch.zeros(config.d_model, dtype=accumulate_dtype(compute_dtype)))

    def gates(self, pre: Float[Tensor, BTX]) -> tuple[Float[Tensor, BTN], Float[Tensor, BTN]]:
        value, p, _ = pre.chunk(3, dim=-1)
        _, sigmoid_p = decay_gates(p + self.rate_bias, 0.0)
        rate = self.max_rate * sigmoid_p
        return torch.exp(-rate), -torch.expm1(-rate) * value

    def read_out(self, states: Float[Tensor, BTN], pre: Float[Tensor, BTX]) -> Float[Tensor, BTN]:
        *_, gate = pre.chunk(3, dim=-1)
        return torch.sigmoid(gate) * states


Mixer = MyMixer
