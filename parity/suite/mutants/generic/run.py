"""A sample of the generic mutants, each alone in a copy of the tree, against the tests that execute what it changes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any, Protocol

from parity.proof.environment import commit
from parity.suite.mutants.generic.coverage_record import IN_PROCESS, Finder, record
from parity.suite.mutants.generic.equivalent import Excluded, read_excluded
from parity.suite.mutants.generic.in_process import one_test_at_a_time as plugin
from parity.suite.mutants.generic.operators import OPERATORS, Mutation
from parity.suite.mutants.generic.sample import sample, source_files
from parity.suite.mutants.runner import TIMEOUT, Copy, Ended, each
from spec.checkpoint.files import new_file

PLUGIN = plugin.__name__.rpartition(".")[2]


@dataclass(frozen=True)
class GenericRow:
    """What became of one generic mutant.

    Args:
        file, line, function, operator: where and what it is.
        outcome: `caught`, `timeout` (an endless loop: caught too) or `survived`; `unsure` where the same
            happens where nothing is planted.
        caught_by: the test that failed; None where none did, or the module could not be imported.
        executed: whether a test was seen to execute the statement.
        tests: how many ran at most.
        seconds: how long they took.
        diff: the change.
    """

    file: str
    line: int
    function: str
    operator: str
    outcome: str
    caught_by: str | None
    executed: bool
    tests: int
    seconds: float
    diff: str

    @property
    def caught(self) -> bool:
        return self.outcome in ("caught", TIMEOUT)


class Asked(Protocol):
    """What the flags say.

    Args:
        generic, seed: size and seed of the sample.
        seconds: of tests for each, at most, by the record.
        only: texts, one of which the name of a file must hold; none is all.
        recorded: take the record of what the tests execute as it is.
    """

    @property
    def generic(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def only(self) -> Sequence[str]: ...
    @property
    def recorded(self) -> bool: ...


def run_sample(
    copies: Sequence[Copy], root: Path, asked: Asked, say: Callable[[str], None], excluded: Excluded | None = None
) -> list[GenericRow]:
    """Plant a sample of the mutants of `root`, one by one in its copies, with `excluded` in place of equivalent.toml.

    Raises:
        ValueError: no file has a name that was asked for, or equivalent.toml is malformed or out of date.
    """
    files = source_files(root)
    left_out = (read_excluded() if excluded is None else excluded).among(files)
    files = {
        file: source for file, source in files.items() if not asked.only or any(text in file for text in asked.only)
    }
    chosen = sample(files, asked.generic or 0, asked.seed, left_out)
    if not chosen:
        raise ValueError(f"no generic mutant in the files of --only {' '.join(asked.only)}")
    finder = Finder(record(copies, root, say, not asked.recorded), root)
    rows: dict[Mutation, GenericRow] = {}
    for one, row in each(copies, chosen, lambda copy, one: _try(copy, one, finder, asked.seconds, files[one.file])):
        rows[one] = row
        say(f"{len(rows)}/{len(chosen)} {row.outcome.upper() if not row.caught else row.outcome} {_sentence(row)}")
    return _checked(copies[0], [rows[one] for one in chosen], say)


def _sentence(row: GenericRow) -> str:
    by = f"by {row.caught_by}" if row.caught_by else f"{row.tests} tests"
    where = f"{by}  {row.file}:{row.line} {row.operator}, {OPERATORS[row.operator]}, {row.seconds:.0f} s"
    return where if row.caught else f"{where}\n{row.diff}"


def _try(copy: Copy, one: Mutation, finder: Finder, seconds: float, source: bytes) -> GenericRow:
    tests, executed = finder.tests(one.file, range(one.first, one.last + 1))
    order, began = finder.order(tests, seconds), time.monotonic()
    outcome, caught_by = "survived", None
    if order:
        # By the record, on a machine that may be busier now.
        timeout = max(copy.timeout, 5.0 * sum(finder.record.seconds[test] for test in order))
        with copy.changed(one.file) as path:
            path.write_bytes(one.apply(source))
            ended = _run(copy, order, timeout)
        outcome, caught_by = _outcome(ended)
        # What names no test that failed may be the machine's, or the record's, and not the mutant's.
        if (outcome == TIMEOUT or (outcome == "caught" and caught_by is None)) and _run(copy, order, timeout).code:
            outcome = "unsure"
    took = round(time.monotonic() - began, 1)
    where = (one.file, one.first, one.function, one.operator)
    return GenericRow(*where, outcome, caught_by, executed, len(order), took, _diff(one, source))


def _run(copy: Copy, order: Sequence[str], timeout: float, *options: str) -> Ended:
    """pytest on these tests alone, in this order."""
    listed = copy.place / "order.json"
    listed.write_text(json.dumps(order))
    files = dict.fromkeys(test.partition("::")[0] for test in order)
    return copy.run((*options, *files), {plugin.ORDER: str(listed)}, (IN_PROCESS,), PLUGIN, timeout)


def _outcome(ended: Ended) -> tuple[str, str | None]:
    """Any end but a good one was not there before: a failure, an error in a fixture or at import, a crash."""
    if ended.code == TIMEOUT:
        return TIMEOUT, None
    if ended.code in (0, 5):
        return "survived", None
    return "caught", next(iter(ended.every_failed), None)


def _checked(copy: Copy, rows: Sequence[GenericRow], say: Callable[[str], None]) -> list[GenericRow]:
    """The tests that caught something must pass where nothing is planted, in whatever order."""
    tests = sorted({row.caught_by for row in rows if row.caught_by})
    if not tests:
        return list(rows)
    say(f"the {len(tests)} tests that caught them, where nothing is planted")
    ended = _run(copy, tests, max(copy.timeout, 20.0 * len(tests)), "--maxfail=0")
    failed = set(ended.every_failed) if ended.code in (0, 1) else set(tests)
    for test in sorted(failed & set(tests)):
        say(f"fails where nothing is planted: {test}")
    return [_unsure(row) if row.caught_by in failed else row for row in rows]


def _unsure(row: GenericRow) -> GenericRow:
    return GenericRow(**{**asdict(row), "outcome": "unsure"})


def _diff(one: Mutation, source: bytes) -> str:
    before, after = (text.decode().splitlines(keepends=True) for text in (source, one.apply(source)))
    return "".join(list(unified_diff(before, after, n=0))[2:])


def score_of(rows: Sequence[GenericRow], seed: int, sources: str, root: Path) -> dict[str, Any]:
    """The outcome as JSON holds it: counts by operator and by directory, and every survivor with its change."""
    sure = [row for row in rows if row.outcome != "unsure"]

    def counts(kinds: Sequence[str]) -> dict[str, dict[str, int]]:
        total, caught = Counter(kinds), Counter(kind for kind, row in zip(kinds, sure, strict=True) if row.caught)
        return {kind: {"caught": caught[kind], "total": total[kind]} for kind in sorted(total)}

    return {
        "commit": commit(root) or "",
        "sources": sources,
        "seed": seed,
        "total": len(sure),
        "caught": sum(row.caught for row in sure),
        "timeouts": sum(row.outcome == TIMEOUT for row in sure),
        "unsure": len(rows) - len(sure),
        "operators": counts([row.operator for row in sure]),
        "directories": counts([_directory(row.file) for row in sure]),
        "survivors": [asdict(row) for row in rows if not row.caught],
    }


def _directory(file: str) -> str:
    return "/".join(file.split("/")[:-1][:2])


def write_generic_score(path: Path, score: Mapping[str, Any]) -> None:
    """Keep it as JSON."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(score, indent=1) + "\n")
