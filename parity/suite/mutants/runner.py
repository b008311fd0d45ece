"""Each mutant alone in a copy of the working tree, with the tests that must catch it in a process of their own."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
    """

    code: int | str
    failed: tuple[str, str] | None
    output: str


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

    def run(self, arguments: Sequence[str]) -> Ended:
        """pytest in the copy, up to the first failure."""
        junit = self.place / "junit.xml"
        junit.unlink(missing_ok=True)
        options = ("-x", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}", f"--basetemp={self.place / 'tmp'}")
        code, output = self._python("-m", "pytest", f"--rootdir={self.tree}", *options, *arguments)
        return Ended(code, _first_failure(junit), "\n".join(output.splitlines()[-LAST_LINES:]))

    def try_mutant(self, mutant: Mutant) -> Row:
        """What the tests of one mutant say to it; the copy is whole again afterwards."""
        whole = mutant.apply(self.tree)
        try:
            return _row(mutant, self.run(mutant.tests))
        finally:
            (self.tree / mutant.file).write_text(whole, "utf-8")

    def _require_own_imports(self) -> None:
        """Installed editable, the packages could come from elsewhere, and every mutant would survive."""
        present = [name for name in PACKAGES if (self.tree / name).is_dir()]
        program = f"import importlib.util\nfor name in {present}: print(importlib.util.find_spec(name).origin)"
        _, output = self._python("-c", program)
        assert output.splitlines() == [str(self.tree / name / "__init__.py") for name in present], output

    def _python(self, *arguments: str) -> tuple[int | str, str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.tree,
            env=environment(self.tree),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=self.timeout)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return TIMEOUT, f"no end after {self.timeout:g} s"
        finally:
            if process.poll() is None:
                # The tests may have started processes that wait for it.
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


def environment(tree: Path) -> dict[str, str]:
    """What the tests of a copy see: the copy first, one thread, no device, no shrinking."""
    return {
        **os.environ,
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


def _first_failure(junit: Path) -> tuple[str, str] | None:
    """Name and message of the first test that ran and failed; an error in a fixture is no verdict of a test."""
    if not junit.is_file():
        return None
    for case in ElementTree.parse(junit).iter("testcase"):
        failure = case.find("failure")
        if failure is not None:
            return _node(case), f"{failure.get('message', '')}\n{failure.text or ''}"
    return None


def _node(case: ElementTree.Element) -> str:
    """What pytest runs the test by: `parity/tests/ops/test_x.py::TestClass::test_name`.

    Its class name in JUnit's file is `parity.tests.ops.test_x.TestClass`.
    """
    parts = case.get("classname", "").split(".")
    at = next((i for i, part in enumerate(parts) if part.startswith("test_")), 0) + 1
    return "::".join([f"{'/'.join(parts[:at])}.py", *parts[at:], case.get("name", "")])
