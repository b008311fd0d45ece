"""`python -m parity.suite.mutants`: plant every fault, alone, and say which test caught it and by how much."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from parity.proof.environment import ROOT
from parity.suite.mutants import MUTANTS, Mutant
from parity.suite.mutants.generic.check_tests import files_of_tests, passed_by
from parity.suite.mutants.generic.coverage_record import record
from parity.suite.mutants.generic.run import run_sample, score_of, write_generic_score
from parity.suite.mutants.record import GENERIC_SCORE, SCORE, Row, sources_digest, write_score
from parity.suite.mutants.runner import Copy, each, whole_selections

ENOUGH = 0.85
"""Of the generic mutants that are not equivalent."""


@dataclass(frozen=True)
class Flags:
    """Plant faults one by one in a copy of the working tree and run the tests that must catch them.

    The exit code is 0 where every one is caught. A run of all of them is kept in parity/suite/mutants/score.json.

    With --generic N the faults are not those of the catalogue: N changes that mutation operators make, sampled evenly
    over operators and files, each against the tests that execute what it changes. Which test executes what is recorded
    first, once (coverage.py), and kept in the user's cache, or where LIQUIDNET_MUTATION_CACHE says. The exit code is 0
    where at least 0.85 of them are caught; the score and the survivors are kept in generic_score.json.
    """

    only: tuple[str, ...] = ()
    """Only mutants whose name or file holds one of these texts."""
    sample: int | None = None
    """Only this many, evenly spread."""
    workers: int = 2
    """How many at a time; each is one process of one thread."""
    timeout: float = 300.0
    """Seconds after which a run counts as hung; a mutant that hangs is caught."""
    record: Path | None = None
    """Write the JSON record to this file instead."""
    generic: int | None = None
    """Plant this many generic mutants instead of the catalogue's."""
    seed: int = 0
    """Seed of their sample."""
    seconds: float = 60.0
    """Of tests, for each of them, at most: a test of each file in turn, the quickest first."""
    recorded: bool = False
    """Take the record of what the tests execute as it is, however old; files that are not in it count for nothing."""
    check_tests: bool = False
    """Plant nothing: say for which faults of the catalogue the tests named there do not execute what changes."""


def choose(mutants: Sequence[Mutant], flags: Flags) -> list[Mutant]:
    """The mutants that the flags ask for; ValueError where that is none."""
    chosen = [m for m in mutants if not flags.only or any(text in f"{m.file}: {m.name}" for text in flags.only)]
    if flags.sample is not None and flags.sample < len(chosen):
        chosen = [chosen[i * len(chosen) // flags.sample] for i in range(flags.sample)]
    if not chosen or flags.workers < 1:
        raise ValueError(f"nothing to do with --only {' '.join(flags.only)}, {flags.sample=}, {flags.workers=}")
    return chosen


def main(flags: Flags, mutants: Sequence[Mutant] = MUTANTS, root: Path = ROOT) -> int:
    """Run what the flags ask for, print the table, and return the exit code."""
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    if flags.generic is not None:
        return _generic(flags, root, console)
    if flags.check_tests:
        return _check_tests(flags, mutants, root, console)
    chosen, started = choose(mutants, flags), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copies = [Copy(root, Path(place) / str(i), flags.timeout) for i in range(min(flags.workers, len(chosen)))]
        sources = sources_digest(copies[0].tree)
        if not _passes_unmutated(copies, chosen, console):
            return 1
        console.print(f"{time.monotonic() - started:.0f} s: all of them pass")
        rows = {}
        for mutant, row in each(copies, chosen, Copy.try_mutant):
            rows[mutant] = row
            console.print(f"{len(rows)}/{len(chosen)} {_verdict(row)}  {row.file}: {row.name}", markup=False)
    ordered = [rows[mutant] for mutant in chosen]
    _print_table(ordered, console)
    path = flags.record or (SCORE if root == ROOT and len(chosen) == len(mutants) else None)
    if path is not None:
        write_score(path, ordered, sources, root)
    caught = sum(row.outcome == "caught" for row in ordered)
    console.print(f"{caught} of {len(ordered)} mutants caught in {time.monotonic() - started:.0f} s")
    return 0 if caught == len(ordered) else 1


def _generic(flags: Flags, root: Path, console: Console) -> int:
    """The sample of generic mutants; its score is kept where it is one of all files."""
    if flags.generic is None or flags.generic < 1 or flags.workers < 1 or flags.seconds <= 0.0:
        raise ValueError(f"nothing to do with {flags.generic=}, {flags.workers=}, {flags.seconds=}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copies = [Copy(root, Path(place) / str(i), flags.timeout) for i in range(min(flags.workers, flags.generic))]
        sources = sources_digest(copies[0].tree)
        rows = run_sample(copies, root, flags, lambda line: console.print(line, markup=False))
    score = score_of(rows, flags.seed, sources, root)
    path = flags.record or (GENERIC_SCORE if root == ROOT and not flags.only else None)
    if path is not None:
        write_generic_score(path, score)
    for kind in ("operators", "directories"):
        for name, count in score[kind].items():
            console.print(f"{name:32}{count['caught']:4} of {count['total']}", markup=False)
    caught, total = score["caught"], score["total"]
    console.print(f"{caught} of {total} generic mutants caught in {time.monotonic() - started:.0f} s")
    return 0 if total and caught >= ENOUGH * total else 1


def _check_tests(flags: Flags, mutants: Sequence[Mutant], root: Path, console: Console) -> int:
    """Which faults of the catalogue the tests named there cannot notice any more."""
    chosen = choose(mutants, flags)
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copies = [Copy(root, Path(place) / str(i), flags.timeout) for i in range(flags.workers)]
        files = set().union(*map(files_of_tests, chosen))
        found = record(copies, root, lambda line: console.print(line, markup=False), not flags.recorded, files)
    chosen = [mutant for mutant in chosen if files_of_tests(mutant) <= found.files]
    wrong = list(passed_by(chosen, found, root))
    for mutant, why in wrong:
        console.print(f"{mutant.file}: {mutant.name}: {why}: {' '.join(mutant.tests)}", markup=False)
    console.print(f"{len(wrong)} of {len(chosen)} faults are planted where their tests do not go")
    return 1 if wrong else 0


def _passes_unmutated(copies: Sequence[Copy], mutants: Sequence[Mutant], console: Console) -> bool:
    """A mutant caught by a test that fails anyway would prove nothing."""
    console.print(f"{len(mutants)} mutants; first their tests where nothing is planted")
    for selection, ended in each(copies, whole_selections(mutants), Copy.run):
        if ended.code != 0:
            console.print(f"fails where nothing is planted: {' '.join(selection)}\n{ended.output}", markup=False)
            return False
    return True


def _verdict(row: Row) -> str:
    if row.outcome != "caught":
        return row.outcome.upper() + (f": {row.why}" if row.why else "")
    return f"caught by {row.caught_by}, {row.units if isinstance(row.units, str) else f'{row.units:.3g} bounds'}"


def _print_table(rows: Sequence[Row], console: Console) -> None:
    table = Table("mutant", "file", "caught by", "bounds")
    for row in rows:
        units = f"{row.units:.3g}" if isinstance(row.units, float | int) else row.units or ""
        table.add_row(row.name, row.file, row.caught_by or row.outcome.upper(), units)
    console.print(table, markup=False)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Flags, config=(tyro.conf.FlagCreatePairsOff,))))
    except ValueError as error:
        sys.exit(f"parity.suite.mutants: error: {error}")
