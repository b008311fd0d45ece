"""The parameter table: every tensor of a model, in one place.

A parameter's path is its attribute path, the same in both backends and in every file.
A matrix is (out, in); a fused matrix stacks its parts along the rows in the order given by `axes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spec.config import LiquidNetConfig

Init = Literal["normal", "zero", "one", "half_life"]


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Args:
        path: attribute path, `blocks.0.mixer.input.weight`.
        shape: sizes of the axes.
        axes: names of the axes (see spec/axes.py); a fused axis names its parts.
        init: `normal` N(0, 0.02), `zero`, `one`, or `half_life` (see spec/init.py).
        weight_decay: whether AdamW decays it: matrices yes, norms and biases no.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Init
    weight_decay: bool


def parameter_table(config: LiquidNetConfig) -> tuple[Parameter, ...]:
    """Every parameter of the model, in the order of the forward pass."""
    v, d, f = config.vocab_size, config.d_model, config.d_ff
    rows = [Parameter("embedding.weight", (v, d), ("v", "d"), "normal", True)]
    for i in range(config.n_layers):
        block = f"blocks.{i}"
        rows += [
            Parameter(f"{block}.mixer_norm.weight", (d,), ("d",), "one", False),
            Parameter(f"{block}.mixer.input.weight", (3 * d, d), ("value | decay | gate", "d"), "normal", True),
            Parameter(f"{block}.mixer.decay_bias", (d,), ("d",), "half_life", False),
            Parameter(f"{block}.mixer.output.weight", (d, d), ("d", "d"), "zero", True),
            Parameter(f"{block}.mlp_norm.weight", (d,), ("d",), "one", False),
            Parameter(f"{block}.mlp.input.weight", (2 * f, d), ("gate | up", "d"), "normal", True),
            Parameter(f"{block}.mlp.output.weight", (d, f), ("d", "f"), "zero", True),
        ]
    rows.append(Parameter("final_norm.weight", (d,), ("d",), "one", False))
    return tuple(rows)


def num_parameters(config: LiquidNetConfig) -> int:
    """Number of scalars; the embedding is tied and counts once."""
    return sum(int(np.prod(row.shape)) for row in parameter_table(config))


def check_parameters(config: LiquidNetConfig, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError naming the first tensor that is missing, unexpected or of another shape."""
    table = {row.path: row.shape for row in parameter_table(config)}
    for path, shape in table.items():
        if path not in arrays:
            raise ValueError(f"tensor {path} is missing")
        if tuple(arrays[path].shape) != shape:
            raise ValueError(f"tensor {path} has shape {tuple(arrays[path].shape)}, the configuration needs {shape}")
    for path in arrays:
        if path not in table:
            raise ValueError(f"tensor {path} is not part of the configured model")
