"""How the parameters of one checkpoint differ from another's, in the words of the mistakes that conversions make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations

import numpy as np

from parity.proof.layer_diff.activations import family_at, split
from spec.config import ModelConfig
from spec.parameters import parameter_table

Arrays = Mapping[str, np.ndarray]
Parts = Mapping[str, int]


def differences(config: ModelConfig, a: Arrays, b: Arrays) -> dict[str, str]:
    """Each parameter whose float32 values differ, in the order of the forward pass, and how B's came from A's."""
    plain = {name: {path: x.astype(np.float32) for path, x in arrays.items()} for name, arrays in (("a", a), ("b", b))}
    found = {}
    for row in parameter_table(config):
        if plain["a"][row.path].tobytes() != plain["b"][row.path].tobytes():
            found[row.path] = _relation(row.path, row.parts, a, b, plain["a"], plain["b"])
    return found


def tensor_of(config: ModelConfig, path: str) -> str:
    """The first tensor of a forward pass that a parameter enters."""
    (block, inner), enters = split(path), family_at(config, path).enters
    return f"{block}.{enters[inner]}" if inner in enters else path.removesuffix(".weight").removesuffix(".bias")


def _relation(path: str, parts: Parts, stored_a: Arrays, stored_b: Arrays, all_a: Arrays, all_b: Arrays) -> str:
    """What follows "<path> of B": the first relation that holds."""
    a, b = all_a[path], all_b[path]
    dtypes = stored_a[path].dtype, stored_b[path].dtype
    if dtypes[0] != dtypes[1]:
        if np.array_equal(stored_a[path].astype(dtypes[1]), stored_b[path]):
            return f"is A's rounded to {dtypes[1]}"
        if np.array_equal(stored_b[path].astype(dtypes[0]), stored_a[path]):
            return f"is what A's, {dtypes[0]}, was rounded from"
    for words, holds in _RELATIONS:
        found = holds(parts, a, b)
        if found:
            return words.format(found)
    for name, other in all_a.items():
        if name != path and other.shape == b.shape and np.array_equal(other, b):
            return f"is A's {name}"
    unequal = a != b
    return f"differs in {unequal.sum()} of {a.size} values, by up to {np.abs(a - b).max():.3g}"


def _reordered(parts: Parts, a: np.ndarray, b: np.ndarray) -> str:
    """The order of the parts of a fused matrix, where only that differs."""
    if len(parts) == 1:
        return ""
    usual, ends = " | ".join(parts), np.cumsum(list(parts.values()))
    blocks = dict(zip(parts, np.split(a, ends[:-1]), strict=True))
    for order in permutations(parts):
        if np.array_equal(np.concatenate([blocks[part] for part in order]), b):
            return f"{' | '.join(order)} in place of {usual}"
    if len(set(parts.values())) > 1:
        return ""
    rows = np.stack(list(blocks.values()), axis=1).reshape(b.shape)
    return f"{', '.join(parts)} in turn in place of {usual}" if np.array_equal(rows, b) else ""


def _factor(parts: Parts, a: np.ndarray, b: np.ndarray) -> str:
    """The number that A's is multiplied by, to a few roundings."""
    most = np.unravel_index(np.abs(a).argmax(), a.shape)
    factor = float(b[most]) / float(a[most]) if a[most] else 0.0
    same = factor != 0.0 and np.allclose(b, a.astype(np.float64) * factor, rtol=1e-6, atol=0.0)
    return f"{factor:.7g}" if same else ""


_RELATIONS: tuple[tuple[str, Callable[[Parts, np.ndarray, np.ndarray], str | bool]], ...] = (
    ("is zero", lambda parts, a, b: not b.any()),
    ("is A's transposed", lambda parts, a, b: a.ndim == 2 and np.array_equal(a.T, b)),
    ("is A's with its rows as {}", _reordered),
    ("is A's times {}", _factor),
)
