"""A checkpoint as one nested dict: what the native formats store, and what another program's file must look like."""

from __future__ import annotations

from typing import Any

import numpy as np

from spec.checkpoint.checksums import verify
from spec.checkpoint.format import TEXTS, Checkpoint, assemble, naming, to_files
from spec.checkpoint.tensors import pack
from spec.optimizer import MOMENTS


def to_tree(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as one nested dict for a native format: JSON files as text, arrays in groups by path.

    SHA256SUMS goes along, so that `from_tree` verifies the arrays bit for bit. It holds what both formats can: what
    `torch.load(weights_only=True)` and `flax.serialization.msgpack_restore` give back.
    """
    files = to_files(checkpoint)
    text = {name: files[name].decode() for name in TEXTS if name in files}
    groups = {"parameters": checkpoint.parameters, **checkpoint.moments}
    states = {} if checkpoint.states is None else {"states": checkpoint.states}
    return {**text, **{name: dict(arrays) for name, arrays in groups.items()}, **states}


def from_tree(tree: Any, where: object) -> Checkpoint:
    """The inverse of `to_tree`; a tree of another program, without SHA256SUMS, is `verified` False.

    Raises:
        ValueError: the configuration is not in it, a checksum fails, or it holds anything that `to_tree` does not make.
    """
    with naming(f"checkpoint {where}"):
        _check_tree(tree)
        texts = {name: tree[name] for name in TEXTS if name in tree}
        moments = {kind: tree[kind] for kind in MOMENTS if kind in tree}
        if "SHA256SUMS" in tree:
            files = {name: text.encode() for name, text in texts.items()}
            files["model.safetensors"] = pack(tree["parameters"])
            if moments:
                flat = {f"{kind}.{path}": array for kind, arrays in moments.items() for path, array in arrays.items()}
                files["optimizer.safetensors"] = pack(flat)
            if "states" in tree:
                files["states.safetensors"] = pack({"states": tree["states"]})
            verify(files)
        return assemble(texts, tree["parameters"], moments, tree.get("states"))


def _check_tree(tree: Any) -> None:
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not a checkpoint's parts by name")
    if "config.json" not in tree:
        raise ValueError("config.json is missing: the configuration is stored beside the weights, never guessed")
    if not isinstance(tree.get("parameters"), dict):
        raise ValueError("parameters, the weights by path, is missing or no dict")
    for name, value in tree.items():
        if name in TEXTS:
            found, kind = {name: value}, str
        elif name == "states":
            found, kind = {name: value}, np.ndarray
        elif name in ("parameters", *MOMENTS) and isinstance(value, dict):
            found, kind = {f"{name}.{path}": item for path, item in value.items()}, np.ndarray
        else:
            raise ValueError(f"{str(name)[:80]!r} is no part of a checkpoint, or not what goes by that name")
        for path, item in found.items():
            if not isinstance(item, kind):
                raise ValueError(f"{path[:80]} is a {type(item).__name__}, not a {kind.__name__}")
