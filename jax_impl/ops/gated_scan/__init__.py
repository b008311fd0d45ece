"""The gated scan: gates, scan and output gate. Twin: torch_impl. Truth: spec/reference/blocks.py.

    pallas                             one kernel in each direction, on TPUs, or interpreted on a CPU
    sequential, associative, chunked   gates, that scan and the output gate as separate operations (unfused.py)

`auto` is the kernel where the program is lowered for a TPU; elsewhere, for a few tokens, and where devices share the
sequence it is the unfused form with the scan that `auto` takes. A named method runs or raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Bool, Float

from jax_impl.ops import scan as scans
from jax_impl.ops.gated_scan.pallas import pallas_gated_scan
from jax_impl.ops.gated_scan.unfused import GatedScanInputs, unfused_gated_scan
from jax_impl.ops.scan.context_parallel import sharing
from spec.axes import BD, BT, BT3D, BTD, D
from spec.config import require_known
from spec.inputs import check_gated_scan

METHODS: dict[str, Callable[[GatedScanInputs], tuple[Array, Array]]] = {
    **{name: partial(unfused_gated_scan, scan_method=name) for name in scans.METHODS},
    "pallas": pallas_gated_scan,
}


def gated_scan(
    pre_btx: Float[Array, BT3D],
    decay_bias_d: Float[Array, D],
    delta_min: float,
    state_bd: Float[Array, BD] | None = None,
    resets_bt: Bool[Array, BT] | None = None,
    padding_bt: Bool[Array, BT] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, BTD], Float[Array, BD]]:
    """The gated states o * h of h_t = decay_t h_{t-1} + (1 - decay_t) v_t, and the last state.

    v = tanh(value), decay = exp(-softplus(p + bias) - delta_min), o = sigmoid(gate): a gated linear recurrence as in
    Martin & Cundy 2018 (GILR) and Qin et al. 2023 (HGRN), its decay bounded away from 1 by delta_min.

    Args:
        pre_btx: pre-activations value | p | gate, [b, t, 3d], in the compute dtype; so are the gated states.
        decay_bias_d: b_delta, [d]; its dtype is that of the recurrence.
        delta_min: least decay rate a token.
        state_bd: h_{-1}, [b, d]; None is zero.
        resets_bt: true clears the state before token t is absorbed.
        padding_bt: true at positions that change nothing.
        method: a key of METHODS, or `auto`.

    Raises:
        ValueError: shapes or dtypes that do not agree, see spec/inputs.py, or an unknown method.
        NotImplementedError: a method that was named does not run on these arrays.
    """
    check_gated_scan(pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt)
    inputs = GatedScanInputs(pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min)
    require_known("mixer method", method, ("auto", *METHODS))
    return _auto(inputs) if method == "auto" else METHODS[method](inputs)


def _auto(inputs: GatedScanInputs) -> tuple[Array, Array]:
    *arrays, delta_min = inputs

    def kernel(*arrays):
        return pallas_gated_scan(GatedScanInputs(*arrays, delta_min=delta_min), only_tpu=True)

    def unfused(*arrays):
        return unfused_gated_scan(GatedScanInputs(*arrays, delta_min=delta_min), "auto")

    if inputs.pre_btx.shape[1] <= scans.FEW or sharing() is not None:
        return unfused(*arrays)
    return jax.lax.platform_dependent(*arrays, tpu=kernel, cpu=unfused, default=unfused)
