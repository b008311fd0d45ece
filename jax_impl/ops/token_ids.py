"""Token ids and labels as the operations take them. Twin: torch_impl. Truth: spec/inputs.py."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from spec.axes import ANY

_MOST = 2**31 - 1
"""Of int32; the largest vocabulary ends before it."""


def as_ids(ids: Int[Array, ANY]) -> Int[Array, ANY]:
    """Ids of any integer dtype in one that indexes; one that this does not hold stays outside every vocabulary."""
    if ids.dtype == jnp.int32:
        return ids
    # JAX would take the lower 32 bits of an int64 of NumPy, and with them another token.
    xp: Any = np if isinstance(ids, np.ndarray) else jnp
    if ids.dtype.itemsize > 4 or ids.dtype == jnp.uint32:
        ids = xp.minimum(ids, ids.dtype.type(_MOST))
    if ids.dtype == np.int64:
        ids = xp.maximum(ids, ids.dtype.type(-_MOST))
    return ids.astype(jnp.int32)
