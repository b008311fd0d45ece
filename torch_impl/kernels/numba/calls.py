"""How kernels are given tensors. No twin: Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_impl.kernels.numba import threads

NONE = np.zeros((0, 0), np.bool_)
"""A mask that is not there."""


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function that torch.compile takes as one operator, `fake` telling the shapes, and that is plain otherwise.

    Called as an operator it costs 20 microseconds, as much as many of the kernels.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.library.custom_op(f"liquidnet::{name}", function, mutates_args=())
        compiled.register_fake(fake)

        def call(*arguments: Any) -> Any:
            return compiled(*arguments) if torch.compiler.is_compiling() else function(*arguments)

        return call

    return wrap


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The same memory as NumPy has it, rows side by side."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def apart(parameter: Tensor) -> np.ndarray:
    """A copy of a parameter, of d numbers: FSDP gives its memory back, which NumPy forbids of what it has seen."""
    return parameter.detach().clone().numpy()


def mask(mask_bt: Tensor | None) -> np.ndarray:
    """A mask, or NONE."""
    return NONE if mask_bt is None else arrays(mask_bt)[0]


def cuts(rows: int) -> int:
    """Into how many pieces the channels of a row are cut: as few as give each thread one."""
    return -(-threads() // max(1, rows))
