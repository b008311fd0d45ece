"""Checks of users' values: each raises ValueError with the value, and the nearest known name if there is one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(value: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near: the tail of an error message."""
    match = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def require_known(kind: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError with the choices, and the nearest one, where `value` is not among them."""
    known = list(known)
    if value not in known:
        raise ValueError(f"unknown {kind} {value!r}; choose one of {', '.join(known)}{nearest(value, known)}")


def require_integer(name: str, value: Any, least: int, most: int = 2**31 - 1) -> None:
    """Raises ValueError, naming the value, where it is not an integer in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value > most:
        shown = value if value < 2**80 else f"a number of {len(str(value))} digits"
        raise ValueError(f"{name} must be at most {most}, got {shown}")


def require_number(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    """Raises ValueError, naming the value, where it is no number in [low, high], or in (low, high] if `low_open`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (low_open and value == low):
        bracket = "(" if low_open else "["
        raise ValueError(f"{name} must be a number in {bracket}{low:g}, {high:g}], got {value!r}")
