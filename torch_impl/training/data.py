"""A batch on the device. Twin: jax_impl. Truth: spec/data.py."""

from __future__ import annotations

from typing import Any

import torch

from spec.data import Batch


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """tokens, labels and resets of the batch, [b, t] each, and its noise, [l, b, t, n], named as the loss has them."""
    arrays = {"tokens": batch.tokens, "labels": batch.labels, "resets": batch.resets, "noise": batch.noise}
    placed = {name: None if array is None else torch.from_numpy(array).to(device) for name, array in arrays.items()}
    noise = placed["noise"]
    return {**placed, "noise": None if noise is None else noise.permute(2, 0, 1, 3)}
