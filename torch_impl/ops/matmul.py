"""Matrix products on a CPU, by the faster of two libraries. No twin: XLA has its own. Truth: spec/reference/blocks.py.

torch.mm calls MKL, which takes the AVX2 kernels on an AMD processor with AVX-512; a convolution calls oneDNN, which
takes the AVX-512 ones: twice as fast in float32 on two cores of a Zen 5 (`liquidnet bench`). Elsewhere they are alike.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from spec.axes import BTI, BTO, NI, NO, OI
from torch_impl.ops.devices import takes_numba

IMAGES = 16
"""So many images PyTorch gives to oneDNN whatever the number of threads; fewer, where there are two threads."""


def _is_faster() -> bool:
    told = Path("/proc/cpuinfo")
    amd = told.exists() and "AuthenticAMD" in told.read_text(errors="replace")
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


PREFERS_CONVOLUTIONS = _is_faster()
"""Whether this is an AMD processor with AVX-512, as Linux tells, and PyTorch has oneDNN."""


def libraries(device: torch.device) -> dict[str, str]:
    """What computes on a CPU, and so decides the last bits: of the products, and Numba's version."""
    if device.type != "cpu":
        return {}
    products = {"products": "convolutions" if PREFERS_CONVOLUTIONS else "torch.mm"}
    return products | {"numba": version("numba") if takes_numba(device) else "none"}


def as_convolution(x: Tensor, rows: int) -> bool:
    """Whether a product of so many rows like x goes through a convolution: of a few it is the slower way."""
    fits = rows >= 2 * IMAGES and (rows % IMAGES == 0 or torch.get_num_threads() > 1)
    return fits and x.device.type == "cpu" and x.dtype == torch.float32 and PREFERS_CONVOLUTIONS


def product(x: Float[Tensor, BTI], weight_oi: Float[Tensor, OI]) -> Float[Tensor, BTO]:
    """x W^T, differentiable in both."""
    if as_convolution(x, x.numel() // x.shape[-1]):
        return _Convolution.apply(x, weight_oi)
    return x @ weight_oi.T


def gradients(
    x: Float[Tensor, NI], weight_oi: Float[Tensor, OI], of_y: Float[Tensor, NO]
) -> tuple[Float[Tensor, NI], Float[Tensor, OI]]:
    """Those of `product` by x and by W."""
    if as_convolution(x, len(x)):
        return _backward(x, weight_oi, of_y, (True, True))
    return of_y @ weight_oi, of_y.T @ x


class _Convolution(torch.autograd.Function):
    """Images of one column, a channel for each number of a row, under a kernel of one point."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        rows = x.reshape(-1, x.shape[-1])
        y = F.conv2d(_image(rows), weight[:, :, None, None])
        return _rows(y).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        rows = x.reshape(-1, x.shape[-1])
        of_x, of_weight = _backward(rows, weight, of_y.reshape(len(rows), -1), wanted)
        return None if of_x is None else of_x.reshape(x.shape), of_weight


def _backward(x: Tensor, weight: Tensor, of_y: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        _image(of_y), _image(x), weight[:, :, None, None], None,
        [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [*wanted, False],
    )  # fmt: skip
    return _rows(of_x) if wanted[0] else None, of_weight.view(weight.shape) if wanted[1] else None


def _image(rows: Tensor) -> Tensor:
    """[n, i] as images [16, i, n / 16, 1], or one, whose channels lie side by side in memory."""
    images = IMAGES if len(rows) % IMAGES == 0 else 1
    return rows.contiguous().view(images, -1, 1, rows.shape[1]).permute(0, 3, 1, 2)


def _rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
