"""LiquidNet. Twin: jax_impl. Truth: spec/mixers/liquidnet.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spec.axes import BD, BTD
from spec.mixers.base import NO_MASKS, Capabilities, Masks, Side
from spec.mixers.liquidnet import LiquidNetConfig
from spec.validation import require_known
from torch_impl.layers import Linear, accumulate_dtype
from torch_impl.model import LanguageModel
from torch_impl.ops import scan
from torch_impl.ops.gated_scan import METHODS as GATED_SCANS
from torch_impl.ops.gated_scan import gated_scan

METHODS = ("auto", *GATED_SCANS)


class LiquidMixer(nn.Module):
    """y = W_y (o * h), the rows of `input` = value | decay | output gate."""

    def __init__(self, config: LiquidNetConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__()
        require_known("mixer method", method, METHODS)
        self.delta_min = config.delta_min
        self.method = method
        self.input = Linear(config.d_model, 3 * config.d_model, compute_dtype, widen=False)
        self.decay_bias = nn.Parameter(torch.zeros(config.d_model, dtype=accumulate_dtype(compute_dtype)))
        self.output = Linear(config.d_model, config.d_model, compute_dtype)

    def forward(
        self,
        x: Float[Tensor, BTD],
        state: Float[Tensor, BD] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
        gated_btd, state_bd = gated_scan(self.input(x), self.decay_bias, self.delta_min, state, *masks, self.method)
        return self.output(gated_btd), state_bd


Mixer = LiquidMixer


def choose_method(config: LiquidNetConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    return scan.choose_method((batch_size, seq_len, config.d_model))


def capabilities(config: LiquidNetConfig, method: str = "auto") -> Capabilities:
    """What this backend can do with the mixer beyond what every mixer must."""
    return Capabilities(compile=True, context_parallel=True, graph_capture=True, fused_decode=True, scan_methods=True)


class LiquidNet(LanguageModel):
    """The family of h_t = alpha_t h_{t-1} + (1 - alpha_t) v_t: a linear recurrence whose decay follows its input.

    Called with (tokens, states, resets, padding) it gives (logits, states), see `logits`.
    """


Model = LiquidNet
