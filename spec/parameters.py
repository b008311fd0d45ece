"""The parameter table: every tensor of a model, in one place.

A parameter's path is its attribute path, the same in both backends and in every file.
A matrix is (out, in); a fused matrix stacks its parts along the rows in the order given by `axes`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from spec.config import ModelConfig
from spec.mixers import family
from spec.mixers.base import Parameter, normal, ones, zeros


def parameter_table(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of the model, in the order of the forward pass."""
    v, d, f = config.vocab_size, config.d_model, config.d_ff
    rows = [Parameter("embedding.weight", (v, d), ("v", "d"), normal, True)]
    for i in range(config.n_layers):
        block = f"blocks.{i}"
        own, own_config = family(config).of_block(config, i)
        rows += [
            Parameter(f"{block}.mixer_norm.weight", (d,), ("d",), ones, False),
            *(replace(row, path=f"{block}.mixer.{row.path}") for row in own.layer_parameters(own_config, i)),
            Parameter(f"{block}.mlp_norm.weight", (d,), ("d",), ones, False),
            Parameter(f"{block}.mlp.input.weight", (2 * f, d), ("gate | up", "d"), normal, True),
            Parameter(f"{block}.mlp.output.weight", (d, f), ("d", "f"), zeros, True),
        ]
    rows.append(Parameter("final_norm.weight", (d,), ("d",), ones, False))
    return tuple(rows)


def num_parameters(config: ModelConfig) -> int:
    """Number of scalars; the embedding is tied and counts once."""
    return sum(int(np.prod(row.shape)) for row in parameter_table(config))


def check_parameters(
    config: ModelConfig, arrays: Mapping[str, np.ndarray], paths: Collection[str] | None = None
) -> None:
    """Raises ValueError naming the first tensor that is missing, unexpected or of another shape; `paths` are asked for,
    by default all of the table."""
    table = {row.path: row.shape for row in parameter_table(config) if paths is None or row.path in paths}
    for path, shape in table.items():
        if path not in arrays:
            raise ValueError(f"tensor {path} is missing")
        if tuple(arrays[path].shape) != shape:
            raise ValueError(f"tensor {path} has shape {tuple(arrays[path].shape)}, the configuration needs {shape}")
    for path in arrays:
        if path not in table:
            raise ValueError(f"tensor {path} is not part of the configured model")
