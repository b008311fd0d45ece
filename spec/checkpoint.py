"""The neutral checkpoint: a directory that both backends read and write, dtypes kept bit for bit.

    config.json  model.safetensors  optimizer.safetensors  tokenizer.json  state.json  SHA256SUMS

`optimizer.safetensors` holds `first_moment.<path>` and `second_moment.<path>`; it and `tokenizer.json` are
absent where the checkpoint has none. SHA256SUMS names every other file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from spec.config import LiquidNetConfig, config_from_json, config_to_json, require_integer, training_from_json
from spec.files import new_directory
from spec.optimizer import MOMENTS
from spec.parameters import check_parameters

FORMAT_VERSION = 1
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
COUNTERS = ("step", "samples_consumed", "tokens", "seed")
_STEP = re.compile(r"step_(\d+)")

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on, in NumPy.

    Args:
        config: the model.
        parameters: every parameter by path.
        moments: `first_moment` and `second_moment` of AdamW by path; empty for weights alone.
        state: JSON: the counters step, samples_consumed, tokens, seed; and what the trainer adds
            (training, data, backend, method, best, environment; grad_scaler in float16).
        tokenizer: content of tokenizer.json, or None.
    """

    config: LiquidNetConfig
    parameters: Arrays
    moments: Mapping[str, Arrays] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    tokenizer: str | None = None


def validate(checkpoint: Checkpoint) -> None:
    """Raises ValueError for a tensor that is missing, misshapen, of a strange dtype or not finite, or a bad counter."""
    check_parameters(checkpoint.config, checkpoint.parameters)
    if checkpoint.moments and set(checkpoint.moments) != set(MOMENTS):
        raise ValueError(f"optimizer state needs {' and '.join(MOMENTS)}, got {', '.join(checkpoint.moments)}")
    groups = {"": checkpoint.parameters, **{f"{name}.": arrays for name, arrays in checkpoint.moments.items()}}
    for prefix, arrays in groups.items():
        check_parameters(checkpoint.config, arrays)
        for path, array in arrays.items():
            if array.dtype not in DTYPES.values():
                raise ValueError(f"tensor {prefix}{path} has dtype {array.dtype}, which no checkpoint stores")
            if not np.isfinite(array.astype(np.float32) if array.dtype.itemsize == 2 else array).all():
                raise ValueError(f"tensor {prefix}{path} holds a value that is not finite")
    for name in COUNTERS:
        require_integer(f"state.json: {name}", checkpoint.state.get(name), 0, 2**64 - 1)
    for name in ("best", "environment", "data"):
        if not isinstance(checkpoint.state.get(name, {}), dict | None):
            raise ValueError(f"state.json: {name} must be an object, got {checkpoint.state[name]!r}")
    if "training" in checkpoint.state:
        training_from_json(checkpoint.state["training"])


def to_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The content of each file of a checkpoint directory, SHA256SUMS included."""
    validate(checkpoint)
    state = {"format_version": FORMAT_VERSION, **checkpoint.state}
    files = {
        "config.json": _json(config_to_json(checkpoint.config)),
        "model.safetensors": pack(checkpoint.parameters),
        "state.json": _json(state),
    }
    if checkpoint.moments:
        flat = {f"{name}.{path}": array for name in MOMENTS for path, array in checkpoint.moments[name].items()}
        files["optimizer.safetensors"] = pack(flat)
    if checkpoint.tokenizer is not None:
        files["tokenizer.json"] = checkpoint.tokenizer.encode()
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return {**files, "SHA256SUMS": sums.encode()}


def from_files(files: Mapping[str, bytes], where: object) -> Checkpoint:
    """The inverse of `to_files`; `where` names the source in messages.

    Raises:
        ValueError: a file is missing, fails its checksum, is of another format version, or holds a bad value.
    """
    try:
        return _from_files(files)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        reason = f"the entry {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"checkpoint {where}: {reason}") from error


def _from_files(files: Mapping[str, bytes]) -> Checkpoint:
    if "SHA256SUMS" not in files:
        raise ValueError("SHA256SUMS is missing; this is no checkpoint, or not a whole one")
    # Not `splitlines`, to which a damaged line break is one of ten others.
    *rows, rest = files["SHA256SUMS"].decode().split("\n")
    if rest:
        raise ValueError("SHA256SUMS does not end with a line break: it was damaged or changed")
    lines = [row.partition("  ") for row in rows]
    sums = {name: digest for digest, _, name in lines}
    for name in ("config.json", "model.safetensors", "state.json", *(name for name in files if name != "SHA256SUMS")):
        if name not in sums:
            raise ValueError(f"{name} is not listed in SHA256SUMS")
    for name, digest in sums.items():
        if name not in files:
            raise ValueError(f"{name} is missing")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise ValueError(f"{name} does not match SHA256SUMS: it was damaged or changed")
    state = json.loads(files["state.json"])
    if not isinstance(state, dict):
        raise ValueError("state.json must hold an object")
    version = state.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version!r}, this version of LiquidNet reads {FORMAT_VERSION}")
    flat = unpack(files["optimizer.safetensors"]) if "optimizer.safetensors" in files else {}
    moments: dict[str, dict[str, np.ndarray]] = {}
    for name, array in flat.items():
        kind, _, path = name.partition(".")
        moments.setdefault(kind, {})[path] = array
    tokenizer = files["tokenizer.json"].decode() if "tokenizer.json" in files else None
    config = config_from_json(json.loads(files["config.json"]))
    checkpoint = Checkpoint(config, unpack(files["model.safetensors"]), moments, state, tokenizer)
    validate(checkpoint)
    return checkpoint


def to_tree(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as one nested dict for a native format: JSON files as text, arrays in groups by path.

    SHA256SUMS goes along, so that `from_tree` verifies the arrays bit for bit.
    """
    files = to_files(checkpoint)
    text = {name: content.decode() for name, content in files.items() if not name.endswith(".safetensors")}
    return {**text, "parameters": dict(checkpoint.parameters), **{k: dict(v) for k, v in checkpoint.moments.items()}}


def from_tree(tree: Any, where: object) -> Checkpoint:
    """The inverse of `to_tree`; raises ValueError for anything that `to_tree` does not make."""
    if not isinstance(tree, dict) or not isinstance(tree.get("parameters"), dict) or "SHA256SUMS" not in tree:
        raise ValueError(f"{where} was not written by LiquidNet: it lacks its configuration and checksums")
    files = {str(name): value.encode() for name, value in tree.items() if isinstance(value, str)}
    try:
        files["model.safetensors"] = pack(tree["parameters"])
        moments = {f"{kind}.{path}": array for kind in MOMENTS for path, array in tree.get(kind, {}).items()}
        if moments:
            files["optimizer.safetensors"] = pack(moments)
    except (AttributeError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"{where} holds something that is not a named array: {error}") from error
    return from_files(files, where)


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint directory; it appears whole or not at all.

    Raises:
        ValueError: the directory already exists, or the checkpoint is not valid.
        OSError: the disk is full or not writable.
    """
    files = to_files(checkpoint)
    with new_directory(Path(directory)) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read and verify a checkpoint directory, or the newest one of a RUN directory; ValueError says what is wrong."""
    directory = find_checkpoint(Path(directory))
    if not (directory / "SHA256SUMS").is_file():
        raise ValueError(f"checkpoint {directory}: SHA256SUMS is missing; this is no checkpoint, or not a whole one")
    return from_files({path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}, directory)


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a RUN directory, oldest first."""
    found = [path for path in (Path(run) / "checkpoints").glob("step_*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def find_checkpoint(path: Path) -> Path:
    """`path` itself where it is a checkpoint directory, else the newest checkpoint of the run it names."""
    if (path / "checkpoints").is_dir():
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise ValueError(f"{path} holds no checkpoint yet; train further or name another run")
        return checkpoints[-1]
    if not path.is_dir():
        raise ValueError(f"{path} is not a checkpoint directory or a run")
    return path


def pack(arrays: Arrays) -> bytes:
    """safetensors bytes of named arrays, sorted by name."""
    return safetensors.numpy.save({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)})


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The inverse of `pack`, bfloat16 included; raises ValueError for a dtype that no checkpoint stores."""
    arrays = {}
    for name, tensor in safetensors.deserialize(content):
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"tensor {name} has dtype {tensor['dtype']}, which no checkpoint stores")
        arrays[name] = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return arrays


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
