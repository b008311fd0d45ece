"""The proof: both backends against one float64 reference, within derived bounds.

    parity.prove(parity.FunctionOperation(name=..., reference=..., torch=..., jax=..., draw=...)).require()

proves a function of anybody's: docs/guide/prove_your_port.md. Imported without a framework.
"""

import importlib
from typing import Any

__all__ = ["FunctionOperation", "Result", "prove"]

#: Loaded on first use (PEP 562): `import parity` is what every module below does.
_PLACES = {"FunctionOperation": "operation", "Result": "result", "prove": "prove"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"parity.proof.functions.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
