"""A batch on the device. Twin: torch_impl/data.py. Truth: spec/data.py."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from spec.data import Batch


def to_device(batch: Batch) -> dict[str, Array | None]:
    """tokens, labels and resets of the batch, [b, t] each, and its noise, [b, t, l, n]."""
    arrays = {"tokens": batch.tokens, "labels": batch.labels, "resets": batch.resets, "noise": batch.noise}
    return {name: None if array is None else jnp.asarray(array) for name, array in arrays.items()}
