"""Lets the Triton kernels run interpreted in this process, where there is no GPU to run them; Pallas always may."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil

from parity.proof.environment import ROOT

METHODS: set[str] = set()
"""Methods of torch_impl that run interpreted in this process; empty on a GPU."""
PALLAS = "pallas"
"""The method of jax_impl that is interpreted wherever there is no TPU."""
WHY_NOT = "interpreted here, seconds a problem: parity/tests/ops/test_pallas_kernels.py has it"


def is_slow(backend: str, method: str) -> bool:
    """Whether the backend's method is interpreted here."""
    if backend == "torch":
        return method in METHODS
    import jax

    return method == PALLAS and jax.default_backend() != "tpu"


def interpret_unless_gpu() -> None:
    """Import the Triton kernels as the interpreter's where there is no GPU, its scans made fast.

    For this process alone. Triton decides when a kernel is imported: this has to come before any import of torch_impl.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
        return
    import torch

    if torch.cuda.is_available():
        return
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from parity.proof.triton_interpreter import fast_scans

        # All that asks, when it is imported, whether kernels are interpreted.
        importlib.import_module("triton.experimental.gluon")
        for kernel in pkgutil.iter_modules([str(ROOT / "torch_impl" / "kernels" / "triton")]):
            importlib.import_module(f"torch_impl.kernels.triton.{kernel.name}")

        fast_scans()
        METHODS.add("triton")
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
