"""Whether the tests that the catalogue names for a planted fault execute what it changes, where coverage can see it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from _pytest.mark.expression import Expression

from parity.suite.mutants.generic.coverage_record import Record, enclosing_function
from parity.suite.mutants.mutant import Mutant


def passed_by(mutants: Sequence[Mutant], found: Record, root: Path) -> Iterator[tuple[Mutant, str]]:
    """The planted faults whose tests go another way, each with what is wrong.

    What is executed at import, and functions in which no test was seen, as those that Numba compiles, are left out.
    """
    for mutant in mutants:
        tests = selected(mutant.tests, found)
        if not tests:
            yield mutant, "none of its tests is recorded: they are `long`, they fail, or they are gone"
            continue
        source = (root / mutant.file).read_text("utf-8")
        lines = changed_lines(mutant, source)
        spans = [span for line in lines if (span := enclosing_function(source, line)) is not None]
        if not spans or not all(found.executing(mutant.file, span) for span in spans):
            continue
        if not found.executing(mutant.file, lines) & tests:
            inside = any(found.executing(mutant.file, span) & tests for span in spans)
            yield (mutant, "its tests enter the function and pass by" if inside else "its tests never come there")


def files_of_tests(mutant: Mutant) -> set[str]:
    """The files of its tests."""
    return {argument.partition("::")[0] for argument in mutant.tests if argument.startswith("parity/")}


def selected(arguments: Sequence[str], found: Record) -> set[str]:
    """The recorded tests that these arguments of pytest choose."""
    at = arguments.index("-k") if "-k" in arguments else len(arguments)
    places, words = arguments[:at], " ".join(arguments[at + 1 :])
    tests = {
        test for test in found.seconds if any(test == one or test.startswith((f"{one}::", f"{one}[")) for one in places)
    }
    if not words:
        return tests
    expression = Expression.compile(words)
    return {test for test in tests if expression.evaluate(lambda name, test=test, **_: name.lower() in test.lower())}


def changed_lines(mutant: Mutant, source: str) -> list[int]:
    """The lines of the statements that the fault changes, counted from 1; beside what it inserts, the one before."""
    first = source[: source.index(mutant.old)].count("\n") + 1
    old, new = mutant.old.splitlines(), mutant.new.splitlines()
    lines: set[int] = set()
    for kind, start, end, _, _ in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "insert":
            lines.add(max(start - 1, 0))
        elif kind != "equal":
            lines |= set(range(start, end))
    return sorted({line for at in lines for line in _statement(source, first + at)})


def _statement(source: str, line: int) -> range:
    """The lines of the innermost statement that this one is part of; of a compound one, its header."""
    spans = [range(line, line + 1)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = (body[0].lineno - 1 if body else node.end_lineno) or node.lineno
            spans.append(range(node.lineno, max(end, node.lineno) + 1))
    return min((span for span in spans[1:] if line in span), key=len, default=spans[0])
