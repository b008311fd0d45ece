"""A causal depthwise convolution, its last inputs a state. Twin: jax_impl. Truth: spec/reference/convolution.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spec.axes import BD, BTD, KD, D
from spec.inputs import check_convolution
from spec.mixers.base import NO_MASKS, Masks
from torch_impl.ops.scan import scan
from torch_impl.ops.scan.context_parallel import context_parallel_shift, sharing


def short_convolution(
    x_btd: Float[Tensor, BTD],
    weight_kd: Float[Tensor, KD],
    bias_d: Float[Tensor, D],
    history_bd: Float[Tensor, BD] | None = None,
    masks: Masks = NO_MASKS,
) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
    """y_t = bias + sum over j < k of weight_j x_{t - j} in each channel, and the last k - 1 inputs, the latest first.

    The inputs before each token stand in k - 1 registers, each of which hands on to the next: register j + 1 takes what
    register j held. Padding leaves them as they are, so that a register is a scan whose decay is 1 there and else 0.

    Args:
        x_btd: input; x counts the tokens that are no padding.
        weight_kd: of the token itself, the one before it, and so on.
        bias_d: added everywhere.
        history_bd: the k - 1 inputs before the first token, the latest first, [b, (k - 1) d]; None is zero.
        masks: a reset forgets the inputs before it; padding is no input.

    Raises:
        ValueError: shapes or dtypes that do not agree, see spec/inputs.py.
    """
    check_convolution(x_btd, weight_kd, bias_d, history_bd, *masks)
    k, d = weight_kd.shape
    history_bd = x_btd.new_zeros(x_btd.shape[0], (k - 1) * d) if history_bd is None else history_bd
    y_btd, tap_btd, last = bias_d + weight_kd[0] * x_btd, x_btd, []
    for weight_d, before_bd in zip(weight_kd[1:], history_bd.split(d, dim=-1), strict=True):
        held_btd, last_bd = _register(tap_btd, before_bd, masks)
        tap_btd = _before(held_btd, before_bd, masks)
        y_btd = torch.addcmul(y_btd, weight_d, tap_btd)
        last.append(last_bd)
    return y_btd, torch.cat(last, dim=-1)


def _register(x_btd: Tensor, before_bd: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """At each token the latest input that is no padding, and the last one of the whole sequence."""
    if masks.padding is None and sharing() is None:
        return x_btd, x_btd[:, -1]
    return scan(torch.zeros_like(x_btd), x_btd, before_bd, padding_bt=masks.padding)


def _before(held_btd: Tensor, before_bd: Tensor, masks: Masks) -> Tensor:
    """What a register held before each token; zero at a reset, unless it is padding, which changes nothing."""
    group = sharing()
    if group is None:
        shifted_btd = torch.cat([before_bd[:, None], held_btd[:, :-1]], dim=1)
    else:
        shifted_btd = context_parallel_shift(held_btd, before_bd, group)
    if masks.resets is None:
        return shifted_btd
    forget_bt = masks.resets if masks.padding is None else masks.resets & ~masks.padding
    return shifted_btd.masked_fill(forget_bt[..., None], 0.0)
