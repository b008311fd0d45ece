"""A batch on the device. Twin: torch_impl/data.py. Truth: spec/data.py."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from spec.data import Batch


def to_device(batch: Batch) -> tuple[Array, Array, Array]:
    """tokens, labels and resets of the batch, [b, t] each."""
    return jnp.asarray(batch.tokens), jnp.asarray(batch.labels), jnp.asarray(batch.resets)
