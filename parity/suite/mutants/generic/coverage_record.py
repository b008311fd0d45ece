"""Which test executes which line: recorded once, kept in the user's cache, and made anew where a file has changed.

A run of pytest for each file of tests, with coverage.py's contexts, one a test; processes that a test starts count for
it. Without coverage.py the record holds the tests' times alone, and a module's tests are those that import it.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.suite.mutants.generic.in_process import one_test_at_a_time as plugin
from parity.suite.mutants.generic.sample import SOURCES
from parity.suite.mutants.runner import Copy, each
from parity.suite.support.import_graph import import_graph
from spec.checkpoint.files import new_file

IN_PROCESS = Path(plugin.__file__).parent
NOT_SLOW = ("-m", "not long and not browser")
TESTS = "parity/tests"
# Seconds: all tests of a file, traced, on a busy machine.
WHOLE_FILE = 3600.0
CONFIGURATION = """[run]
core = ctrace
data_file = {place}/data
parallel = true
context = ${{MUTATION_TEST-}}
include =
{include}
disable_warnings =
    no-data-collected
    module-not-imported
    couldnt-parse
"""


def cache_directory() -> Path:
    """Where the record is kept: LIQUIDNET_MUTATION_CACHE, else the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(os.environ.get("LIQUIDNET_MUTATION_CACHE") or Path(home) / "liquidnet" / "mutation")


def digest(path: Path) -> str:
    """Of what a file holds; of one that is not there, empty."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


@dataclass
class Record:
    """Tests that pass, and what each of them executes.

    Args:
        seconds: of each test, by the name that pytest gives it.
        lines: file -> line -> the tests that execute it.
        others: tests that failed or were skipped where nothing was changed.
        files: of tests, that are in the record.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    others: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def add(self, file: str, part: Mapping[str, Any]) -> None:
        """What one file of tests recorded."""
        self.files.add(file)
        self.seconds |= part["seconds"]
        self.others |= set(part["others"])
        for source, found in part["lines"].items():
            for index, lines in found.items():
                name = part["tests"][int(index)]
                asking = part["fixtures"].get(name.removeprefix(plugin.FIXTURE), [name])
                tests = self.seconds.keys() & set(asking)
                for line in lines if tests else ():
                    self.lines[source][line] |= tests

    def executing(self, file: str, lines: Iterable[int]) -> set[str]:
        """The tests that execute one of these lines."""
        found = self.lines.get(file, {})
        return set().union(*(found.get(line, ()) for line in lines))


def record(
    copies: Sequence[Copy],
    root: Path,
    say: Callable[[str], None],
    make: bool = True,
    only: Collection[str] | None = None,
) -> Record:
    """The record of the repository; the files of tests of which it is out of date run first.

    Args:
        copies: of the repository, one a worker.
        root: the repository.
        say: prints a line.
        make: whether to run them; else what is there is taken as it is.
        only: files of tests, where not all are asked for.
    """
    files = [path.relative_to(root).as_posix() for path in sorted((root / TESTS).rglob("test_*.py"))]
    files = [file for file in files if only is None or file in only]
    result, kept = Record(), {file: part for file in files if (part := _kept(file, root, make)) is not None}
    missing = [file for file in files if file not in kept]
    if missing and make:
        say(f"recording what the tests of {len(missing)} of {len(files)} files execute, in {cache_directory()}")
        for number, (file, part) in enumerate(each(copies, missing, _record_file), 1):
            kept[file] = part
            say(f"{number}/{len(missing)} {file}: {len(part['seconds'])} tests, {len(part['others'])} others")
    for file in files:
        if file in kept:
            result.add(file, kept[file])
    return result


def _kept(file: str, root: Path, make: bool) -> dict[str, Any] | None:
    """A part of the record; None where none is there, or a file that its tests executed is another one now."""
    try:
        with gzip.open(_place(file), "rt") as stream:
            part = json.load(stream)
    except (OSError, ValueError, EOFError, zlib.error):
        return None
    changed = make and any(digest(root / name) != known for name, known in part["digests"].items())
    # Earlier records do not tell what tests share.
    return None if changed or "fixtures" not in part else part


def _place(file: str) -> Path:
    return cache_directory() / f"{file.removeprefix(f'{TESTS}/').replace('/', '.')}.json.gz"


def _record_file(copy: Copy, file: str) -> dict[str, Any]:
    """Run one file of tests, and keep what they execute."""
    place = copy.place / "coverage"
    place.mkdir(exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    include = "\n".join(f"    {copy.tree / source}/*" for source in SOURCES)
    (place / "rc").write_text(CONFIGURATION.format(place=place, include=include))
    environment = {plugin.TIMES: str(place / "times.json")}
    if importlib.util.find_spec("coverage"):
        environment["COVERAGE_PROCESS_START"] = str(place / "rc")
    arguments, module = ("--maxfail=0", *NOT_SLOW, file), plugin.__name__.rpartition(".")[2]
    ended = copy.run(arguments, environment, (IN_PROCESS,), module, max(copy.timeout, WHOLE_FILE))
    times: dict[str, Any] = {"passed": {}, "others": [f"{file}: {ended.code}"], "fixtures": {}}
    if (place / "times.json").is_file():
        times = json.loads((place / "times.json").read_text())
    tests, lines = _lines(place, copy.tree)
    # Outside pytest's own files these decide what a test does.
    read = {file, f"{TESTS}/conftest.py", *lines}
    part = {
        "digests": {name: digest(copy.tree / name) for name in sorted(read)},
        "seconds": times["passed"],
        "others": times["others"],
        "fixtures": times["fixtures"],
        "tests": tests,
        "lines": lines,
    }
    # Passed, some failed, or none was there to run; anything else, as an end of time, is tried again.
    if ended.code in (0, 1, 5):
        with new_file(_place(file)) as temporary, gzip.open(temporary, "wt") as stream:
            json.dump(part, stream)
    return part


def _lines(place: Path, tree: Path) -> tuple[list[str], dict[str, dict[str, list[int]]]]:
    """The tests, and for each file the lines by the test's number; what ran at import belongs to none."""
    if importlib.util.find_spec("coverage") is None:
        return [], {}
    from coverage import CoverageData
    from coverage.exceptions import DataError

    numbers: dict[str, int] = {}
    lines: dict[str, dict[str, list[int]]] = {}
    for path in sorted(place.glob("data.*")):
        data = CoverageData(str(path))
        try:
            data.read()
        except DataError:
            continue  # of a process that was killed while it wrote
        for file in data.measured_files():
            name = Path(file).relative_to(tree).as_posix()
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    if test := context.strip("|"):
                        number = str(numbers.setdefault(test, len(numbers)))
                        lines.setdefault(name, {}).setdefault(number, []).append(line)
    return list(numbers), lines


class Finder:
    """The tests of a place of the sources.

    Args:
        found: what the tests execute.
        root: the repository.
    """

    def __init__(self, found: Record, root: Path):
        self.record, self.root, self.graph = found, root, import_graph(root)

    def tests(self, file: str, lines: Sequence[int]) -> tuple[set[str], bool]:
        """The tests that may notice a change of a statement, and whether one was seen to execute it.

        Where none was: what is executed at import (defaults, attributes of a class, constants) concerns the tests of
        the module; coverage does not see a function that Numba compiles, nor a process that is killed, so for a
        function, and then for a module, in which no line was seen the tests of the modules that import it are taken.
        """
        if tests := self.record.executing(file, lines):
            return tests, True
        span = enclosing_function((self.root / file).read_text("utf-8"), lines[0])
        if span and (tests := self.record.executing(file, span)):
            return tests, False
        if not span and (tests := self.record.executing(file, self.record.lines.get(file, {}))):
            return tests, True
        return self._importing(file), not span

    def _importing(self, file: str) -> set[str]:
        """The tests of the nearest modules that import this one; those of test files that do, where none is seen."""
        name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
        seen, near = {name}, [name]
        while near:
            near = sorted({one for one in self.graph if one not in seen and self.graph[one] & set(near)})
            seen |= set(near)
            tests: set[str] = set()
            for one in near:
                path = _path(one, self.root)
                tests |= self.record.executing(path, self.record.lines.get(path, {}))
                tests |= {test for test in self.record.seconds if test.partition("::")[0] == path}
            if tests:
                return tests
        return set()

    def order(self, tests: Iterable[str], seconds: float) -> list[str]:
        """As many as take so long: a test of each file in turn, the quickest first."""
        of_file: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=lambda test: (self.record.seconds[test], test)):
            of_file[test.partition("::")[0]].append(test)
        ranked = [(turn, self.record.seconds[test], test) for of in of_file.values() for turn, test in enumerate(of)]
        chosen, used = [], 0.0
        for _, took, test in sorted(ranked):
            if not chosen or used + took <= seconds:
                chosen.append(test)
                used += took
        return chosen


def _path(module: str, root: Path) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (root / path).is_dir() else f"{path}.py"


def enclosing_function(source: str, line: int) -> range | None:
    """The lines of the innermost function whose body this line is in; None outside of every one."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    spans = (range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1) for node in functions)
    return min((span for span in spans if line in span), key=len, default=None)
