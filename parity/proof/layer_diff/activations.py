"""What the traces of both backends keep of a forward pass: names and order of `spec.reference.activations`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spec.config import ModelConfig
from spec.mixers import family
from spec.mixers.base import MixerFamily


def names(config: ModelConfig) -> list[str]:
    """Every tensor of a trace, in the order of the forward pass."""
    found = ["embedding"]
    for i in range(config.n_layers):
        mixer = tuple(f"mixer.{name}" for name in (*family_at(config, f"blocks.{i}").activations, "state"))
        inside = ("mixer_norm", *mixer, "mlp_norm", "mlp.input", "mlp.product", "mlp.output")
        found += [*(f"blocks.{i}.{inner}" for inner in inside), f"blocks.{i}"]
    return [*found, "final_norm", "logits"]


def keep(config: ModelConfig, found: dict[str, Any], path: str, first_input: Any, output: Any) -> None:
    """Put what a trace shows of one call of the module at `path` into `found`; the model's own path is empty."""
    block, inner = split(path)
    # No module gives these: they are what one takes.
    inputs = {"mixer.output": f"mixer.{family_at(config, path).recurrence}", "mlp.output": "mlp.product"}
    if inner in inputs:
        found[f"{block}.{inputs[inner]}"] = first_input
    if inner == "mixer":
        found[f"{path}.state"] = output[-1]
    elif inner != "mlp":  # its output is that of its last matrix
        # States come last, after the logits; a model may have its loss, or None, before them.
        found[path or "logits"] = output[-2] if isinstance(output, tuple) else output


def in_order(found: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The tensors of a whole forward pass in their order; each must have been met, and no other."""
    expected = names(config)
    if set(found) != set(expected):
        raise AssertionError(f"met once too often, or never: {sorted(set(found) ^ set(expected))}")
    return {name: found[name] for name in expected}


def family_at(config: ModelConfig, path: str) -> MixerFamily[Any]:
    """Whose mixer the block has that a path leads into; the model's family where it leads into none."""
    own, parts = family(config), path.split(".")
    return own.of_block(config, int(parts[1]))[0] if parts[0] == "blocks" else own


def split(path: str) -> tuple[str, str]:
    """The block and what is inside it: `blocks.0`, `mixer.output`; all of it and nothing where there is no block."""
    parts = path.split(".")
    return ".".join(parts[:2]), ".".join(parts[2:])
