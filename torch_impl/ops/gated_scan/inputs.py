"""What every method of the gated scan is given. Twin: jax_impl. Truth: spec/reference/blocks.py."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from spec.axes import BD, BT, BT3D, D


class GatedScanInputs(NamedTuple):
    """The arguments of `gated_scan` without the method.

    Args:
        pre_btx: pre-activations value | p | gate, [b, t, 3d], in the compute dtype; so are the gated states.
        decay_bias_d: b_delta, [d]; its dtype is that of the recurrence.
        state_bd: h_{-1}, [b, d]; None is zero.
        resets_bt: true clears the state before token t is absorbed.
        padding_bt: true at positions that change nothing.
        delta_min: least decay rate a token.
    """

    pre_btx: Float[Tensor, BT3D]
    decay_bias_d: Float[Tensor, D]
    state_bd: Float[Tensor, BD] | None
    resets_bt: Bool[Tensor, BT] | None
    padding_bt: Bool[Tensor, BT] | None
    delta_min: float
