"""Each mutant alone in a copy of the working tree, with the tests that must catch it in a process of their own."""

from __future__ import annotations

import os
import queue
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from parity.suite.mutants.mutant import Mutant
from parity.suite.mutants.record import PACKAGES, Row
from parity.suite.support.fixtures import SHARED

# What the tests read beside the packages.
FILES = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "LICENSE", "recipes", "docs")
UNITS = re.compile(r"is off by (\S+) units of its bound")
# A fault that fails in this way is a slip of the pen in the catalogue; any test at all would notice.
SLIPS = re.compile(
    r"(?:\w+\.)*(?:NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError|ModuleNotFoundError)\b"
)
TIMEOUT = "timeout"
# Every process of a run has it in its environment: the copy's place.
MARK = "LIQUIDNET_MUTANT_PLACE"
# Bytes a process: several times what any test takes.
MEMORY = 16 << 30
LAST_LINES = 25

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ended:
    """How a run of pytest ended.

    Args:
        code: pytest's exit code, or `timeout`.
        failed: the first test that failed, with what it said; None where none did.
        output: the last lines printed.
        every_failed: all tests that failed, or whose fixtures did.
    """

    code: int | str
    failed: tuple[str, str] | None
    output: str
    every_failed: tuple[str, ...] = ()


class Copy:
    """A working tree of its own below `place`, made from `root`.

    Args:
        root: the repository to copy.
        place: an empty directory.
        timeout: seconds after which a run counts as hung.
    """

    def __init__(self, root: Path, place: Path, timeout: float):
        self.place, self.tree, self.timeout = place, place / "tree", timeout
        self.tree.mkdir(parents=True)
        for name in (*PACKAGES, *FILES):
            if (root / name).is_dir():
                shutil.copytree(root / name, self.tree / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            elif (root / name).is_file():
                shutil.copy2(root / name, self.tree / name)
        self._require_own_imports()

    def run(
        self,
        arguments: Sequence[str],
        more: Mapping[str, str] | None = None,
        path: Sequence[Path] = (),
        plugin: str | None = None,
        timeout: float | None = None,
    ) -> Ended:
        """pytest in the copy, up to the first failure.

        Args:
            arguments: of pytest.
            more: environment variables, beside those of `environment`.
            path: directories before the copy on Python's path.
            plugin: a module there, a plugin of pytest.
            timeout: seconds, where other than the copy's.
        """
        junit = self.place / "junit.xml"
        junit.unlink(missing_ok=True)
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", f"--basetemp={self.place / 'tmp'}"]
        options += ["-p", plugin] if plugin else []
        variables = {**environment(self.tree), **(more or {})}
        variables["PYTHONPATH"] = os.pathsep.join(map(str, (*path, self.tree)))
        command = ("-m", "pytest", f"--rootdir={self.tree}", *options, *arguments)
        code, output = self._python(command, variables, timeout or self.timeout)
        last = "\n".join(output.splitlines()[-LAST_LINES:])
        return Ended(code, _first_failure(junit), last, _every_failed(junit))

    def try_mutant(self, mutant: Mutant) -> Row:
        """What the tests of one mutant say to it; the copy is whole again afterwards."""
        with self.changed(mutant.file):
            mutant.apply(self.tree)
            return _row(mutant, self.run(mutant.tests))

    @contextmanager
    def changed(self, file: str) -> Iterator[Path]:
        """A file of the copy that may be changed; it is whole again afterwards."""
        path = self.tree / file
        whole = path.read_bytes()
        try:
            yield path
        finally:
            path.write_bytes(whole)

    def _require_own_imports(self) -> None:
        """Installed editable, the packages could come from elsewhere, and every mutant would survive."""
        present = [name for name in PACKAGES if (self.tree / name).is_dir()]
        program = f"import importlib.util\nfor name in {present}: print(importlib.util.find_spec(name).origin)"
        _, output = self._python(("-c", program))
        assert output.splitlines() == [str(self.tree / name / "__init__.py") for name in present], output

    def _python(
        self, arguments: Sequence[str], variables: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> tuple[int | str, str]:
        timeout, path = timeout or self.timeout, self.place / "output.txt"
        # A file and no pipe: a process that a fault leaves behind would hold the pipe open.
        with path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.tree,
                env={**(variables or environment(self.tree)), MARK: str(self.place)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            bound_memory(process.pid)
            code: int | str = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = TIMEOUT
        finally:
            if process.poll() is None:
                # The tests may have started processes that wait for it.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            end_marked(str(self.place))
        if code == TIMEOUT:
            return TIMEOUT, f"no end after {timeout:g} s"
        return code, path.read_text("utf-8", errors="replace")


def bound_memory(process: int) -> None:
    """A fault that allocates without end gets a MemoryError, and the machine lives; where Linux knows how."""
    if sys.platform == "linux":
        with suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_DATA, (MEMORY, MEMORY))


def end_marked(place: str) -> None:
    """SIGKILL to whatever a run has left behind, in sessions of its own too: all inherit the variable `MARK`."""
    mark = f"{MARK}={place}".encode()
    while found := [process for process in _processes() if mark in process.environment.split(b"\0")]:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process.id, signal.SIGKILL)
        time.sleep(0.01)


class _Process(NamedTuple):
    id: int
    environment: bytes


def _processes() -> Iterator[_Process]:
    """The user's processes that live, where the system has a /proc; one that has ended has no environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            yield _Process(int(path.parent.name), path.read_bytes())


def environment(tree: Path) -> dict[str, str]:
    """What the tests of a copy see: the copy first, one thread, no device, no shrinking."""
    # A run that is itself a test of another one has an order, and a coverage, of its own.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MUTATION_", "COVERAGE_"))}
    return {
        **own,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PARITY_PROFILE": "mutants",
        "LIQUIDNET_SHARED_DATA": str(SHARED),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def whole_selections(mutants: Sequence[Mutant]) -> list[tuple[str, ...]]:
    """The tests of all mutants, those of one file joined: what must pass where nothing is planted."""
    expressions: dict[tuple[str, ...], list[str]] = {}
    for mutant in mutants:
        at = mutant.tests.index("-k") if "-k" in mutant.tests else len(mutant.tests)
        chosen = expressions.setdefault(mutant.tests[:at], [])
        wanted = " ".join(mutant.tests[at + 1 :])
        if wanted not in chosen:
            chosen.append(wanted)
    every = {
        files: "" if "" in chosen else " or ".join(f"({k})" for k in chosen) for files, chosen in expressions.items()
    }
    return [(*files, *(("-k", k) if k else ())) for files, k in every.items()]


def each(
    copies: Sequence[Copy], items: Sequence[Item], work: Callable[[Copy, Item], Result]
) -> Iterator[tuple[Item, Result]]:
    """Every item with its result, as they come, each copy at one of them at a time."""
    free: queue.Queue[Copy] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def one(item: Item) -> Result:
        copy = free.get()
        try:
            return work(copy, item)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        waiting = {pool.submit(one, item): item for item in items}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _row(mutant: Mutant, ended: Ended) -> Row:
    row = (mutant.name, mutant.file)
    if ended.code == TIMEOUT:
        return Row(*row, "caught", " ".join(mutant.tests), TIMEOUT)
    if ended.code == 0:
        return Row(*row, "survived")
    if ended.code != 1 or ended.failed is None or SLIPS.match(ended.failed[1]):
        return Row(*row, "invalid", why=f"pytest ended with {ended.code}:\n{ended.output}")
    test, message = ended.failed
    found = UNITS.search(message)
    return Row(*row, "caught", test, _units(found[1]) if found else "exact")


def _units(text: str) -> float | str:
    return "inf" if float(text) == float("inf") else float(text)


def _cases(junit: Path) -> list[ElementTree.Element]:
    try:
        return list(ElementTree.parse(junit).iter("testcase"))
    except (OSError, ElementTree.ParseError):  # none, or half of one: pytest was killed
        return []


def _first_failure(junit: Path) -> tuple[str, str] | None:
    """Name and message of the first test that ran and failed; an error in a fixture is no verdict of a test."""
    for case in _cases(junit):
        failure = case.find("failure")
        if failure is not None:
            return _node(case), f"{failure.get('message', '')}\n{failure.text or ''}"
    return None


def _every_failed(junit: Path) -> tuple[str, ...]:
    """The tests that failed, or whose fixtures did; a file that cannot be imported has no name of a class."""
    wrong = (case for case in _cases(junit) if any(case.find(kind) is not None for kind in ("failure", "error")))
    return tuple(_node(case) for case in wrong if case.get("classname"))


def _node(case: ElementTree.Element) -> str:
    """What pytest runs the test by: `parity/tests/ops/test_x.py::TestClass::test_name`.

    Its class name in JUnit's file is `parity.tests.ops.test_x.TestClass`.
    """
    parts = case.get("classname", "").split(".")
    at = next((i for i, part in enumerate(parts) if part.startswith("test_")), 0) + 1
    return "::".join([f"{'/'.join(parts[:at])}.py", *parts[at:], case.get("name", "")])
