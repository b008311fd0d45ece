"""Prove this installation: every operation on drawn problems, on the devices that are present."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from spec.config import require_integer
from spec.mixers import families, registry
from spec.mixers import family as require_family
from tools.cli import backends
from tools.cli.destination import require_writable

if TYPE_CHECKING:
    from parity.proof.family_checks import Outcome
    from parity.suite.report.tables import Report
    from parity.suite.runs.trajectory_drift import Drift, Estimate


@dataclass(frozen=True)
class Parity:
    """Hold both backends against the float64 reference on some 1,500 problems, in units of rounding bounds.

    With --family, prove one family of mixers instead, of this project or from an installed package: its configuration,
    parameters, initial values, adjoint, activations and state are checked, each backend has the same parameters and
    carries the same state, and its operations are swept in both. Training runs are left out. A check that fails says
    in a line which tensor, method or value is wrong; then no problems are drawn.

    Exit code 0: no bound was broken, and no check failed; 1: one was, and the report says how to see it again;
    2: bad input, such as an unknown family.
    """

    family: str | None = None
    """Prove this family alone, in some two minutes; `liquidnet doctor` lists those from outside."""

    report: Path | None = None
    """Directory to write report.html, report.json and report.md into; by default the table is printed only."""
    draws: int = 150
    """Problems for an operation; cheap ones get three times as many, a block and the whole model a tenth."""
    seed: int | None = None
    """Seed of the problems; by default they are the same in every run."""
    no_trajectories: bool = False
    """Leave out the training runs: a quick look."""

    def run(self) -> None:
        require_integer("draws", self.draws, 1)
        if importlib.util.find_spec("hypothesis") is None:
            raise ValueError("this command draws its problems with hypothesis; pip install 'liquidnet-dual[parity]'")
        backends.default()
        if self.report is not None:
            require_writable(self.report, "--report")
        if self.family is not None and self.family not in registry().broken:
            require_family(self.family)  # refuses one that is unknown
        result = self._measure()
        _show(result)
        if self.report is not None:
            from parity.suite.report.report import write

            write(self.report, result)
            print(f"the report is in {self.report / 'report.html'}")
        sys.exit(0 if result["passed"] else 1)

    def _measure(self) -> Report:
        from parity.proof.adapters import stop_worker
        from parity.proof.environment import one_thread_and_full_float32
        from parity.suite.report import sweep
        from parity.suite.report.report import assemble

        started = time.perf_counter()
        one_thread_and_full_float32()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("this one in"),
                   TimeRemainingColumn(), TextColumn("so far"), TimeElapsedColumn())  # fmt: skip
        try:
            with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task("problems", total=None)

                def progress(name: str, done: int = 0, total: int | None = None) -> None:
                    # Where there is no bar, as in CI, a line each says that it goes on.
                    if not bar.console.is_terminal and bar.tasks[task].description != name:
                        bar.console.print(name)
                    bar.update(task, description=name, completed=done, total=total)

                outcomes = self._checks(progress)
                rows = []
                if not any(one.message for one in outcomes):
                    rows = sweep.sweep_operations(self.draws, self.seed, progress, family=self.family)
                runs = self._trajectories(progress)
        finally:
            stop_worker()
        seconds = time.perf_counter() - started
        return assemble(rows, *runs, self.draws, self.seed, seconds, self.family, outcomes)

    def _checks(self, progress: Callable[[str], None]) -> list[Outcome]:
        """What the checks of --family came to; one whose file cannot be used is asked nothing else."""
        from parity.proof.family_checks import Outcome, run

        if self.family is None:
            return []
        if self.family not in families():
            return [Outcome("registry", "", registry().broken[self.family])]
        return run(self.family, progress=progress)

    def _trajectories(self, progress: Callable[[str], None]) -> tuple[Drift | str, Estimate | str]:
        """Both runs of parity/suite/runs/trajectory_drift.py, or why they are absent."""
        if self.family is not None:
            return "left out for a family", "left out for a family"
        if self.no_trajectories:
            return "left out by --no-trajectories", "left out by --no-trajectories"
        from parity.suite.runs import trajectory_drift

        data, installed = trajectory_drift.story_data(), backends.installed()
        drift: Drift | str = "needs both backends"
        if set(installed) == set(backends.BACKENDS):
            drift = trajectory_drift.perturbed_run(data, progress=progress)
        return drift, trajectory_drift.estimated_run(data, tuple(installed), progress=progress)


def _show(result: Report) -> None:
    """The table of errors, and the sentence above the report below it."""
    from parity.suite.report import tables

    shown = Table(title="largest errors, in units of the bound", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    lines = tables.error_rows(result)
    for name, *cells in zip(tables.ERROR_HEADER, *lines, strict=True):
        # Where the terminal is narrow, the name of the tensor gives way.
        widest = 0 if name == "at" else max(map(len, (name, *cells)))
        shown.add_column(name, no_wrap=True, min_width=widest)
    before = None
    for row, cells in zip(result["rows"], lines, strict=True):
        if before not in (None, row["operation"]):
            shown.add_section()
        before = row["operation"]
        style = "bold red" if row["failure"] else "dim" if row["skipped"] else None
        shown.add_row(*map(escape, cells), style=style)
    tight = Table(*tables.TIGHT_HEADER[:4], title="how much of each float32 bound was used", box=SIMPLE_HEAD)
    for cells in tables.tightness_rows(result):
        tight.add_row(*map(escape, cells[:4]))
    console = Console(soft_wrap=False)
    if result["rows"]:
        console.print(shown)
        console.print(tight)
    for one, (name, of, outcome) in zip(result["family_checks"], tables.check_rows(result), strict=True):
        if outcome != tables.RIGHT:
            style = "red" if one["message"] else "dim"
            console.print(f"{name} ({of}): {outcome}", style=style, markup=False, soft_wrap=True, highlight=False)
    for run, outcome in tables.trajectory_rows(result) if result["family"] is None else ():
        console.print(f"{run}: {outcome}", markup=False, soft_wrap=True, highlight=False)
    for line in tables.warnings(result):
        console.print(line, style="yellow", markup=False, soft_wrap=True, highlight=False)
    for failure in tables.failures(result):
        console.print(failure["message"], style="red", markup=False, soft_wrap=True, highlight=False)
        print(f"    {failure['reproduction']}")
    style = "bold green" if result["passed"] else "bold red"
    console.print(result["verdict"], style=style, markup=False, soft_wrap=True, highlight=False)
