"""The neutral checkpoint: a directory that both backends read and write, dtypes kept bit for bit.

    config.json  model.safetensors  optimizer.safetensors  states.safetensors  tokenizer.json  state.json  SHA256SUMS

`optimizer.safetensors` holds `first_moment.<path>` and `second_moment.<path>`, `states.safetensors` the one tensor
`states`; they and `tokenizer.json` are absent where the checkpoint has none. SHA256SUMS names every other file.
Parameters and moments may lie in parts instead (`spec/checkpoint/sharded.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from spec.checkpoint.checksums import checksums, file_sha256, listed_sums, sha256, verify
from spec.checkpoint.directory import TEXTS, checkpoint_files, parts_of
from spec.checkpoint.files import new_directory, read_file, require_file
from spec.checkpoint.sharded import ORBAX, PARAMETERS, by_kind, is_part, is_shard, join_shards, named_arrays, one_shard
from spec.checkpoint.tensors import DTYPES, Arrays, pack, unpack
from spec.config import ModelConfig, TrainingConfig, config_to_json, training_from_json
from spec.mixers import config_from_json, state_shape
from spec.optimizer import MOMENTS, moment_paths
from spec.parameters import check_parameters
from spec.validation import require_integer

FORMAT_VERSION = 1
COUNTERS = ("step", "samples_consumed", "tokens", "seed")
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on, in NumPy.

    Args:
        config: the model.
        parameters: every parameter by path.
        moments: `first_moment` and `second_moment` by path, of those that have one; empty for weights alone.
        state: JSON: the counters step, samples_consumed, tokens, seed; and what the trainer adds
            (training, data, backend, method, best, environment; grad_scaler in float16).
        tokenizer: content of tokenizer.json, or None.
        states: the state that each row of a streaming run carries on, [l, b, d]; None where rows start from zero.
        verified: whether checksums have confirmed every bit; False for another program's file, which has none.
    """

    config: ModelConfig
    parameters: Arrays
    moments: Mapping[str, Arrays] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    tokenizer: str | None = None
    states: np.ndarray | None = None
    verified: bool = True


def validate(checkpoint: Checkpoint) -> None:
    """Raises ValueError for a tensor that is missing, misshapen, of a strange dtype or not finite, or a bad counter."""
    layers, tensors = checkpoint.config.n_layers, len(checkpoint.parameters)
    # A table of two billion layers would fill the memory before a tensor could be found missing.
    if layers > tensors:
        raise ValueError(f"config.json asks for {layers} layers, there are {tensors} tensors")
    check_parameters(checkpoint.config, checkpoint.parameters)
    if checkpoint.moments and set(checkpoint.moments) != set(MOMENTS):
        raise ValueError(f"optimizer state needs {' and '.join(MOMENTS)}, got {', '.join(checkpoint.moments)}")
    _check_beside(checkpoint)
    training = training_from_json(checkpoint.state["training"]) if "training" in checkpoint.state else TrainingConfig()
    paths = moment_paths(checkpoint.config, training)
    for name, arrays in checkpoint.moments.items():
        try:
            check_parameters(checkpoint.config, arrays, paths[name])
        except ValueError as error:
            raise ValueError(f"{name} of {training.optimizer}: {error}") from error
    groups = {"": checkpoint.parameters, **{f"{name}.": arrays for name, arrays in checkpoint.moments.items()}}
    for prefix, arrays in groups.items():
        for path, array in arrays.items():
            _check_values(f"{prefix}{path}", array, tuple(DTYPES.values()))


def _check_beside(checkpoint: Checkpoint) -> None:
    if checkpoint.states is not None:
        shape, (layers, _, size) = checkpoint.states.shape, state_shape(checkpoint.config, 1)
        if len(shape) != 3 or shape[1] < 1 or shape[0] != layers or shape[2] != size:
            raise ValueError(f"tensor states has shape {shape}, the configuration needs ({layers}, rows, {size})")
        _check_values("states", checkpoint.states, (DTYPES["F32"], DTYPES["F64"]))
    _check_state(checkpoint.state)


def _check_values(name: str, array: np.ndarray, dtypes: tuple[np.dtype, ...]) -> None:
    if array.dtype not in dtypes:
        raise ValueError(f"tensor {name} has dtype {array.dtype}, which no checkpoint stores")
    if not np.isfinite(array.astype(np.float32) if array.dtype.itemsize == 2 else array).all():
        raise ValueError(f"tensor {name} holds a value that is not finite")


def _check_state(state: Mapping[str, Any]) -> None:
    for name in COUNTERS:
        require_integer(f"state.json: {name}", state.get(name), 0, 2**64 - 1)
    for name in ("best", "environment", "data"):
        if not isinstance(state.get(name, {}), dict | None):
            raise ValueError(f"state.json: {name} must be an object, got {state[name]!r}")
    if best := state.get("best"):
        require_integer("state.json: best step", best.get("step"), 0, 2**64 - 1)
        loss = best.get("val_loss")
        if type(loss) not in (int, float) or not math.isfinite(loss):
            raise ValueError(f"state.json: best val_loss must be a finite number, got {loss!r}")
    if "training" in state:
        training_from_json(state["training"])


def to_files(checkpoint: Checkpoint, sharded: bool = False) -> dict[str, bytes]:
    """The content of each file of a checkpoint directory, SHA256SUMS included; `sharded`, of one in a single shard."""
    validate(checkpoint)
    files = files_beside(checkpoint)
    flat = {f"{name}.{path}": array for name, group in checkpoint.moments.items() for path, array in group.items()}
    if sharded:
        files |= one_shard(named_arrays(checkpoint.parameters, checkpoint.moments))
    else:
        files["model.safetensors"] = pack(checkpoint.parameters)
        files |= {"optimizer.safetensors": pack(flat)} if flat else {}
    return {**files, "SHA256SUMS": checksums({name: sha256(content) for name, content in files.items()})}


def files_beside(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The content of each file that holds neither parameters nor moments, SHA256SUMS excluded."""
    state = {"format_version": FORMAT_VERSION, **checkpoint.state}
    files = {"config.json": _json(config_to_json(checkpoint.config)), "state.json": _json(state)}
    if checkpoint.states is not None:
        files["states.safetensors"] = pack({"states": checkpoint.states})
    if checkpoint.tokenizer is not None:
        files["tokenizer.json"] = checkpoint.tokenizer.encode()
    return files


def from_files(files: Mapping[str, bytes], where: object) -> Checkpoint:
    """The inverse of `to_files`; `where` names the source in messages.

    Raises:
        ValueError: a file is missing, fails its checksum, is of another format version, or holds a bad value.
    """
    with naming(f"checkpoint {where}"):
        verify(files)
        shards = {name: content for name, content in files.items() if is_shard(name)}
        if shards and ("model.safetensors" in files or "optimizer.safetensors" in files):
            raise ValueError("it holds the weights twice, whole and in shards")
        groups = by_kind(join_shards(shards)) if shards else {PARAMETERS: _unpack(files, "model.safetensors")}
        parameters = groups.pop(PARAMETERS, {})
        moments = by_kind(_unpack(files, "optimizer.safetensors")) if "optimizer.safetensors" in files else groups
        if "optimizer.safetensors" in files and not moments:
            raise ValueError("optimizer.safetensors holds no tensor")
        texts = {name: files[name].decode() for name in TEXTS if name in files}
        return assemble(texts, parameters, moments, _states(files))


def _states(files: Mapping[str, bytes]) -> np.ndarray | None:
    if "states.safetensors" not in files:
        return None
    stored = _unpack(files, "states.safetensors")
    if list(stored) != ["states"]:
        found = ", ".join(sorted(stored))
        raise ValueError(f"states.safetensors must hold the tensor states alone, it holds {found}")
    return stored["states"]


def _unpack(files: Mapping[str, bytes], name: str) -> dict[str, np.ndarray]:
    with naming(name):
        return unpack(files[name])


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Whatever bad content does to a reader becomes a ValueError that names the source."""
    try:
        yield
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        reason = f"the entry {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: {reason}") from error


def assemble(
    texts: Mapping[str, str], parameters: Arrays, moments: Mapping[str, Arrays], states: np.ndarray | None
) -> Checkpoint:
    """The valid checkpoint of these parts; what has no state.json has not been trained here, and starts counting."""
    checkpoint = _unchecked(texts, parameters, moments, states)
    validate(checkpoint)
    return checkpoint


def _unchecked(
    texts: Mapping[str, str], parameters: Arrays, moments: Mapping[str, Arrays], states: np.ndarray | None
) -> Checkpoint:
    start = {"format_version": FORMAT_VERSION, **dict.fromkeys(COUNTERS, 0)}
    with naming("state.json"):
        state = json.loads(texts["state.json"]) if "state.json" in texts else start
    if not isinstance(state, dict):
        raise ValueError("state.json must hold an object")
    version = state.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format version {version!r}, this version of LiquidNet reads {FORMAT_VERSION}; take another version"
        )
    with naming("config.json"):
        config = config_from_json(json.loads(texts["config.json"]))
    return Checkpoint(config, parameters, moments, state, texts.get("tokenizer.json"), states, "SHA256SUMS" in texts)


def write_checkpoint(directory: Path, checkpoint: Checkpoint, sharded: bool = False) -> None:
    """Write a checkpoint directory; it appears whole or not at all; `sharded`, in a single shard.

    Raises:
        ValueError: the directory already exists, or the checkpoint is not valid.
        OSError: the disk is full or not writable.
    """
    files = to_files(checkpoint, sharded)
    with new_directory(Path(directory)) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read and verify a checkpoint directory, or the newest one of a RUN directory; ValueError says what is wrong."""
    directory = find_checkpoint(Path(directory))
    paths = checkpoint_files(directory)
    if parts_of(directory) == ORBAX:
        raise ValueError(f"checkpoint {directory} was written by Orbax; make a neutral one of it by liquidnet convert")
    return from_files({name: read_file(path) for name, path in paths.items()}, directory)


def read_beside(directory: Path, rank: int, size: int) -> Checkpoint:
    """A sharded checkpoint without parameters and moments, which are read elsewhere.

    Args:
        directory: of the checkpoint.
        rank: number of this process, which verifies every `size`-th file of the parts.
        size: how many processes read it together.

    Raises:
        ValueError: as `read_checkpoint`, but for what the parts hold.
    """
    paths = checkpoint_files(directory)
    with naming(f"checkpoint {directory}"):
        files = {name: read_file(path) for name, path in paths.items() if not is_part(name)}
        elsewhere, parts = listed_sums(files), [name for name in paths if is_part(name)]
        if len({is_shard(name) for name in parts}) > 1 or {"model.safetensors", "optimizer.safetensors"} & {*files}:
            raise ValueError("it holds the weights twice, in two forms")
        for name in parts:
            require_file(paths[name])
        own = {name: file_sha256(paths[name]) for name in parts[rank::size]}
        verify(files, {name: own.get(name, elsewhere.get(name, "")) for name in parts})
        texts = {name: files[name].decode() for name in TEXTS if name in files}
        checkpoint = _unchecked(texts, {}, {}, _states(files))
        _check_beside(checkpoint)
    return checkpoint


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a RUN directory, or of its directory `checkpoints` itself, oldest first."""
    place = Path(run) / "checkpoints"
    found = [path for path in (place if place.is_dir() else Path(run)).glob("step_*") if _is_checkpoint(path)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _is_checkpoint(path: Path) -> bool:
    return _STEP.fullmatch(path.name) is not None and path.is_dir()


def find_checkpoint(path: Path) -> Path:
    """`path` itself where it is a checkpoint directory, else the newest checkpoint of the run that it names, or that it
    is the directory `checkpoints` of."""
    path = Path(path)
    if checkpoints := list_checkpoints(path):
        return checkpoints[-1]
    if (path / "checkpoints").is_dir() or (path.resolve().name == "checkpoints" and path.is_dir()):
        raise ValueError(f"{path} holds no checkpoint yet; train further or name another run")
    if (path / "meta.json").is_file():
        raise ValueError(f"{path} is prepared text, not a run; name what --out of `liquidnet train` was")
    if not path.is_dir():
        raise ValueError(f"{path} is not a checkpoint directory or a run; name what `liquidnet train` wrote")
    return path


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
