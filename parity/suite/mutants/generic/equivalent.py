"""Reads equivalent.toml: mutants that mean the same as the program, and code that only other devices run."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from parity.suite.mutants.generic.operators import Mutation, mutations

LIST = Path(__file__).with_suffix(".toml")
KEYS = {"equivalent": {"file", "function", "old", "new", "reason"}, "elsewhere": {"file", "reason"}}


@dataclass(frozen=True)
class Excluded:
    """What is left out of a sample.

    Args:
        equivalent: file, function, statement, changed statement.
        elsewhere: files.
    """

    equivalent: Collection[tuple[str, str, str, str]] = ()
    elsewhere: Collection[str] = ()

    def among(self, files: Mapping[str, bytes]) -> list[Mutation]:
        """The mutants of these files that are left out.

        Raises:
            ValueError: an entry fits nothing; names it.
        """
        found: list[Mutation] = []
        used: set[object] = set()
        for file in sorted({file for file, *_ in self.equivalent} | set(self.elsewhere)):
            for one in mutations(file, files[file]) if file in files else ():
                key = (one.file, one.function, one.old, one.new)
                if key in self.equivalent or file in self.elsewhere:
                    found.append(one)
                    used |= {key, file}
        for entry in (*self.equivalent, *self.elsewhere):
            if entry not in used:
                raise ValueError(f"{LIST.name}: no generic mutant is {entry!r} any more; take the entry out")
        return found


def read_excluded(path: Path = LIST) -> Excluded:
    """The lists of a file.

    Raises:
        ValueError: it is malformed, or gives no reason; names the entry.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if unknown := content.keys() - KEYS.keys():
        raise ValueError(f"{path.name}: unknown table {sorted(unknown)[0]!r}")
    for table, keys in KEYS.items():
        for entry in content.get(table, []):
            if entry.keys() != keys or not all(isinstance(value, str) for value in entry.values()):
                raise ValueError(f"{path.name}: [[{table}]] has the keys {', '.join(sorted(keys))}: {entry!r}")
            if not entry["reason"].strip():
                raise ValueError(f"{path.name}: no reason for {entry!r}")
    equivalent = {
        (entry["file"], entry["function"], _one_line(entry["old"]), _one_line(entry["new"]))
        for entry in content.get("equivalent", [])
    }
    return Excluded(equivalent, {entry["file"] for entry in content.get("elsewhere", [])})


def _one_line(text: str) -> str:
    return " ".join(text.split())
