"""The scan, its masks and its gradient. Twin: jax_impl. Truth: spec/reference/scan.py.

    triton       one kernel in each direction, on GPUs of NVIDIA (8.0 and above) and AMD, or interpreted
    numba        one compiled pass over memory in each direction, on CPUs, float32 and float64
    chunked      two levels of sqrt(t) steps, everywhere
    sequential   one step after another, everywhere

`auto` is the first of these that runs where the tensors are; `sequential` instead of `chunked` for 16 tokens or fewer.
Where processes share the sequence (context_parallel.py) each scans its stretch with that method. A named method runs or
raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spec.axes import BD, BT, BTD
from spec.config import require_known
from spec.inputs import check_scan
from torch_impl.ops.autodiff import differentiated_again, in_transform
from torch_impl.ops.devices import default_device, takes_numba, takes_triton
from torch_impl.ops.scan.chunked import chunked_scan
from torch_impl.ops.scan.context_parallel import context_parallel_scan, sharing
from torch_impl.ops.scan.sequential import sequential_scan

FEW = 16
"""So few tokens are taken one after another where there is no kernel."""
METHODS = {"sequential": sequential_scan, "chunked": chunked_scan}
# The gradients of a method that has a kernel for them; of any other one, `_reversed`.
ADJOINTS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {}
try:
    from torch_impl.ops.scan.triton import triton_adjoint, triton_scan
except ImportError:
    pass
else:
    METHODS["triton"], ADJOINTS["triton"] = triton_scan, triton_adjoint
try:
    from torch_impl.ops.scan.numba import numba_adjoint, numba_scan
except ImportError:
    pass
else:
    METHODS["numba"], ADJOINTS["numba"] = numba_scan, numba_adjoint


def choose_method(
    shape: tuple[int, ...], device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """The method that `auto` takes for a scan of shape [b, t, d].

    Args:
        shape: b, t, d.
        device: where the tensors are; None is where training would run by default.
        dtype: of the drive.
    """
    device = default_device() if device is None else device
    if takes_triton(device):
        return "triton"
    if takes_numba(device, dtype):
        return "numba"
    return "sequential" if shape[1] <= FEW else "chunked"


def scan(
    decay_btd: Float[Tensor, BTD],
    drive_btd: Float[Tensor, BTD],
    state_bd: Float[Tensor, BD] | None = None,
    method: str = "auto",
    resets_bt: Bool[Tensor, BT] | None = None,
    padding_bt: Bool[Tensor, BT] | None = None,
) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
    """All states of h_t = decay_t h_{t-1} + drive_t and the last one, differentiable in all three inputs.

    A first-order linear recurrence (Blelloch 1990, section 1.4); its adjoint is the same recurrence in reversed time
    (Martin & Cundy 2018).

    Args:
        decay_btd: in [0, 1], [b, t, d].
        drive_btd: [b, t, d].
        state_bd: h_{-1}, [b, d], taken in the dtype of the drive; None is zero.
        method: a key of METHODS, or `auto`.
        resets_bt: true clears the state before token t is absorbed.
        padding_bt: true at positions that change nothing.

    Returns:
        states [b, t, d], the last state [b, d].

    Raises:
        ValueError: shapes or dtypes that do not agree, see spec/inputs.py, or an unknown method.
        NotImplementedError: a method that was named does not run on these tensors.
    """
    check_scan(decay_btd, drive_btd, state_bd, resets_bt, padding_bt)
    b, _, d = decay_btd.shape
    state_bd = drive_btd.new_zeros(b, d) if state_bd is None else state_bd.to(drive_btd.dtype)
    method = choose_method(decay_btd.shape, decay_btd.device, drive_btd.dtype) if method == "auto" else method
    require_known("scan method", method, METHODS)
    if resets_bt is not None:
        decay_btd = decay_btd.masked_fill(resets_bt[..., None], 0.0)
    if padding_bt is not None:
        decay_btd = decay_btd.masked_fill(padding_bt[..., None], 1.0)
        drive_btd = drive_btd.masked_fill(padding_bt[..., None], 0.0)
    group = sharing()
    if group is not None:
        return context_parallel_scan(decay_btd, drive_btd, state_bd, METHODS[method], _adjoint(method), group)
    if in_transform():
        states_btd = METHODS[method](decay_btd, drive_btd, state_bd)
        return states_btd, states_btd[:, -1]
    return _Scan.apply(decay_btd, drive_btd, state_bd, method)


def _adjoint(method: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return ADJOINTS.get(method) or partial(_reversed, METHODS[method])


class _Scan(torch.autograd.Function):
    """Only decay, states and h_{-1} are kept for the gradients."""

    @staticmethod
    def forward(ctx, decay_btd, drive_btd, state_bd, method):
        states_btd = METHODS[method](decay_btd, drive_btd, state_bd)
        ctx.save_for_backward(decay_btd, states_btd, state_bd)
        ctx.method = method
        return states_btd, states_btd[:, -1].clone()

    @staticmethod
    def backward(ctx, grad_states_btd, grad_last_bd):
        decay_btd, states_btd, state_bd = ctx.saved_tensors
        adjoint = _adjoint(ctx.method)
        if differentiated_again():
            adjoint = partial(_reversed, lambda decay, drive, state: _Scan.apply(decay, drive, state, ctx.method)[0])
        return *adjoint(decay_btd, states_btd, state_bd, grad_states_btd, grad_last_bd), None


def _reversed(method, decay_btd, states_btd, state_bd, grad_states_btd, grad_last_bd):
    """Gradients of decay, drive and initial state: the adjoint of a method is the same method in reversed time."""
    following_btd = torch.cat([torch.ones_like(state_bd)[:, None], decay_btd[:, 1:].flip(1)], dim=1)
    g_btd = method(following_btd, grad_states_btd.flip(1), grad_last_bd).flip(1)
    previous_btd = torch.cat([state_bd[:, None], states_btd[:, :-1]], dim=1)
    return g_btd * previous_btd, g_btd, decay_btd[:, 0] * g_btd[:, 0]
