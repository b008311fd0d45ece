"""A batch on the device. Twin: jax_impl. Truth: spec/data.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spec.config import ModelConfig
from spec.data import Batch
from spec.mixers import family


def to_device(batch: Batch, device: torch.device, config: ModelConfig) -> dict[str, Any]:
    """tokens, labels and resets of the batch, [b, t] each, and what the mixer reads besides, as the loss has them."""

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    side = family(config).in_order_of_call(config, batch.side)
    arrays = {"tokens": batch.tokens, "labels": batch.labels, "resets": batch.resets}
    return {name: put(x) for name, x in arrays.items()} | {"side": {name: put(x) for name, x in side.items()}}
