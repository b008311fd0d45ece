"""Which backends are installed, and how to get at one by name."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Literal

from parity.proof.adapters import FRAMEWORKS, missing

Backend = Literal["torch", "jax"]
BACKENDS: tuple[Backend, ...] = ("torch", "jax")


def installed() -> list[Backend]:
    """The backends whose framework can be imported here."""
    return [name for name in BACKENDS if missing(name) is None]


def load(backend: str, module: str) -> ModuleType:
    """`torch_impl.<module>` or `jax_impl.<module>`; raises ValueError saying what to install where it is missing."""
    # By default a waiting OpenMP thread spins: beside any other busy process a step then takes up to 50 times as long.
    # A tenth of a millisecond is worth it: to wake a thread for each operator takes a third of a small step or token.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if backend == "torch":
        _require_working_directory()
    try:
        return importlib.import_module(f"{backend}_impl.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in FRAMEWORKS[backend]:
            raise
        raise ValueError(
            f"backend {backend} needs {error.name}, which is not installed; pip install 'liquidnet-dual[{backend}]'"
        ) from error


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        # Intel's MKL, which does not find itself without one, would end the process.
        raise ValueError("torch needs a working directory, and this one was deleted; cd to another") from error


def default() -> Backend:
    """The first backend installed; raises ValueError where there is none."""
    found = installed()
    if not found:
        raise ValueError("no backend is installed; pip install 'liquidnet-dual[torch]' or 'liquidnet-dual[jax]'")
    return found[0]
