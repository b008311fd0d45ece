"""The gated scan: gates, scan and output gate. Twin: jax_impl. Truth: spec/reference/blocks.py.

    triton                one kernel in each direction, on GPUs of NVIDIA (8.0 and above) and AMD, or interpreted
    numba                 one compiled pass over memory in each direction, on CPUs
    sequential, chunked   gates, that scan and the output gate as separate operations (unfused.py), everywhere

`auto` is what `auto` is for the scan: triton, numba, else the unfused form. Where processes share the sequence it is
the unfused form with that scan: the fused ones have each row whole. A named method runs or raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from spec.axes import BD, BT, BT3D, BTD, D
from spec.config import require_known
from spec.inputs import check_gated_scan
from torch_impl.ops import scan as scans
from torch_impl.ops.gated_scan.unfused import GatedScanInputs, unfused_gated_scan
from torch_impl.ops.scan.context_parallel import sharing

METHODS: dict[str, Callable[[GatedScanInputs], tuple[Tensor, Tensor]]] = {
    name: partial(unfused_gated_scan, scan_method=name) for name in scans.METHODS
}
try:
    from torch_impl.ops.gated_scan.triton import triton_gated_scan
except ImportError:
    pass
else:
    METHODS["triton"] = triton_gated_scan
try:
    from torch_impl.ops.gated_scan.numba import numba_gated_scan
except ImportError:
    pass
else:
    METHODS["numba"] = numba_gated_scan


def gated_scan(
    pre_btx: Float[Tensor, BT3D],
    decay_bias_d: Float[Tensor, D],
    delta_min: float,
    state_bd: Float[Tensor, BD] | None = None,
    resets_bt: Bool[Tensor, BT] | None = None,
    padding_bt: Bool[Tensor, BT] | None = None,
    method: str = "auto",
) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
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
        NotImplementedError: a method that was named does not run on these tensors.
    """
    check_gated_scan(pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt)
    inputs = GatedScanInputs(pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min)
    require_known("mixer method", method, ("auto", *METHODS))
    return _auto(inputs) if method == "auto" else METHODS[method](inputs)


def _auto(inputs: GatedScanInputs) -> tuple[Tensor, Tensor]:
    pre_btx, decay_bias_d, *_ = inputs
    method = scans.choose_method(pre_btx.shape, pre_btx.device, decay_bias_d.dtype)
    return METHODS[method](inputs) if sharing() is None else unfused_gated_scan(inputs, method)
