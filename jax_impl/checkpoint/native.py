"""Parameters in and out, and Flax's own file. Twin: torch_impl. Truth: spec/checkpoint/format.py."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import nnx
from jaxtyping import Array

from jax_impl.protocols import LanguageModel
from spec.checkpoint.files import new_file, read_file, require_new
from spec.checkpoint.format import Checkpoint
from spec.checkpoint.tree import from_tree, to_tree
from spec.config import ModelConfig
from spec.parameters import check_parameters, parameter_table

# What Flax, fed damaged bytes, was seen to fail with.
_DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, SyntaxError, OverflowError, RecursionError,
    msgpack.UnpackException,
)  # fmt: skip


def load_parameters(model: LanguageModel, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy every parameter from NumPy, by path.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; or the model has other parameters than its
            configuration says.
    """
    check_parameters(_config(model), arrays)
    parameters = named_parameters(model)
    _require_own(model, {path: tuple(parameter.shape) for path, parameter in parameters.items()})
    for path, parameter in parameters.items():
        parameter[...] = jnp.array(arrays[path], parameter[...].dtype)


def dump_parameters(model: LanguageModel) -> dict[str, np.ndarray]:
    """A copy of every parameter as NumPy, by path.

    Raises:
        ValueError: the model has other parameters than its configuration says.
    """
    _config(model)
    parameters = named_parameters(model)
    _require_own(model, {path: tuple(parameter.shape) for path, parameter in parameters.items()})
    return {path: to_numpy(parameter[...]) for path, parameter in parameters.items()}


def named_parameters(model: LanguageModel) -> dict[str, nnx.Param]:
    """Every parameter of the model, or of a part of one, by path."""
    return {".".join(map(str, path)): parameter for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def _config(model: Any) -> ModelConfig:
    """The configuration of a model, and of no state of one."""
    if not hasattr(model, "config"):
        raise ValueError(
            f"a language model of jax_impl is needed, got {type(model).__name__}; nnx.merge makes one of a state"
        )
    return model.config


def _require_own(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError for parameters that are not those of the configuration."""
    table = {row.path: row.shape for row in parameter_table(_config(model))}
    for path in sorted(table.keys() | shapes.keys()):
        if table.get(path) != shapes.get(path):
            raise ValueError(
                f"the model's {path} has shape {shapes.get(path)}, its configuration says {table.get(path)}; "
                "give the model itself, without adapters or shared parameters"
            )


def to_numpy(array: Array) -> np.ndarray:
    """A copy of the array with the same bits, bfloat16 included."""
    return np.array(array)


def write_native(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as one `.msgpack` file, which `flax.serialization.msgpack_restore` reads.

    Raises:
        ValueError: the file already exists, or the checkpoint is not valid.
    """
    require_new(path)
    with new_file(path, replace=False) as temporary:
        temporary.write_bytes(flax.serialization.msgpack_serialize(to_tree(checkpoint)))


def read_native(path: Path) -> Checkpoint:
    """Read a checkpoint from a `.msgpack` file; the format holds data only.

    Raises:
        ValueError: the file is damaged, or fails its checksums.
    """
    content = read_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a strange dtype: the refusal says it all
            tree = flax.serialization.msgpack_restore(content)
    except _DAMAGE as error:
        # Not its repr, in which msgpack repeats all that it had read.
        reason = f"{type(error).__name__} {str(error)[:200]}".strip()
        raise ValueError(f"{path} is no .msgpack file of plain arrays and was not loaded: {reason}") from error
    return from_tree(tree, path)
