"""Reads the planted faults, which are data: one TOML file of `catalogue/` for each subject."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from parity.suite.mutants.mutant import Mutant

CATALOGUE = Path(__file__).with_name("catalogue")
# The order of the score's rows, and what `--sample` is spread over.
SUBJECTS = (
    "spec",
    "torch",
    "cpu_kernels",
    "decode",
    "streams",
    "jax",
    "jax_cpu",
    "mesh",
    "gpu",
    "tools",
    "sharded",
    "distributed",
    "liquid_ssm",
    "mixers",
    "sessions",
    "engine",
    "serve",
    "plain_text",
    "user_facing",
    "files",
    "muon",
    "unnoticed",
)
KEYS = {field.name for field in fields(Mutant)}


def read_catalogue(directory: Path = CATALOGUE, subjects: Sequence[str] = SUBJECTS) -> tuple[Mutant, ...]:
    """The faults of `directory`, in the order of `subjects`, each of which is a file `<subject>.toml`.

    A file holds a table [tests], which gives names to selections of tests (lists of arguments of pytest), and tables
    [[mutant]] with the keys of `Mutant`, where `tests` is a name of [tests] or a list of its own.

    Raises:
        ValueError: the files are not those of `subjects`, or an entry is malformed; names the file and the entry.
    """
    found = {path.stem for path in directory.glob("*.toml")}
    if found != set(subjects):
        raise ValueError(f"{directory} holds {sorted(found)}, and the subjects are {sorted(subjects)}")
    mutants: dict[str, Mutant] = {}
    for subject in subjects:
        path = directory / f"{subject}.toml"
        for mutant in _read(path):
            if mutant.name in mutants:
                raise ValueError(f"{path.name}: another mutant has the name `{mutant.name}` too")
            mutants[mutant.name] = mutant
    return tuple(mutants.values())


def _read(path: Path) -> list[Mutant]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error
    _require_keys(path.name, content, {"tests", "mutant"})
    selections, entries = content["tests"], content["mutant"]
    if not isinstance(selections, dict):
        raise ValueError(f"{path.name}: `tests` is no table: {selections!r}")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path.name}: `mutant` is no array of tables: {entries!r}")
    named = {name: _selection(f"{path.name}: [tests] {name}", tests) for name, tests in selections.items()}
    mutants = [
        _mutant(f"{path.name}: mutant {number}, {entry.get('name')!r}", entry, named)
        for number, entry in enumerate(entries, 1)
    ]
    # A misspelt name cannot hide behind another selection that exists.
    for name in selections:
        if all(entry["tests"] != name for entry in entries):
            raise ValueError(f"{path.name}: [tests] {name}: no mutant names it")
    return mutants


def _mutant(place: str, entry: Mapping[str, object], named: Mapping[str, tuple[str, ...]]) -> Mutant:
    _require_keys(place, entry, KEYS)
    texts: dict[str, str] = {}
    for key in KEYS - {"tests"}:
        text = entry[key]
        if not isinstance(text, str):
            raise ValueError(f"{place}: `{key}` is no string: {text!r}")
        texts[key] = text
    tests = entry["tests"]
    if not isinstance(tests, str):
        return Mutant(**texts, tests=_selection(place, tests))
    if tests not in named:
        raise ValueError(f"{place}: [tests] names no selection {tests!r}")
    return Mutant(**texts, tests=named[tests])


def _selection(place: str, tests: object) -> tuple[str, ...]:
    if not isinstance(tests, list) or not tests or not all(isinstance(argument, str) for argument in tests):
        raise ValueError(f"{place}: tests are a list of pytest's arguments, not {tests!r}")
    return tuple(tests)


def _require_keys(place: str, found: Mapping[str, object], keys: set[str]) -> None:
    for name in sorted(found.keys() - keys):
        raise ValueError(f"{place}: unknown key {name!r}")
    for name in sorted(keys - found.keys()):
        raise ValueError(f"{place}: no key {name!r}")
