"""Which devices run which kernels, and which dtypes. No twin: JAX asks its compiler."""

from __future__ import annotations

import logging
import os

import numpy as np
import torch

from torch_impl.ops.autodiff import in_transform, require_no_transform

try:
    from triton import knobs

    HAS_TRITON, INTERPRETED = True, bool(knobs.runtime.interpret)
except ImportError:
    HAS_TRITON = INTERPRETED = False

try:
    from torch_impl.kernels import numba  # noqa: F401

    HAS_NUMBA = True
except ImportError as error:
    HAS_NUMBA = False
    if error.name != "numba":
        logging.getLogger(__name__).warning("without kernels for a CPU, slower: %s", error)

WIDE = (torch.float32, torch.float64)
"""What the Numba kernels compute in."""
OLDEST = (8, 0)
"""Least compute capability of the kernels: below it bfloat16 is missing."""


def host_values(x: torch.Tensor) -> np.ndarray | None:
    """What a tensor holds where the host has it: on a CPU, in no program that is compiled, traced or mapped; else None.

    Nothing is copied, and no device is waited for.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    try:
        return x.detach().numpy()
    except (RuntimeError, TypeError):
        # Inside torch.func.vmap and among fake tensors there are no numbers, and NumPy has no bfloat16.
        return None


def default_device() -> torch.device:
    """Where models are put: an NVIDIA or AMD GPU, else an Intel one, else Apple's, else the CPU.

    CUDA_VISIBLE_DEVICES set to nothing, or to -1, says CPU, whatever else there is. On Intel (xpu) and Apple (mps)
    every plain method should run; nothing has been run there yet. mps has no float64.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def triton_refusal(device: torch.device) -> str | None:
    """Why the Triton kernels do not run on this device, or None where they do.

    They run on NVIDIA GPUs of compute capability 8.0 and above, on AMD GPUs, and, with TRITON_INTERPRET=1 set before
    Triton is imported, interpreted on the CPU.
    """
    if not HAS_TRITON:
        return "Triton is not installed; pip install 'liquidnet-dual[triton]'"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the Triton kernels need a GPU, the tensors are on {device.type}; TRITON_INTERPRET=1 interprets them"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        major, minor = torch.cuda.get_device_capability(device)
        return (
            f"the Triton kernels need compute capability 8.0, {torch.cuda.get_device_name(device)} has {major}.{minor}"
        )
    return None


def takes_triton(device: torch.device) -> bool:
    """Whether `auto` takes the Triton methods: on every GPU that runs them, never interpreted; not in torch.func."""
    return device.type == "cuda" and triton_refusal(device) is None and not in_transform()


def require_triton(method: str, device: torch.device) -> None:
    """Raises NotImplementedError, saying why, where a method that is written in Triton does not run."""
    reason = triton_refusal(device)
    if reason is not None:
        raise NotImplementedError(f"method {method!r}: {reason}")
    require_no_transform(method)


def takes_numba(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `auto` takes the Numba kernels: on a CPU where they can be, at any size; not in autocast, torch.func."""
    here = HAS_NUMBA and device.type == "cpu" and dtype in WIDE
    return here and not torch.is_autocast_enabled("cpu") and not in_transform()


def require_numba(method: str, x: torch.Tensor) -> None:
    """Raises NotImplementedError where a tensor of another device or dtype would go through kernels for a CPU."""
    if x.device.type != "cpu" or x.dtype not in WIDE:
        raise NotImplementedError(
            f"method {method!r}: the Numba kernels need float32 or float64 on a CPU, not {x.dtype} on {x.device.type}"
        )
    require_no_transform(method)


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 operands run in hardware; where they do not, float16 does."""
    if device.type != "cuda":
        return True
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= OLDEST


def architecture(device: torch.device) -> str:
    """`sm_90`, `gfx942` and the like; `cpu` where kernels are interpreted."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
