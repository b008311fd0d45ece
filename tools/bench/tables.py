"""Measured rows as tables, with what did not run and why below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.bench.timer import Row


def show_table(console: Console, title: str, columns: Mapping[str, str], rows: Sequence[Row]) -> None:
    """What was measured, in columns of heading: key of the row; below, each method that did not run and why."""
    ran = [row for row in rows if "milliseconds" in row]
    # What nothing was measured of takes no place: a terminal has 80 columns.
    told = {heading: key for heading, key in columns.items() if not ran or any(key in row for row in ran)}
    table = Table(title, *told)
    for row in ran:
        table.add_row(row["name"], *(cell(row.get(key)) for key in told.values()))
    console.print(table)
    # Both passes of a method that does not run give one reason.
    reasons = {(row["name"], kind, row[kind]) for row in rows for kind in ("not_run", "error") if kind in row}
    for name, kind, reason in sorted(reasons):
        style = "red" if kind == "error" else "dim"
        console.print(f"  {name}: {kind.replace('_', ' ')}: {reason}", style=style, markup=False, soft_wrap=True)


def cell(value: Any) -> str:
    """A number in three digits, whole from a thousand on."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def is_fault(row: Row) -> bool:
    """Whether a row tells of a failure of ours; a peer that fails is shown and blamed on no one here."""
    return "error" in row and "peer" not in row


def errors_of(sections: Mapping[str, Sequence[Row]]) -> list[str]:
    """What failed, a line each."""
    return [
        f"{name}: {row['name']}: {row['error']}" for name, rows in sections.items() for row in rows if is_fault(row)
    ]
