"""A batch on the device. Twin: torch_impl. Truth: spec/data.py."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jax_impl.training.distributed import ROWS, SEQUENCE, ParallelContext
from spec.data import Batch
from spec.inputs import IGNORED_LABEL

PADDING = {"labels": IGNORED_LABEL}
"""What rows that fill up a batch hold, where that is not zero."""


def to_device(batch: Batch, context: ParallelContext, rows: int) -> dict[str, Any]:
    """tokens, labels and resets of the global batch, [b, t] each, and what the mixer reads besides, [b, t, ...].

    Each process puts its rows on its devices, filled up with rows of which no label counts.

    Args:
        batch: this process's shard.
        context: the processes of the run.
        rows: the most that any process has.
    """
    count = padded_rows(rows, context)
    cut = context.sharding(ROWS, SEQUENCE)

    def put(name: str, array: np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(cut, fill_rows(array, count, PADDING.get(name, 0)))

    arrays = {"tokens": batch.tokens, "labels": batch.labels, "resets": batch.resets}
    side = {name: put(name, array) for name, array in batch.side.items()}
    return {**{name: put(name, array) for name, array in arrays.items()}, "side": side}


def padded_rows(rows: int, context: ParallelContext) -> int:
    """Rows of a process where each of its devices has as many."""
    return -(-rows // context.local_row_shards) * context.local_row_shards


def fill_rows(array: np.ndarray, count: int, fill: int) -> np.ndarray:
    """The array with `count` rows, those that it lacks made of `fill`."""
    return np.pad(array, ((0, count - len(array)), *((0, 0) for _ in array.shape[1:])), constant_values=fill)
