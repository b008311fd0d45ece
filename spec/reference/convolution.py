"""A causal depthwise convolution whose last inputs are a state, beside its adjoint.

    y_t = bias + sum over j < k of weight_j x_{t - j}

in each channel, x counted over the tokens that are no padding; before the first token and before a reset it is zero.
Source: De et al. 2024 (Griffin), section 2.3: width 4 before the RG-LRU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spec.inputs import INEXACT, check_convolution
from spec.mixers.base import Masks


def short_convolution(
    x_btd: np.ndarray, weight_kd: np.ndarray, bias_d: np.ndarray, history_bd: np.ndarray | None, masks: Masks
) -> tuple[np.ndarray, np.ndarray, Any]:
    """The convolution, the last k - 1 inputs, and what the adjoint needs.

    Args:
        x_btd: input.
        weight_kd: of the token itself, the one before it, and so on.
        bias_d: added everywhere.
        history_bd: the k - 1 inputs before the first token, the latest first, [b, (k - 1) d]; None is zero.
        masks: a reset forgets the inputs before it; padding is no input, and what it gives is of no use.

    Returns:
        y [b, t, d], the last inputs [b, (k - 1) d] in the order of `history_bd`, saved.

    Raises:
        ValueError: shapes or dtypes that do not agree.
    """
    check_convolution(x_btd, weight_kd, bias_d, history_bd, *masks, kind=INEXACT)
    k = len(weight_kd)
    taps = [np.zeros_like(x_btd[:, 0])] * (k - 1) if history_bd is None else np.split(history_bd, k - 1, axis=-1)
    outputs, windows = [], []
    forget_bt = forgets(masks)
    for t in range(x_btd.shape[1]):
        if forget_bt is not None:
            taps = [np.where(forget_bt[:, t, None], 0.0, tap) for tap in taps]
        window = [x_btd[:, t], *taps]
        outputs.append(bias_d + sum(weight * tap for weight, tap in zip(weight_kd, window, strict=True)))
        windows.append(window)
        taps = window[:-1]
        if masks.padding is not None:
            taps = [np.where(masks.padding[:, t, None], old, new) for old, new in zip(window[1:], taps, strict=True)]
    return np.stack(outputs, axis=1), np.concatenate(taps, axis=-1), (windows, weight_kd, masks)


def forgets(masks: Masks) -> Any:
    """Where the inputs before a token are forgotten: at a reset, unless it is padding, which changes nothing."""
    return masks.resets if masks.resets is None or masks.padding is None else masks.resets & ~masks.padding


def short_convolution_adjoint(
    saved: Any, grad_y_btd: np.ndarray, grad_last_bd: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of the input, of weight and bias, and of the k - 1 inputs before the first token."""
    windows, weight_kd, masks = saved
    k = len(weight_kd)
    zero_bd = np.zeros_like(grad_y_btd[:, 0])
    forget_bt = forgets(masks)
    carry = [zero_bd] * (k - 1) if grad_last_bd is None else np.split(grad_last_bd, k - 1, axis=-1)
    grad_x, grad_weight = [], np.zeros_like(weight_kd)
    for t in reversed(range(grad_y_btd.shape[1])):
        grad_bd = grad_y_btd[:, t]
        # What each place of the window hands on: its own place for padding, else the next one.
        kept, moved = [zero_bd, *carry], [*carry, zero_bd]
        if masks.padding is not None:
            moved = [np.where(masks.padding[:, t, None], a, b) for a, b in zip(kept, moved, strict=True)]
        grad_window = [weight * grad_bd + later for weight, later in zip(weight_kd, moved, strict=True)]
        grad_weight = grad_weight + np.stack([(tap * grad_bd).sum(axis=0) for tap in windows[t]])
        grad_x.append(grad_window[0])
        carry = grad_window[1:]
        if forget_bt is not None:
            carry = [np.where(forget_bt[:, t, None], 0.0, one) for one in carry]
    return np.stack(grad_x[::-1], axis=1), grad_weight, grad_y_btd.sum(axis=(0, 1)), np.concatenate(carry, axis=-1)
