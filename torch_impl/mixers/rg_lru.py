"""RG-LRU. Twin: jax_impl. Truth: spec/mixers/rg_lru.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spec.axes import BN, BTD, BTI, BTN, BTO, N
from spec.mixers.base import NO_MASKS, Masks, Side
from spec.mixers.rg_lru import EXPONENT, RGLRUConfig
from spec.validation import require_known
from torch_impl.layers import COMPUTE, Linear, accumulate_dtype
from torch_impl.mixers.linear_recurrence import METHODS, capabilities
from torch_impl.ops import scan as scans
from torch_impl.ops.gated_scan.unfused import decay_gates
from torch_impl.ops.scan import scan
from torch_impl.ops.short_convolution import short_convolution

__all__ = [
    "METHODS",
    "RGLRU",
    "BlockDiagonalLinear",
    "Convolution",
    "Mixer",
    "capabilities",
    "choose_method",
    "recurrence_gates",
]


class Convolution(nn.Module):
    """The short convolution in front of the recurrence."""

    def __init__(self, config: RGLRUConfig, compute_dtype: str = "float32"):
        super().__init__()
        dtype = accumulate_dtype(compute_dtype)
        self.weight = nn.Parameter(torch.zeros(config.conv_width, config.d_rnn, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(config.d_rnn, dtype=dtype))

    def forward(
        self, x: Float[Tensor, BTN], history: Float[Tensor, BN] | None, masks: Masks
    ) -> tuple[Float[Tensor, BTN], Float[Tensor, BN]]:
        return short_convolution(x, self.weight, self.bias, history, masks)


class BlockDiagonalLinear(nn.Module):
    """y = W x + b of two block-diagonal matrices one above the other, the products in the compute dtype."""

    def __init__(self, config: RGLRUConfig, compute_dtype: str = "float32"):
        super().__init__()
        dtype, n = accumulate_dtype(compute_dtype), config.d_rnn
        self.compute_dtype, self.blocks = compute_dtype, config.gate_blocks
        self.weight = nn.Parameter(torch.zeros(2 * n, n // config.gate_blocks, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(2 * n, dtype=dtype))

    def forward(self, x: Float[Tensor, BTI]) -> Float[Tensor, BTO]:
        compute, block = COMPUTE[self.compute_dtype], self.weight.shape[1]
        parts = x.to(compute).unflatten(-1, (self.blocks, block))
        weight = self.weight.to(compute).view(2, self.blocks, block, block)
        y = torch.einsum("bthi,ghoi->btgho", parts, weight).flatten(2)
        return y.to(self.weight.dtype) + self.bias


class RGLRU(nn.Module):
    """y = W_y (gelu(gate) * h), the rows of `input` = gate | x."""

    def __init__(self, config: RGLRUConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__()
        require_known("mixer method", method, METHODS)
        self.method = method
        self.input = Linear(config.d_model, 2 * config.d_rnn, compute_dtype)
        self.convolution = Convolution(config, compute_dtype)
        self.gates = BlockDiagonalLinear(config, compute_dtype)
        self.decay_logit = nn.Parameter(torch.zeros(config.d_rnn, dtype=accumulate_dtype(compute_dtype)))
        self.output = Linear(config.d_rnn, config.d_model, compute_dtype)

    def forward(
        self,
        x: Float[Tensor, BTD],
        state: Float[Tensor, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, BN]]:
        n = len(self.decay_logit)
        h, history = (None, None) if state is None else (state[:, :n], state[:, n:])
        gate, u = self.input(x).chunk(2, dim=-1)
        u, history = self.convolution(u, history, masks)
        decay, scale, input_gate = recurrence_gates(self.gates(u), self.decay_logit)
        states, h = scan(decay, scale * input_gate * u, h, self.method, *masks)
        return self.output(nn.functional.gelu(gate, approximate="tanh") * states), torch.cat([h, history], dim=-1)


Mixer = RGLRU


def recurrence_gates(
    pre: Float[Tensor, BTO], decay_logit: Float[Tensor, N]
) -> tuple[Float[Tensor, BTN], Float[Tensor, BTN], Float[Tensor, BTN]]:
    """a, sqrt(1 - a^2) = sqrt(-expm1(2 log a)) and the input gate, log a = c r log sigmoid(Lambda).

    Where 1 - a^2 is zero, its root, which has no derivative there, is a constant: the recurrence gate is shut.
    """
    _, (recurrence, input_gate) = zip(*(decay_gates(p, 0.0) for p in pre.chunk(2, dim=-1)), strict=True)
    log_decay = EXPONENT * recurrence * nn.functional.logsigmoid(decay_logit)
    square = -torch.expm1(2.0 * log_decay)
    shut = square == 0.0
    scale = torch.sqrt(square.masked_fill(shut, 1.0)).masked_fill(shut, 0.0)
    return torch.exp(log_decay), scale, input_gate


def choose_method(config: RGLRUConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    return scans.choose_method((batch_size, seq_len, config.d_rnn))
