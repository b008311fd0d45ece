"""Linear, embedding, norm and MLP. Twin: jax_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spec.axes import BT, BTD, BTI, BTO
from spec.config import ModelConfig, require_known
from torch_impl.ops import rowwise
from torch_impl.ops.matmul import matmul
from torch_impl.ops.token_ids import as_ids

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def accumulate_dtype(compute_dtype: str) -> torch.dtype:
    """The dtype of everything but the dense products: float32, or float64 where these are float64.

    Raises:
        ValueError: an unknown compute dtype.
    """
    require_known("compute dtype", compute_dtype, COMPUTE)
    return torch.float64 if compute_dtype == "float64" else torch.float32


class Linear(nn.Module):
    """y = x W^T, W (out, in): operands and product in the compute dtype, the result widened again by default."""

    def __init__(self, in_features: int, out_features: int, compute_dtype: str = "float32", widen: bool = True):
        super().__init__()
        self.widen = widen
        self.compute_dtype = compute_dtype
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=accumulate_dtype(compute_dtype)))

    def forward(self, x: Float[Tensor, BTI]) -> Float[Tensor, BTO]:
        compute = COMPUTE[self.compute_dtype]
        y = matmul(x.to(compute), self.weight.to(compute))
        return y.to(self.weight.dtype) if self.widen else y


class Embedding(nn.Module):
    """x = E[tokens]; E (v, d) also reads the logits out."""

    def __init__(self, vocab_size: int, d_model: int, compute_dtype: str = "float32"):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, d_model, dtype=accumulate_dtype(compute_dtype)))

    def forward(self, tokens: Int[Tensor, BT]) -> Float[Tensor, BTD]:
        return nn.functional.embedding(as_ids(tokens), self.weight)


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), the mean over d, in the accumulation dtype: Zhang & Sennrich 2019."""

    def __init__(self, d_model: int, eps: float, compute_dtype: str = "float32"):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(d_model, dtype=accumulate_dtype(compute_dtype)))

    def forward(self, x: Float[Tensor, BTD]) -> Float[Tensor, BTD]:
        return rowwise.rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """u = W_d (silu(W_g r) * (W_a r)), the rows of `input` = gate | up: Shazeer 2020, equation 6."""

    def __init__(self, config: ModelConfig, compute_dtype: str = "float32"):
        super().__init__()
        self.input = Linear(config.d_model, 2 * config.d_ff, compute_dtype)
        self.output = Linear(config.d_ff, config.d_model, compute_dtype)

    def forward(self, x: Float[Tensor, BTD]) -> Float[Tensor, BTD]:
        return self.output(rowwise.swiglu(self.input(x)))
