"""A checkpoint in shards: each process wrote its part of every tensor, as torch.distributed.checkpoint (DCP) does.

    config.json  shard-00001-model-00001-of-00001.safetensors  ...  tokenizer.json  state.json  SHA256SUMS

The shards are the safetensors files of torch.distributed.checkpoint.HuggingFaceStorageWriter, not DCP's pickled
metadata: what a file holds, and where in the whole tensor it belongs, stands in its JSON header. A tensor is named
`parameters.<path>`, `first_moment.<path>` or `second_moment.<path>`. Any number of processes reads what any other
number wrote; so does one without a framework.

JAX's processes write a directory `orbax` in the place of the shards. Its files are Orbax's own, a flat tree of arrays
under the same names; of these nothing but the checksums is known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from spec.checkpoint.tensors import pack, unpack
from spec.validation import require_integer

Tensor = TypeVar("Tensor")
"""In NumPy, or on any devices."""

PARAMETERS = "parameters"
ORBAX = "orbax"
_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"


def is_shard(name: str) -> bool:
    """Whether a file of a checkpoint is a shard."""
    return name.startswith("shard-") and name.endswith(".safetensors")


def is_part(name: str) -> bool:
    """Whether a file, by its path in the checkpoint, holds parts of tensors: a shard, or a file of Orbax's."""
    return is_shard(name) or name.startswith(f"{ORBAX}/")


def named_arrays(parameters: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters and moments by the names that they have in parts."""
    groups = {PARAMETERS: parameters, **moments}
    return {f"{kind}.{path}": array for kind, group in groups.items() for path, array in group.items()}


def by_kind(named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `named_arrays`, parameters among the groups."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, array in named.items():
        kind, _, path = name.partition(".")
        groups.setdefault(kind, {})[path] = array
    return groups


def one_shard(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """File name and content of whole tensors as a single process would have written them."""
    places = {name: {_OFFSETS: [0] * array.ndim} for name, array in arrays.items()}
    return {"shard-00001-model-00001-of-00001.safetensors": pack(arrays, {_PLACES: json.dumps(places)})}


def join_shards(shards: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """Every whole tensor from the parts in the shards, by name.

    Args:
        shards: content of each file.

    Raises:
        ValueError: a part without a place, parts that overlap, or a tensor that they do not fill.
    """
    parts: dict[str, list[tuple[tuple[int, ...], np.ndarray]]] = {}
    for file, content in sorted(shards.items()):
        places = _places(content, file)
        for name, array in unpack(content).items():
            if name not in places:
                raise ValueError(f"{file}: tensor {name} lacks its place in the whole")
            offsets = _offsets(places[name], array.ndim, f"{file}: place of {name}")
            parts.setdefault(name, []).append((offsets, array))
    return {name: _join(name, pieces) for name, pieces in parts.items()}


def _join(name: str, pieces: list[tuple[tuple[int, ...], np.ndarray]]) -> np.ndarray:
    ends = [np.add(offsets, array.shape) for offsets, array in pieces]
    shape = tuple(int(end) for end in np.max(ends, axis=0)) if pieces[0][1].ndim else ()
    filled = sum(array.size for _, array in pieces)
    # First of all: a place far away must not ask for all the memory between.
    if filled != int(np.prod(shape, dtype=object)):
        raise ValueError(f"the shards hold {filled} numbers of tensor {name}, whose shape is {shape}")
    whole, seen = np.empty(shape, pieces[0][1].dtype), np.zeros(shape, bool)
    for offsets, array in pieces:
        if array.dtype != whole.dtype:
            raise ValueError(f"the shards hold tensor {name} in {whole.dtype} and in {array.dtype}")
        place = tuple(slice(low, low + length) for low, length in zip(offsets, array.shape, strict=True))
        whole[place], seen[place] = array, True
    if not seen.all():
        raise ValueError(f"the shards hold some numbers of tensor {name} twice, others not at all")
    return whole


def _places(content: bytes, file: str) -> dict[str, object]:
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        places = {name: place[_OFFSETS] for name, place in json.loads(header["__metadata__"][_PLACES]).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is no shard of a checkpoint: {error!r}") from error
    return places


def _offsets(value: object, axes: int, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != axes:
        raise ValueError(f"{what} needs {axes} offsets, got {value!r}")
    for number in value:
        require_integer(what, number, 0, 2**63 - 1)
    return tuple(value)
