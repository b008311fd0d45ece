"""RMSNorm and the product of SwiGLU in operations of PyTorch. No twin: layers.py. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spec.axes import BTD, BTF, BTI, D


def rms_norm(x_btd: Float[Tensor, BTD], weight_d: Float[Tensor, D], eps: float) -> Float[Tensor, BTD]:
    """weight x / sqrt(mean(x^2) + eps)."""
    return weight_d * (x_btd * torch.rsqrt((x_btd * x_btd).mean(dim=-1, keepdim=True) + eps))


def swiglu(pre_bti: Float[Tensor, BTI]) -> Float[Tensor, BTF]:
    """silu(gate) up of pre = gate | up."""
    gate_btf, up_btf = pre_bti.chunk(2, dim=-1)
    return nn.functional.silu(gate_btf) * up_btf
