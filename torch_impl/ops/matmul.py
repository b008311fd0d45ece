"""Matrix products of a linear layer. No twin: XLA has its own library. Truth: spec/reference/blocks.py.

    mm            torch.mm: MKL, OpenBLAS, cuBLAS, ..., everywhere
    convolution   a convolution with a kernel of one point, which oneDNN computes: CPUs, float32

On an AMD processor with AVX-512 MKL takes its AVX2 kernels and oneDNN the AVX-512 ones: twice as fast in float32 on two
cores of a Zen 5 (`liquidnet bench`). There `auto` is `convolution`, but for few rows; elsewhere they are alike, and it
is `mm`. A named method runs or raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spec.axes import BTI, BTO, NI, NO, OI
from spec.config import require_known
from torch_impl.ops.autodiff import in_transform, require_no_transform
from torch_impl.ops.devices import takes_numba

IMAGES = 16
"""So many images PyTorch gives to oneDNN whatever the number of threads; fewer, where there are two threads."""


def _is_faster() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(errors="replace")
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


PREFERS_CONVOLUTIONS = _is_faster()
"""Whether this is an AMD processor with AVX-512, as Linux tells, and PyTorch has oneDNN."""


def libraries(device: torch.device) -> dict[str, str]:
    """What computes on a CPU, and so decides the last bits: of the matrix products, and Numba's version."""
    if device.type != "cpu":
        return {}
    products = {"products": "convolutions" if PREFERS_CONVOLUTIONS else "torch.mm"}
    return products | {"numba": version("numba") if takes_numba(device) else "none"}


def choose_method(x: Tensor, rows: int) -> str:
    """The method that `auto` takes for a product of so many rows like x: of a few a convolution is the slower way."""
    fits = rows >= 2 * IMAGES and (rows % IMAGES == 0 or torch.get_num_threads() > 1)
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32 and not in_transform()
    return "convolution" if fits and on_cpu and PREFERS_CONVOLUTIONS else "mm"


def matmul(x: Float[Tensor, BTI], weight_oi: Float[Tensor, OI], method: str = "auto") -> Float[Tensor, BTO]:
    """y = x W^T, differentiable in both.

    Raises:
        ValueError: an unknown method.
        NotImplementedError: a convolution of what oneDNN does not compute.
    """
    return METHODS[_resolved(method, x)](x, weight_oi)


def matmul_gradients(
    x: Float[Tensor, NI], weight_oi: Float[Tensor, OI], grad_y: Float[Tensor, NO], method: str = "auto"
) -> tuple[Float[Tensor, NI], Float[Tensor, OI]]:
    """The gradients of x and W: (grad_y W, grad_y^T x)."""
    if _resolved(method, x) == "convolution":
        return _backward(x, weight_oi, grad_y, (True, True))
    return grad_y @ weight_oi, grad_y.T @ x


def _resolved(method: str, x: Tensor) -> str:
    if method == "auto":
        return choose_method(x, x.numel() // x.shape[-1])
    require_known("matmul method", method, METHODS)
    if method == "convolution" and (x.device.type != "cpu" or x.dtype != torch.float32):
        raise NotImplementedError(f"matmul method {method!r} needs float32 on a CPU, not {x.dtype} on {x.device.type}")
    if method == "convolution":
        require_no_transform(method)
    return method


class _Convolution(torch.autograd.Function):
    """Images of one column, a channel for each number of a row, under a kernel of one point."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        rows = x.reshape(-1, x.shape[-1])
        y = F.conv2d(_image(rows), weight[:, :, None, None])
        return _rows(y).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx, grad_y):
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        rows = x.reshape(-1, x.shape[-1])
        grad_x, grad_weight = _backward(rows, weight, grad_y.reshape(len(rows), -1), wanted)
        return None if grad_x is None else grad_x.reshape(x.shape), grad_weight


def _backward(x: Tensor, weight: Tensor, grad_y: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        _image(grad_y), _image(x), weight[:, :, None, None], None,
        [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [*wanted, False],
    )  # fmt: skip
    return _rows(grad_x) if wanted[0] else None, grad_weight.view(weight.shape) if wanted[1] else None


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": lambda x, weight: x @ weight.T,
    "convolution": lambda x, weight: _Convolution.apply(x, weight),
}


def _image(rows: Tensor) -> Tensor:
    """[n, i] as images [16, i, n / 16, 1], or one, whose channels lie side by side in memory."""
    images = IMAGES if len(rows) % IMAGES == 0 else 1
    return rows.contiguous().view(images, -1, 1, rows.shape[1]).permute(0, 3, 1, 2)


def _rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
