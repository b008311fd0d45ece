"""Token ids and labels as the operations take them. Twin: jax_impl. Truth: spec/inputs.py."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from spec.axes import ANY


def as_ids(ids: Int[Tensor, ANY]) -> Int[Tensor, ANY]:
    """Ids of any integer dtype in one that indexes; one that this does not hold stays outside every vocabulary."""
    if ids.dtype in (torch.int32, torch.int64):
        return ids
    wide = ids.long()
    # Those of uint64 that int64 does not hold came out negative, and one of them would be -100, which is ignored.
    return wide.masked_fill(wide < 0, -1) if ids.dtype == torch.uint64 else wide
