"""`python -m parity.suite.compiled.tpu --check`: kernels and train steps compiled for TPUs, against budget.json."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from parity.suite.compiled.tpu import steps
from parity.suite.compiled.tpu.budget import BUDGET, SECTIONS, faults
from parity.suite.compiled.triton.budget import Budget, check_or_write
from tools.plan import topology


@dataclass(frozen=True)
class Flags:
    """Compile the Pallas kernels and the train steps for TPU slices, without a TPU, and print what they need."""

    check: bool = False
    """Exit with 1, naming what grew, where a program exceeds the budget or its limits."""
    write: bool = False
    """Keep what was measured as the budget; the limits in it stay."""


def measure() -> Budget:
    """Rows of the kernels and of the train steps."""
    # Imports JAX.
    from parity.suite.compiled.tpu import kernels

    def progress(name: str) -> None:
        print(f"compiling {name}", file=sys.stderr, flush=True)

    progress("the kernels")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return {"versions": versions, "kernels": kernels.measure(), "steps": steps.measure(progress)}


def show(found: Budget, console: Console) -> None:
    """A table for each section."""
    for section in SECTIONS:
        columns = list(dict.fromkeys(column for row in found[section].values() for column in row))
        table = Table(section, *(column.replace("_", " ") for column in columns))
        for name, row in found[section].items():
            table.add_row(name, *(_cell(row.get(column, "")) for column in columns))
        console.print(table)
    console.print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))


def _cell(value: list[str] | float | str) -> str:
    return (
        ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int | float) else str(value)
    )


def main(flags: Flags) -> int:
    """Measures, prints, and does what the flags ask for; the exit code."""
    try:
        topology.compile_only()
    except ValueError as error:
        print(f"parity.suite.compiled.tpu: {error}", file=sys.stderr)
        return 2
    found = measure()
    show(found, Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160))
    return check_or_write(found, BUDGET, faults, SECTIONS, flags.check, flags.write)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, config=(tyro.conf.FlagCreatePairsOff,))))
