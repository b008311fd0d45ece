"""What a command's flags are, by its own description, and the rows that say where the value of each must be seen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, get_type_hints

import tyro

from tools.cli.commands import COMMANDS
from tools.cli.main import main

Typed = Mapping[str, tuple[str, ...]]
"""What is typed after each flag, in order; a name without dashes is an argument that no flag names."""


class Row(NamedTuple):
    """A flag, and where its value must arrive.

    Args:
        flag: as it is typed, or the name of an argument without one.
        typed: the words after it: another value than the default, and than that of any other row.
        where: what the command's recorder calls the place.
        value: what must be there, and is not without the flag.
    """

    flag: str
    typed: tuple[str, ...]
    where: str
    value: Any


class Own(NamedTuple):
    """A flag that has a test of its own.

    Args:
        flag: as it is typed.
        test: the function.
    """

    flag: str
    test: Callable[..., None]


def command_class(name: str) -> type:
    """The class of a command."""
    module, _, kind = COMMANDS[name].target.partition(":")
    return getattr(importlib.import_module(module), kind)


def flags_of(command: type) -> set[str]:
    """Every flag of a command's class with all its spellings, and its arguments without a flag by their names."""
    found, hints = set(), get_type_hints(command, include_extras=True)
    for field in fields(command):
        told = getattr(hints[field.name], "__metadata__", ())
        if tyro.conf.Positional in told:
            found.add(field.name)
            continue
        own = field.metadata.get("mixer")
        found.add(f"--{field.name.replace('_', '-')}" if own is None else own.flag)
        found |= {alias for each in told for alias in getattr(each, "aliases", None) or ()}
    return found


def run(command: str, typed: Typed) -> None:
    """Run a command in this process, by what is typed; an exit code of 2 is an error."""
    words = [word for flag, after in typed.items() for word in ((flag,) if flag.startswith("-") else ()) + after]
    code: object = 0
    try:
        main([command, *words])
    except SystemExit as stop:
        code = stop.code
    assert code in (0, 1, None), f"liquidnet {command} {' '.join(words)} exited {code}"


def require_seen(row: Row, given: Typed, seen: Callable[[Typed], Mapping[str, Any]]) -> None:
    """Assert that a row's value is where it must be with its flag, and only with it.

    Args:
        row: the flag.
        given: what is typed besides.
        seen: runs the command on what is typed, and says what arrived where.
    """
    assert seen(given)[row.where] != row.value, "the row would pass without its flag"
    assert seen({**given, row.flag: row.typed})[row.where] == row.value
