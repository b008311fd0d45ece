"""The checked-in budget of the TPU programs, and what exceeds it.

`limits` is what was promised, by row or by the first words of its name, and stays; `kernels` and `steps` are what was
measured when the table was last written. Less is within the budget, and so is a hundredth more: what another patch
release of the compiler may do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parity.suite.compiled.triton.budget import Budget, compared

BUDGET = Path(__file__).parent / "budget.json"
SECTIONS = ("kernels", "steps")
UNCHECKED = ("compile_seconds", "mfu")
"""Columns that depend on the machine, or grow where things get better; a limit may still hold for them."""
ROUNDING = 1.01
Row = dict[str, Any]
"""Numbers by column, and lists of words."""


def faults(found: Budget, budget: Budget) -> list[str]:
    """A line for each row that exceeds a limit or grew, that has other collectives, or that either side lacks."""
    lines = [line for section in SECTIONS for line in compared(section, found, budget)]
    for section in SECTIONS:
        for name, row in found[section].items():
            lines += _beyond(name, row, limits_of(name, budget["limits"]))
            lines += _grown(name, row, budget[section].get(name, {}))
    return lines


def limits_of(name: str, limits: dict[str, Row]) -> Row:
    """The limits whose names a row's name begins with, word by word, the longest one's last."""
    words = name.split()
    found: Row = {}
    for key in sorted(limits, key=len):
        if words[: len(key.split())] == key.split():
            found |= limits[key]
    return found


def _beyond(name: str, row: Row, limits: Row) -> Iterator[str]:
    for column, most in limits.items():
        if column not in row:
            yield f"{name}: {column} was not measured, its limit is {most}"
        elif isinstance(most, list):
            for other in sorted(set(row[column]) - set(most)):
                yield f"{name}: {other} is not among the {column} allowed: {', '.join(most)}"
        elif row[column] > most:
            yield f"{name}: {column} {row[column]:,} is over the limit of {most:,}"


def _grown(name: str, row: Row, old: Row) -> Iterator[str]:
    for column, before in old.items():
        now = row.get(column)
        if column in UNCHECKED or now is None or isinstance(before, str):
            continue
        if isinstance(before, list):
            for other in sorted(set(now) - set(before)):
                yield f"{name}: {column} have {other}, which the budget has not"
        elif now > before * ROUNDING:
            yield f"{name}: {column} grew from {before:,} to {now:,}"
