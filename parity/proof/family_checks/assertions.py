"""What every check says when something is wrong, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from parity.proof.bounds import double_bound, in_units
from spec.mixers import error_line
from spec.mixers.base import Mixed


class Wrong(ValueError):
    """What a check has found; any other error is one that the mixer itself has raised."""


def require_same(what: str, found: np.ndarray, expected: np.ndarray, bound: np.ndarray, remedy: str) -> None:
    """Raises ValueError naming the worst position where an array is off by more than its bound."""
    require_shape(what, found, expected.shape, "the result")
    units = in_units(found, expected, bound)
    worst = float(units.max(initial=0.0))
    if not worst <= 1.0:
        at = np.unravel_index(units.argmax(), units.shape)
        values = f"got {np.asarray(found)[at]:.9g}, expected {expected[at]:.9g}"
        raise Wrong(f"{what}[{', '.join(map(str, at))}]: {values} {remedy}")


def require_same_mixed(what: str, mixed: Mixed, y: np.ndarray, last: np.ndarray, remedy: str) -> None:
    """`require_same` of output and last state, within 1e-12 of the largest entry."""
    for key, found, exact in (("y", mixed.y, y), ("state", mixed.last, last)):
        require_same(f"{what}: {key}", found, exact, double_bound(exact), remedy)


def require_shape(what: str, found: Any, expected: tuple[int, ...], where: str) -> None:
    """Raises ValueError naming both shapes where they differ, and where to mend it."""
    if np.shape(found) != tuple(expected):
        raise Wrong(f"{what} has shape {np.shape(found)}, expected {tuple(expected)}; mend {where}")


def lacks_and_besides(found: Iterable[str], expected: Iterable[str]) -> str:
    """`lacks a, b and has c besides`."""
    lacks, besides = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"lacks {', '.join(lacks)}"] if lacks else []
    return " and ".join(parts + ([f"has {', '.join(besides)} besides"] if besides else []))


def require_refusal(call: Callable[[], Any], words: str, what: str) -> None:
    """Raises ValueError unless the call raises one with these words."""
    try:
        call()
    except ValueError as error:
        if words in str(error):
            return
        raise Wrong(f"{what} is refused with {error_line(error)!r}; say {words!r}") from error
    raise Wrong(f"{what} is accepted; refuse it with a ValueError that says {words!r}")
