"""The mixer of a LiquidNet. Twin: jax_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from spec.axes import BD, BT, BTD
from spec.config import LiquidNetConfig, require_known
from torch_impl.layers import Linear, accumulate_dtype
from torch_impl.ops.gated_scan import METHODS, gated_scan


class LiquidMixer(nn.Module):
    """y = W_y (o * h), the rows of `input` = value | decay | output gate."""

    def __init__(self, config: LiquidNetConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__()
        require_known("mixer method", method, ("auto", *METHODS))
        self.delta_min = config.delta_min
        self.method = method
        self.input = Linear(config.d_model, 3 * config.d_model, compute_dtype, widen=False)
        self.decay_bias = nn.Parameter(torch.zeros(config.d_model, dtype=accumulate_dtype(compute_dtype)))
        self.output = Linear(config.d_model, config.d_model, compute_dtype)

    def forward(
        self,
        x: Float[Tensor, BTD],
        state: Float[Tensor, BD] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
        gated_btd, state_bd = gated_scan(
            self.input(x), self.decay_bias, self.delta_min, state, resets, padding, self.method
        )
        return self.output(gated_btd), state_bd
