"""`python -m parity.suite.compiled.triton --check`: the kernels compiled and counted, against budget.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from parity.suite.compiled.triton.budget import BUDGET, SECTIONS, Budget, check_or_write, faults

COLUMNS = {
    "registers": "registers",
    "spilled": "spilled bytes",
    "shared": "shared memory",
    "conversions": "layout conversions",
    "instructions": "instructions an element",
}


@dataclass(frozen=True)
class Flags:
    """Compile the Triton kernels for five GPUs, count the bytes they move in the interpreter, and print both."""

    check: bool = False
    """Exit with 1, naming what grew, where a kernel exceeds the budget or its limits."""
    write: bool = False
    """Keep what was measured as the budget; the limits in it stay."""


def measure() -> Budget:
    """What both tools print, each in a process of its own: Triton is imported either to compile or to interpret."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environments = {"compile": plain, "count": {**plain, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}}
    running = {
        tool: subprocess.Popen(
            [sys.executable, "-m", f"parity.suite.compiled.triton.{tool}"], env=there, stdout=subprocess.PIPE
        )
        for tool, there in environments.items()
    }
    printed = {tool: process.communicate()[0] for tool, process in running.items()}
    failed = [tool for tool, process in running.items() if process.returncode != 0]
    if failed:
        raise SystemExit(f"parity.suite.compiled.triton: {' and '.join(failed)} failed, see above")
    return json.loads(printed["compile"]) | {"bytes": json.loads(printed["count"])}


def show(found: Budget, console: Console) -> None:
    """One table of what was compiled, one of what was counted."""
    compiled = Table("kernel", *COLUMNS.values())
    for name, row in found["kernels"].items():
        compiled.add_row(name, *(str(row.get(column, "")) for column in COLUMNS))
    moved = Table("bytes a (token, channel)", "")
    for name, size in found["bytes"].items():
        moved.add_row(name, f"{size:.2f}")
    console.print(compiled, moved, ", ".join(f"{tool} {version}" for tool, version in found["versions"].items()))


def main(flags: Flags) -> int:
    """Measures, prints, and does what the flags ask for; the exit code."""
    found = measure()
    show(found, Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160))
    return check_or_write(found, BUDGET, faults, SECTIONS, flags.check, flags.write)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags, config=(tyro.conf.FlagCreatePairsOff,))))
