"""The parameter table: every tensor of a model, in one place.

A parameter's path is its attribute path, the same in both backends and in every file.
A matrix is (out, in); a fused matrix stacks its parts along the rows in the order given by `axes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from spec.config import LiquidNetConfig, LiquidSSMConfig, ModelConfig

Init = Literal["normal", "zero", "one", "half_life", "drive", "time_constant", "legs_frequency"]


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Args:
        path: attribute path, `blocks.0.mixer.input.weight`.
        shape: sizes of the axes.
        axes: names of the axes (see spec/axes.py); a fused axis names its parts.
        init: `normal` N(0, 0.02), `zero`, `one`, or what spec/init.py says of the name.
        weight_decay: whether AdamW decays it: matrices yes, norms and biases no.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Init
    weight_decay: bool


def parameter_table(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of the model, in the order of the forward pass."""
    v, d, f = config.vocab_size, config.d_model, config.d_ff
    mixer = _liquid_ssm(config) if isinstance(config, LiquidSSMConfig) else _liquid_mixer(config)
    rows = [Parameter("embedding.weight", (v, d), ("v", "d"), "normal", True)]
    for i in range(config.n_layers):
        block = f"blocks.{i}"
        rows += [
            Parameter(f"{block}.mixer_norm.weight", (d,), ("d",), "one", False),
            *(replace(row, path=f"{block}.mixer.{row.path}") for row in mixer),
            Parameter(f"{block}.mlp_norm.weight", (d,), ("d",), "one", False),
            Parameter(f"{block}.mlp.input.weight", (2 * f, d), ("gate | up", "d"), "normal", True),
            Parameter(f"{block}.mlp.output.weight", (d, f), ("d", "f"), "zero", True),
        ]
    rows.append(Parameter("final_norm.weight", (d,), ("d",), "one", False))
    return tuple(rows)


def _liquid_mixer(config: LiquidNetConfig) -> tuple[Parameter, ...]:
    d = config.d_model
    return (
        Parameter("input.weight", (3 * d, d), ("value | decay | gate", "d"), "normal", True),
        Parameter("decay_bias", (d,), ("d",), "half_life", False),
        Parameter("output.weight", (d, d), ("d", "d"), "zero", True),
    )


def _liquid_ssm(config: LiquidSSMConfig) -> tuple[Parameter, ...]:
    d, n, m, h = config.d_model, config.d_state, config.modes, config.d_tau
    frequency = (Parameter("frequency", (m,), ("m",), "legs_frequency", False),)
    return (
        Parameter("input.weight", (n + h, d), ("drive | tau", "d"), "drive", True),
        Parameter("tau_state.weight", (h, n), ("h", "n"), "normal", True),
        Parameter("tau_output.weight", (m, h), ("m", "h"), "normal", True),
        Parameter("log_tau", (m,), ("m",), "time_constant", False),
        Parameter("log_scale", (m,), ("m",), "zero", False),
        *(frequency if config.state == "diagonal" else ()),
        Parameter("output.weight", (d, n), ("d", "n"), "zero", True),
        Parameter("skip", (d,), ("d",), "zero", False),
    )


def fused_parts(row: Parameter, config: ModelConfig) -> dict[str, int]:
    """How many rows each part of a fused matrix has, by name and in order; a tensor that is not fused is one part."""
    names = row.axes[0].split(" | ")
    own = {"drive": config.d_state, "tau": config.d_tau} if isinstance(config, LiquidSSMConfig) else {}
    return {name: own.get(name, row.shape[0] // len(names)) for name in names}


def num_parameters(config: ModelConfig) -> int:
    """Number of scalars; the embedding is tied and counts once."""
    return sum(int(np.prod(row.shape)) for row in parameter_table(config))


def check_parameters(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> None:
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
