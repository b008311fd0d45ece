"""Parameters in and out, and PyTorch's own file. Twin: jax_impl/checkpoint.py. Truth: spec/checkpoint.py."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from spec.checkpoint import Checkpoint, from_tree, to_tree
from spec.files import new_file, require_new
from spec.parameters import check_parameters

if TYPE_CHECKING:
    from torch_impl.model import LiquidNet

# What a restricted unpickler, fed damaged bytes, was seen to fail with.
_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, RecursionError, NotImplementedError,
)  # fmt: skip


def load_parameters(model: LiquidNet, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy every parameter from NumPy, by path.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    check_parameters(model.config, arrays)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(from_numpy(arrays[path]))


def dump_parameters(model: LiquidNet) -> dict[str, np.ndarray]:
    """A copy of every parameter as NumPy, by path."""
    return {path: to_numpy(parameter) for path, parameter in model.named_parameters()}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of the tensor with the same bits, bfloat16 included."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def from_numpy(array: np.ndarray) -> Tensor:
    """A copy of the array with the same bits, bfloat16 included."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def write_native(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as one `.pt` file, which `torch.load(path, weights_only=True)` reads.

    Raises:
        ValueError: the file already exists, or the checkpoint is not valid.
    """
    require_new(path)
    # Through memory: torch.save's own writer turns a full disk into a RuntimeError.
    content = io.BytesIO()
    torch.save(_map_arrays(to_tree(checkpoint), np.ndarray, from_numpy), content)
    with new_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def read_native(path: Path) -> Checkpoint:
    """Read a checkpoint from a `.pt` file without running any code that it may hold.

    Raises:
        ValueError: the file is damaged, holds more than tensors and text, or fails its checksums.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a strange pickle protocol: the refusal says it all
            tree = _map_arrays(torch.load(path, map_location="cpu", weights_only=True), Tensor, to_numpy)
    except _DAMAGE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is no .pt file of plain tensors and was not loaded: {reason}") from error
    return from_tree(tree, path)


def _map_arrays(tree: Any, kind: type, convert: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map_arrays(value, kind, convert) for name, value in tree.items()}
    return convert(tree) if isinstance(tree, kind) else tree
