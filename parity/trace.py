"""What the traces of both backends keep of a forward pass: names and order of `spec.reference.activations`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INSIDE = (
    "mixer_norm", "mixer.input", "mixer.gated", "mixer.state", "mixer.output",
    "mlp_norm", "mlp.input", "mlp.product", "mlp.output",
)  # fmt: skip
"""What each block gives before its own output, in the order of the forward pass."""
INPUTS = {"mixer.output": "mixer.gated", "mlp.output": "mlp.product"}
"""Modules whose input is kept too, and its name: no module gives it."""


def names(n_layers: int) -> list[str]:
    """Every tensor of a trace, in the order of the forward pass."""
    blocks = [name for i in range(n_layers) for name in (*(f"blocks.{i}.{inner}" for inner in INSIDE), f"blocks.{i}")]
    return ["embedding", *blocks, "final_norm", "logits"]


def keep(found: dict[str, Any], path: str, first_input: Any, output: Any) -> None:
    """Put what a trace shows of one call of the module at `path` into `found`; the model's own path is empty."""
    block, inner = split(path)
    if inner in INPUTS:
        found[f"{block}.{INPUTS[inner]}"] = first_input
    if inner == "mixer":
        found[f"{path}.state"] = output[1]
    elif inner != "mlp":  # as with the mixer, its output is that of its last matrix
        found[path or "logits"] = output[0] if isinstance(output, tuple) else output


def in_order(found: Mapping[str, Any], n_layers: int) -> dict[str, Any]:
    """The tensors of a whole forward pass in their order; each must have been met, and no other."""
    expected = names(n_layers)
    assert set(found) == set(expected), set(found) ^ set(expected)
    return {name: found[name] for name in expected}


def split(path: str) -> tuple[str, str]:
    """The block and what is inside it: `blocks.0`, `mixer.output`; all of it and nothing where there is no block."""
    parts = path.split(".")
    return ".".join(parts[:2]), ".".join(parts[2:])
