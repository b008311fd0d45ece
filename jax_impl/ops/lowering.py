"""What runs where: chosen when a program is lowered. No twin: PyTorch asks the tensor's device. Truth: spec/axes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def by_platform(
    *arrays: Any, tpu: Callable[..., Any], default: Callable[..., Any], cpu: Callable[..., Any] | None = None
) -> Any:
    """`tpu` of the arrays where the program is lowered for a TPU, elsewhere `default` of them; differentiable.

    Which of them is known when the program is lowered, not when it is traced and never by the devices that are here:
    a program compiled on a CPU machine for a TPU is the TPU's.

    Args:
        arrays: what both are given; None is passed on.
        tpu, default: of the same results.
        cpu: where the program is lowered for a CPU; None is `default`.
    """
    return jax.lax.platform_dependent(*arrays, tpu=tpu, cpu=cpu or default, default=default)
