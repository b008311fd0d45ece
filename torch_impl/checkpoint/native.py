"""Parameters in and out, and PyTorch's own file. Twin: jax_impl. Truth: spec/checkpoint/format.py."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from spec.checkpoint.files import is_utf8, new_file, require_file, require_new
from spec.checkpoint.format import Checkpoint
from spec.checkpoint.tree import from_tree, to_tree
from spec.config import ModelConfig
from spec.parameters import check_parameters, parameter_table
from torch_impl.protocols import LanguageModel
from torch_impl.training.distributed import full_tensor, local_part, to_local

# What a restricted unpickler, fed damaged bytes, was seen to fail with.
_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, RecursionError, NotImplementedError, zlib.error,
)  # fmt: skip

# `weights_only` lets a pickle call more, such as bytearray(n) and Tensor(n), which make memory out of nothing.
_PLAIN = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage")


# As what a wrapper keeps what it wraps: torch.compile, DDP and DataParallel, activation checkpoints, FSDP.
_WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_REPLICATED = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def load_parameters(model: LanguageModel | nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy every parameter from NumPy, by path.

    The model, or its blocks, may be wrapped: by torch.compile, DDP and the like.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; or the model has other parameters than its
            configuration says, or one for two paths whose values differ.
    """
    check_parameters(_config(model), arrays)
    parameters = named_parameters(model)
    _require_own(model, {path: tuple(parameter.shape) for path, parameter in parameters.items()})
    first: dict[int, str] = {}
    for path, parameter in parameters.items():
        other = first.setdefault(id(parameter), path)
        if other != path and arrays[path].tobytes() != arrays[other].tobytes():
            raise ValueError(f"{other} and {path} are one parameter of this model, and their values differ; untie them")
    with torch.no_grad():
        for path, parameter in parameters.items():
            to_local(parameter).copy_(local_part(from_numpy(arrays[path]), parameter))


def dump_parameters(model: LanguageModel | nn.Module) -> dict[str, np.ndarray]:
    """A copy of every parameter as NumPy, by path.

    The model, or its blocks, may be wrapped: by torch.compile, DDP and the like.

    Raises:
        ValueError: the model has other parameters than its configuration says.
    """
    _config(model)
    parameters = named_parameters(model)
    _require_own(model, {path: tuple(parameter.shape) for path, parameter in parameters.items()})
    return {path: to_numpy(parameter) for path, parameter in parameters.items()}


def named_parameters(model: LanguageModel | nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of the model, or of a part of one, by path.

    Without what a wrapper puts before it: a module of one's own may be called `module`, too.
    """
    return {_without_wrappers(model, name): one for name, one in model.named_parameters(remove_duplicate=False)}


def _without_wrappers(model: Any, name: str) -> str:
    owner, kept = model, []
    for part in name.split("."):
        if part not in _WRAPPERS or (part == "module" and not isinstance(owner, _REPLICATED)):
            kept.append(part)
        owner = getattr(owner, part)
    return ".".join(kept)


def _config(model: Any) -> ModelConfig:
    """The configuration of a model, whatever wraps it."""
    inner = model
    while not hasattr(inner, "config"):
        wrapped = [getattr(inner, name) for name in _WRAPPERS if hasattr(inner, name)]
        if not wrapped:
            raise ValueError(f"a language model of torch_impl is needed, got {type(model).__name__}; give the model")
        inner = wrapped[0]
    return inner.config


def _require_own(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError for parameters that are not those of the configuration."""
    table = {row.path: row.shape for row in parameter_table(_config(model))}
    for path in sorted(table.keys() | shapes.keys()):
        if table.get(path) != shapes.get(path):
            raise ValueError(
                f"the model's {path} has shape {shapes.get(path)}, its configuration says {table.get(path)}; "
                "give the model itself, without adapters or parametrizations (of FSDP: inside summon_full_params)"
            )


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of the tensor with the same bits, bfloat16 included; whole where processes have parts of it."""
    tensor = full_tensor(tensor.detach()).cpu().contiguous()
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
    with new_file(path, replace=False) as temporary:
        temporary.write_bytes(content.getbuffer())


def read_native(path: Path) -> Checkpoint:
    """Read a checkpoint from a `.pt` file without running any code that it may hold.

    Raises:
        ValueError: the file is damaged, holds more than tensors and text, or fails its checksums.
    """
    require_file(path)
    room = path.stat().st_size

    def copy(tensor: Tensor) -> np.ndarray:
        nonlocal room
        room -= tensor.nbytes
        if room < 0:
            raise ValueError("its tensors claim more bytes than it has")
        return to_numpy(tensor)

    try:
        _require_plain(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a strange pickle protocol: the refusal says it all
            # Mapped, a tensor ends where the file ends; read, it is as long as it claims in some releases of torch.
            with path.open("rb") as file:
                # A name that is not UTF-8 torch does not open, and what is no name it does not map.
                name = path if is_utf8(path) else f"/dev/fd/{file.fileno()}"
                tree = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
        tree = _map_arrays(tree, Tensor, copy)
    except _DAMAGE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is no .pt file of plain tensors and was not loaded: {reason}") from error
    return from_tree(tree, path)


def _require_plain(path: Path) -> None:
    """Raises what `_DAMAGE` holds for an archive that `torch.save` does not write: it could ask for any memory."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        folder = names[0].partition("/")[0] if names else ""
        for name in names:
            if not folder or not name.startswith(f"{folder}/") or ".." in name.split("/"):
                raise ValueError(f"it holds an entry {name[:80]!r}, outside its folder")
        if len({*names}) < len(names):
            raise ValueError("it holds two entries of one name")
        if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
            raise ValueError("it holds a compressed entry")
        for opcode, argument, _ in pickletools.genops(archive.read(f"{folder}/data.pkl")):
            if opcode.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
                raise ValueError(f"its pickle asks for {str(argument)[:80]!r}")


def _map_arrays(tree: Any, kind: type, convert: Any, depth: int = 2) -> Any:
    # No deeper: a dict may hold itself.
    if isinstance(tree, dict) and depth:
        return {name: _map_arrays(value, kind, convert, depth - 1) for name, value in tree.items()}
    return convert(tree) if isinstance(tree, kind) else tree
