"""A causal depthwise convolution, its last inputs a state. Twin: torch_impl. Truth: spec/reference/convolution.py."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_impl.ops.scan import scan
from jax_impl.ops.scan.context_parallel import context_parallel_shift, sharing
from spec.axes import BD, BTD, KD, D
from spec.inputs import check_convolution
from spec.mixers.base import NO_MASKS, Masks


def short_convolution(
    x_btd: Float[Array, BTD],
    weight_kd: Float[Array, KD],
    bias_d: Float[Array, D],
    history_bd: Float[Array, BD] | None = None,
    masks: Masks = NO_MASKS,
) -> tuple[Float[Array, BTD], Float[Array, BD]]:
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
    history_bd = jnp.zeros((x_btd.shape[0], (k - 1) * d), x_btd.dtype) if history_bd is None else history_bd
    y_btd, tap_btd, last = bias_d + weight_kd[0] * x_btd, x_btd, []
    for weight_d, before_bd in zip(weight_kd[1:], jnp.split(history_bd, k - 1, axis=-1), strict=True):
        held_btd, last_bd = _register(tap_btd, before_bd, masks)
        tap_btd = _before(held_btd, before_bd, masks)
        y_btd = y_btd + weight_d * tap_btd
        last.append(last_bd)
    return y_btd, jnp.concatenate(last, axis=-1)


def _register(x_btd: Array, before_bd: Array, masks: Masks) -> tuple[Array, Array]:
    """At each token the latest input that is no padding, and the last one of the whole sequence."""
    if masks.padding is None and sharing() is None:
        return x_btd, x_btd[:, -1]
    return scan(jnp.zeros_like(x_btd), x_btd, before_bd, padding_bt=masks.padding)


def _before(held_btd: Array, before_bd: Array, masks: Masks) -> Array:
    """What a register held before each token; zero at a reset, unless it is padding, which changes nothing."""
    group = sharing()
    if group is None:
        shifted_btd = jnp.concatenate([before_bd[:, None], held_btd[:, :-1]], axis=1)
    else:
        shifted_btd = context_parallel_shift(held_btd, before_bd, group)
    if masks.resets is None:
        return shifted_btd
    forget_bt = masks.resets if masks.padding is None else masks.resets & ~masks.padding
    return jnp.where(forget_bt[..., None], 0.0, shifted_btd)
