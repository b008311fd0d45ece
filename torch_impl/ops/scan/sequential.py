"""The recurrence, one token after another. Twin: jax_impl. Truth: spec/reference/scan.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spec.axes import BD, BTD


def sequential_scan(
    decay_btd: Float[Tensor, BTD], drive_btd: Float[Tensor, BTD], state_bd: Float[Tensor, BD]
) -> Float[Tensor, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, in O(t) steps of O(b d) work."""
    states = []
    for t in range(drive_btd.shape[1]):
        state_bd = torch.addcmul(drive_btd[:, t], decay_btd[:, t], state_bd)
        states.append(state_bd)
    return torch.stack(states, dim=1)
