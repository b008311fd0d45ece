"""The recurrence in two levels of sqrt(t) steps. Twin: jax_impl. Truth: spec/reference/scan.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spec.axes import BD, BTD


def chunked_scan(
    decay_btd: Float[Tensor, BTD], drive_btd: Float[Tensor, BTD], state_bd: Float[Tensor, BD]
) -> Float[Tensor, BTD]:
    """All states of h_t = decay_t h_{t-1} + drive_t, all chunks of time side by side.

    A chunk maps the state before it to the state after it by h -> product h + end, end from a zero state.
    First (product, end) of every chunk, then the state before each chunk, then the states inside.
    """
    b, t, d = drive_btd.shape
    c = math.isqrt(t - 1) + 1
    chunks = -(-t // c)
    fill = (0, 0, 0, chunks * c - t)
    decay_bkcd = F.pad(decay_btd, fill, value=1.0).view(b, chunks, c, d)
    drive_bkcd = F.pad(drive_btd, fill).view(b, chunks, c, d)
    product_bkd, end_bkd = decay_bkcd[:, :, 0], drive_bkcd[:, :, 0]
    for i in range(1, c):
        product_bkd = product_bkd * decay_bkcd[:, :, i]
        end_bkd = torch.addcmul(drive_bkcd[:, :, i], decay_bkcd[:, :, i], end_bkd)
    before = [state_bd]
    for k in range(chunks - 1):
        before.append(torch.addcmul(end_bkd[:, k], product_bkd[:, k], before[-1]))
    states, inside_bkd = [], torch.stack(before, dim=1)
    for i in range(c):
        inside_bkd = torch.addcmul(drive_bkcd[:, :, i], decay_bkcd[:, :, i], inside_bkd)
        states.append(inside_bkd)
    return torch.stack(states, dim=2).view(b, chunks * c, d)[:, :t]
