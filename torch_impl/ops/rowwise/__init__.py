"""RMSNorm and the product of SwiGLU, row by row. No twin: XLA fuses the plain form. Truth: spec/reference/blocks.py.

    numba   one compiled pass over memory in each direction, on CPUs, float32 and float64 (numba.py)
    plain   operations of PyTorch, everywhere (plain.py)

`auto` is `numba` where it runs, but not inside autocast or torch.func. A named method runs or raises
NotImplementedError. The layers of a model take `auto`, whatever the method of its mixer.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from spec.axes import BTD, BTF, BTI, D
from spec.config import require_known
from torch_impl.ops.devices import takes_numba
from torch_impl.ops.rowwise.plain import plain_rms_norm, plain_swiglu

# Of each method, RMSNorm and SwiGLU.
METHODS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {"plain": (plain_rms_norm, plain_swiglu)}
try:
    from torch_impl.ops.rowwise.numba import numba_rms_norm, numba_swiglu
except ImportError:
    pass
else:
    METHODS["numba"] = numba_rms_norm, numba_swiglu


def choose_method(x: Tensor) -> str:
    """The method that `auto` takes for rows like these."""
    return "numba" if takes_numba(x.device, x.dtype) else "plain"


def rms_norm(
    x_btd: Float[Tensor, BTD], weight_d: Float[Tensor, D], eps: float, method: str = "auto"
) -> Float[Tensor, BTD]:
    """weight x / sqrt(mean(x^2) + eps), the mean over d. Source: Zhang & Sennrich 2019, equation 4.

    Raises:
        ValueError: an unknown method.
        NotImplementedError: a method that was named does not run on this tensor.
    """
    return METHODS[_resolved(method, x_btd)][0](x_btd, weight_d, eps)


def swiglu(pre_bti: Float[Tensor, BTI], method: str = "auto") -> Float[Tensor, BTF]:
    """silu(gate) up of pre = gate | up. Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.

    Raises:
        ValueError: an unknown method.
        NotImplementedError: a method that was named does not run on this tensor.
    """
    return METHODS[_resolved(method, pre_bti)][1](pre_bti)


def _resolved(method: str, x: Tensor) -> str:
    method = choose_method(x) if method == "auto" else method
    require_known("rowwise method", method, METHODS)
    return method
