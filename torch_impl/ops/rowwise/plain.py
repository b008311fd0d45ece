"""RMSNorm and SwiGLU in operations of PyTorch. No twin: JAX has them in layers. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain_rms_norm(x_btd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """weight x / sqrt(mean(x^2) + eps)."""
    return weight_d * (x_btd * torch.rsqrt((x_btd * x_btd).mean(dim=-1, keepdim=True) + eps))


def plain_swiglu(pre_bti: Tensor) -> Tensor:
    """silu(gate) up of pre = gate | up."""
    gate_btf, up_btf = pre_bti.chunk(2, dim=-1)
    return nn.functional.silu(gate_btf) * up_btf
