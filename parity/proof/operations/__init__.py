"""Every operation that is proved: its problems, its float64 truth, its bounds, and how to ask a backend for it.

Tests, report and self-test iterate over OPERATIONS, over the backends and over the METHODS that these register: what is
added to one of them is proved by existing. A failing case is repeated with

    check("scan", "torch", "chunked", "float32", ScanCase(...))
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from typing import Any

import numpy as np

from parity.proof import adapters
from parity.proof.bounds import assert_within
from parity.proof.operations import mixers
from parity.proof.operations.base import Arrays, Operation, SelfTest
from parity.proof.operations.layers import AdamW, CrossEntropy, RMSNorm, Scan, SwiGLU
from spec.mixers import families

__all__ = ["OPERATIONS", "Operation", "SelfTest", "check", "expected", "label_of", "operations_of", "self_tests"]


def of_families() -> dict[str, Any]:
    """What each family proves, by its name: the module of this package that has it, with OPERATIONS and SELF_TEST."""
    found = {name for _, name, _ in pkgutil.iter_modules(__path__)}
    return {name: importlib.import_module(f"{__name__}.{name}") for name in families() if name in found}


def operations_of(name: str) -> tuple[Operation, ...]:
    """What is proved of a family: what its own module here says, else its mixer and the model around it."""
    own = of_families().get(name)
    return mixers.operations_of(name) if own is None else tuple(kind() for kind in own.OPERATIONS)


SHARED = (Scan, RMSNorm, SwiGLU, CrossEntropy, AdamW)
OPERATIONS: dict[str, Operation] = {kind.name: kind() for kind in SHARED}
OPERATIONS |= {one.name: one for name in families() for one in operations_of(name)}


def self_tests() -> dict[str, SelfTest]:
    """What stands in the self-test for the methods of each family's mixer, by what they are listed under."""
    return {families()[name].operation: module.SELF_TEST for name, module in of_families().items()}


@lru_cache(maxsize=256)
def expected(name: str, case: Any, dtype: str) -> tuple[Arrays, Arrays]:
    """Truth and bounds of a case; kept, since every backend and method is asked the same."""
    operation = OPERATIONS[name]
    return operation.truth(case), operation.bounds_in(case, dtype)


def label_of(name: str, backend: str, method: str, dtype: str) -> str:
    """What `check` keeps its errors under."""
    return ", ".join(part for part in (name, dtype, f"{backend} {method}".strip()) if part)


def check(name: str, backend: str, method: str, dtype: str, case: Any, **options: Any) -> float:
    """The largest error of a backend in units of its bound; AssertionError, naming the worst entry, where it exceeds 1.

    Args:
        name: a key of OPERATIONS.
        backend: `torch` or `jax`.
        method: one of the operation's methods, or "" where it has none.
        dtype: one of the operation's dtypes.
        case: of parity/proof/problems/cases.py.
        options: for the operation's `run`.
    """
    found = OPERATIONS[name].run(adapters.load(backend), case, method, dtype, **options)
    label = label_of(name, backend, method, dtype)
    truth, bounds = expected(name, case, dtype)
    # A float32 method that computes wider keeps every bound, and is another method. A loss is told as a plain number.
    wide = np.float64 if dtype == "float64" else np.float32
    strange = {tensor: found[tensor].dtype for tensor, x in truth.items() if x.ndim and found[tensor].dtype != wide}
    if strange:
        raise AssertionError(f"{label}: {strange}, expected {np.dtype(wide)}")
    return assert_within(found, truth, bounds, label)
