"""What the commands are: the table that the command line, its overview and --help are made from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """What is said of a command, and where its class is.

    Args:
        target: module and class.
        summary: what it does, in a line.
        example: works as typed, after those above it.
        after_interrupt: how to go on after Ctrl-C.
    """

    target: str
    summary: str
    example: str
    after_interrupt: str = "nothing was written; run it again"


_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
GROUPS = {title: {name: Command(**row) for name, row in rows.items()} for title, rows in _TABLE.items()}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def show_overview() -> None:
    """Print every command with a line and an example, in the order in which a newcomer needs them."""
    from rich.console import Console

    # Styles on a terminal alone; an example is never broken, so that it can be copied.
    console = Console(highlight=False, soft_wrap=True)
    console.print("LiquidNet: one language model, defined once, written in PyTorch and in JAX, and proved equal.")
    for title, commands in GROUPS.items():
        console.print(f"\n{title}", style="bold")
        for name, command in commands.items():
            console.print(f"  [cyan]{name:10}[/]{command.summary}")
            console.print(f"{'':12}{command.example}", style="dim", markup=False)
    console.print("\nEvery flag of a command:   liquidnet COMMAND --help")
    console.print("The version:               liquidnet --version")
