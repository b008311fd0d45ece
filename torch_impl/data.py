"""A batch on the device. Twin: jax_impl/data.py. Truth: spec/data.py."""

from __future__ import annotations

import torch
from torch import Tensor

from spec.data import Batch


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, labels and resets of the batch, [b, t] each."""
    tokens, labels, resets = (torch.from_numpy(array) for array in (batch.tokens, batch.labels, batch.resets))
    return tokens.to(device), labels.to(device), resets.to(device)
