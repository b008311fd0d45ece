"""`liquidnet parity`: what passes is stated, what fails can be repeated, and the page needs nothing from outside."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from parity.proof import adapters, bounds, family_checks, interpreted_kernels
from parity.proof.environment import ROOT
from parity.proof.operations import OPERATIONS
from parity.proof.problems.cases import ScanCase
from parity.proof.problems.strategies import scan_cases
from parity.suite.report import report, sweep
from parity.suite.report import tables as report_tables
from parity.suite.runs.trajectory_drift import Drift, Estimate
from tools.cli import backends as tool_backends
from tools.cli.main import main

torch = pytest.importorskip("torch", reason="faults are planted in torch")
scans = adapters.load_module("torch", "ops.scan")
pytestmark = pytest.mark.usefixtures("native_methods")
ROWS = adapters.load("torch").METHODS["rowwise"]
NATIVE = [method for method in scans.METHODS if method not in interpreted_kernels.METHODS]
CASE = ScanCase((2, 3, 3), "uniform", "normal", "none", "none", 0)
VOID = {"meta", "br", "link", "img"}
SCORE = {"commit": "0123abc", "sources": "old", "total": 72, "caught": 72, "rows": []}

COUNT = {"caught": 8, "total": 9}
LOST = {"file": "spec/init.py", "line": 7, "operator": "AOR", "diff": "-a + b\n+a - b\n"}
GENERIC = SCORE | COUNT | {"operators": {"AOR": COUNT}, "directories": {"spec": COUNT}, "survivors": [LOST]}


class Page(HTMLParser):
    """Whether every tag is closed, what is shown, and what is referred to."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.shown, self.references = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name.split(":")[-1] in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.references += [value for name, value in attributes if name.split(":")[-1] in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown.append(data)


@pytest.fixture(autouse=True)
def one_operation_and_torch(monkeypatch):
    """Two operations in torch, short scans; the float64 process of the session stays."""
    monkeypatch.setattr(sweep, "OPERATIONS", {name: OPERATIONS[name] for name in ("scan", "rms_norm")})
    monkeypatch.setitem(sweep.CASES, "scan", scan_cases(((2, 3, 3), (2, 31, 3))))
    real = adapters.missing
    monkeypatch.setattr(adapters, "missing", lambda name: "jax is not installed" if name == "jax" else real(name))
    monkeypatch.setattr(tool_backends, "installed", lambda: ["torch"])
    monkeypatch.setattr(adapters, "stop_worker", lambda: None)
    monkeypatch.setattr(report.mutants, "load_score", lambda: dict(SCORE))
    monkeypatch.setattr(report.mutants, "load_generic_score", lambda: dict(GENERIC))


@pytest.fixture
def parity(tmp_path, capsys):
    """Runs the command; exit code, JSON, Markdown, HTML and what was printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["parity", "--report", str(tmp_path), "--draws", "12", "--no-trajectories", *map(str, arguments)])
        files = [(tmp_path / f"report.{suffix}").read_text() for suffix in ("json", "md", "html")]
        return stop.value.code, json.loads(files[0]), *files[1:], capsys.readouterr().out

    return run


@pytest.fixture
def faulty_chunked(monkeypatch):
    """A chunked scan that is off by 1 in 1000."""
    right = scans.METHODS["chunked"]
    monkeypatch.setitem(scans.METHODS, "chunked", lambda *inputs: 1.001 * right(*inputs))


@pytest.fixture
def refused(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["parity", *map(str, arguments)])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def test_a_run_that_passes_says_so_in_one_sentence(parity):
    code, result, text, page, printed = parity()
    assert code == 0 and result["passed"]
    sentence = (
        "For every one of 48 problems drawn, torch was within the rounding bound of the mathematics, proved for 2 "
        "operations; the suite noticed 72 of 72 planted mistakes (commit 0123abc; the sources have changed since) "
        "and 8 of 9 generic mutants (commit 0123abc; the sources have changed since)."
    )
    assert result["verdict"] == sentence
    assert sentence in text and sentence in "".join(Page(page).shown) and sentence in printed
    measured = [row for row in result["rows"] if row["cases"]]
    assert {(row["operation"], row["implementation"], row["dtype"]) for row in measured} == {
        ("scan", f"torch {method}", dtype) for method in NATIVE for dtype in ("float32", "float64")
    } | {("rms_norm", f"torch {method}", dtype) for method in ROWS for dtype in ("float32", "float64")}
    assert all(0.0 < row["worst"] <= 1.0 and row["theorem"] for row in measured)
    assert {(row["operation"], row["cases"]) for row in measured} == {("scan", 12), ("rms_norm", 36)}
    assert result["problems"] == 48 and result["checks"] == 12 * 2 * len(NATIVE) + 36 * 2 * len(ROWS)
    assert {"3", "31"} == set(measured[0]["groups"]["T"]) and measured[0]["groups"]["decay"]


def test_the_page_stands_alone(parity):
    _, _, _, text, _ = parity()
    page = Page(text)
    assert page.open == [] and [reference for reference in page.references if not reference.startswith("#")] == []
    assert not re.search(r"https?://|url\((?!#)|@import|<script|<link", text)
    assert text.count("<svg") == 2 and 'name="viewport"' in text and "@media print" in text
    assert "Generic mutants: 8 of 9 noticed" in text and "spec/init.py:7" in text and "+a - b" in text


def test_a_missing_backend_is_a_skip_with_its_reason(parity):
    _, result, text, page, _ = parity()
    skipped = [row for row in result["rows"] if row["skipped"]]
    assert {(row["operation"], row["backend"]) for row in skipped} == {("scan", "jax"), ("rms_norm", "jax")}
    assert "jax: jax is not installed" in text and "jax: jax is not installed" in page


def test_a_planted_fault_fails_with_a_reproduction(parity, faulty_chunked):
    code, result, text, page, printed = parity()
    assert code == 1 and not result["passed"]
    assert "a bound was broken: scan (torch chunked, float32), scan (torch chunked, float64)" in result["verdict"]
    failed = [row for row in result["rows"] if row["failure"]]
    assert {(row["implementation"], row["dtype"]) for row in failed} == {
        ("torch chunked", dtype) for dtype in ("float32", "float64")
    }
    for failure in (row["failure"] for row in failed):
        command = failure["reproduction"]
        assert command in text and command in "".join(Page(page).shown) and command in printed
        program, flag, code = shlex.split(command)
        assert (program, flag) == ("python", "-c")
        with pytest.raises(AssertionError) as error:
            exec(code, {})
        assert str(error.value) == failure["message"] and "is off by" in failure["message"]
        # Shrunk: the shortest shape.
        assert "shape=(2, 3, 3)" in failure["case"]
    bounds.WORST.clear()  # these errors were planted: they are none of the suite's


def test_a_result_of_another_shape_breaks_its_bound():
    truth, bound = {"y": np.ones(3), "x": np.ones(2)}, {"y": np.ones(3), "x": np.ones(2)}
    found = sweep.measure({"y": np.ones((1, 3))}, truth, bound)
    assert found == {"y": float("inf"), "x": float("inf")}


def test_a_reproduction_is_a_complete_shell_command():
    row = sweep.Row("scan", "torch", "chunked", "float32", True)
    command = sweep.reproduction(row, repr(ScanCase((2, 3, 3), "slow", "normal", "some", "left", 1)))
    assert command.startswith('python -c "from parity.')
    command = command.replace("python", shlex.quote(sys.executable), 1)
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    odd = sweep.reproduction(row, "Case('$HOME')")
    assert shlex.split(odd)[2].endswith("Case('$HOME'))")


def test_a_crash_is_a_finding_and_not_the_end_of_the_report(parity, monkeypatch):
    def crash(*_):
        raise RuntimeError("out of registers")

    monkeypatch.setitem(scans.METHODS, "chunked", crash)
    code, result, text, page, _ = parity()
    assert code == 1 and "RuntimeError: out of registers" in text and "out of registers" in page
    assert {row["method"] for row in result["rows"] if row["failure"]} == {"chunked"}


def test_a_report_in_which_nothing_ran_does_not_pass(parity, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("needs a GPU of another make")

    for method in scans.METHODS:
        monkeypatch.setitem(scans.METHODS, method, refuse)
    code, result, *_ = parity()
    assert code == 1 and not result["passed"] and "not tried" in result["verdict"]


def test_what_does_not_run_here_is_skipped_in_its_own_words(parity, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("needs a GPU of another make")

    monkeypatch.setitem(scans.METHODS, "chunked", refuse)
    code, _, text, page, _ = parity()
    assert code == 0 and "torch chunked: needs a GPU of another make" in text and "needs a GPU of another make" in page


def test_problems_are_the_same_unless_a_seed_is_given():
    def cases(seed):
        return [row.case for row in sweep.sweep_operations(5, seed, names=["torch"])]

    assert cases(None) == cases(None) and cases(1) == cases(1)
    assert cases(None) != cases(1) != cases(2)


def test_a_problem_that_costs_more_is_drawn_less_often():
    amounts = [sweep.amount_of(OPERATIONS[name], 200) for name in ("gates", "scan", "model")]
    assert amounts == [600, 200, 20] and sweep.amount_of(OPERATIONS["model"], 1) == 1
    assert all(0.0 < one.share <= 3.0 for one in OPERATIONS.values())


def test_both_backends_see_the_same_problems(monkeypatch):
    pytest.importorskip("jax", reason="compares both backends")
    monkeypatch.undo()
    monkeypatch.setattr(sweep, "OPERATIONS", {"rms_norm": OPERATIONS["rms_norm"]})
    rows = sweep.sweep_operations(2)
    assert [(row.backend, row.method, row.dtype, row.cases) for row in rows] == [
        (backend, method, dtype, 6)
        for backend in adapters.FRAMEWORKS
        for method in adapters.load(backend).METHODS["rowwise"]
        for dtype in ("float32", "float64")
    ]
    result = report.assemble(rows, "left out", "left out", 2, None, 0.0)
    assert result["verdict"].startswith("For every one of 6 problems drawn, both implementations were within")


def test_a_bound_that_is_too_large_is_a_warning():
    rows = [sweep.Row("scan", "torch", "chunked", "float32", True) for _ in range(2)]
    rows[0].add(CASE, {"states": 0.02, "last": 0.01})
    rows[1].add(CASE, {"states": 0.01, "last": 0.03})
    (line,) = report.tightness(rows)
    assert line["used"] == 0.03 and line["tensors"] == {"states": 0.02, "last": 0.03} and not line["tight"]
    rows[1].add(replace(CASE, seed=1), {"states": 0.05, "last": 0.0})
    assert report.tightness(rows)[0]["tight"] and rows[1].case == repr(replace(CASE, seed=1))


def test_trajectories_are_shown_and_judged():
    steps = np.linspace(0.0, 1e-6, 100)
    drift = Drift(
        {"torch, chunked": 5.0 - steps, "torch, sequential": 5.0 + steps, "jax": 5.0 * np.ones(100)}, steps, steps
    )
    estimated = Estimate(np.full(100, 1e-5), {"torch": steps, "jax": 20 * steps})
    result = report.assemble([], drift, estimated, 1, None, 0.0)
    runs = result["trajectories"]
    assert runs["race"]["passed"] and not runs["estimated"]["passed"] and not result["passed"]
    assert runs["estimated"]["units"] == pytest.approx({"torch": 0.1, "jax": 2.0})
    (_, drift_words), (_, estimate_words) = report_tables.trajectory_rows(result)
    assert (
        "within: torch and JAX differ by 1.00e-06 at most" in drift_words
        and "OUTSIDE: torch at most 0.1 " in estimate_words
    )
    page = report.page(result)
    assert Page(page).open == [] and page.count("<svg") == 3 and "https://" not in page


def test_a_family_is_proved_by_itself(parity):
    """Its checks and its operations, in the backend that is here, without training runs."""
    code, result, text, page, printed = parity("--family", "mingru")
    assert (
        code == 0 and result["family"] == "mingru" and result["verdict"].endswith("passed all 17 checks of a family.")
    )
    assert {row["operation"] for row in result["rows"]} == {"mingru_mixer", "mingru_model"}
    assert {run["skipped"] for run in result["trajectories"].values()} == {"left out for a family"}
    assert "| adjoint | reference | right |" in text and "What mingru is" in page
    assert "backend_texts (jax): not asked: jax is not installed" in printed


def test_a_check_that_fails_is_told_in_its_line(parity, monkeypatch):
    line = "adjoint of mingru: the gradient of z[0, 1, 2]: got 1, expected 2"

    def fail(name):
        raise family_checks.Wrong(line)

    monkeypatch.setattr(family_checks, "OF_REFERENCE", {"adjoint": fail})
    code, result, text, page, printed = parity("--family", "mingru")
    assert code == 1 and result["rows"] == [] and not result["passed"]
    assert "1 of 1 checks failed, the first of them adjoint (reference)" in result["verdict"]
    assert line in text and line in "".join(Page(page).shown) and line in printed


def test_a_family_that_cannot_be_used_stops_no_other(parity, monkeypatch):
    def refuse(*_):
        raise ValueError("mine.torch_impl lacks Mixer")

    monkeypatch.setattr(sweep.OPERATIONS["rms_norm"], "methods", refuse)
    code, result, text, *_ = parity()
    assert code == 1 and "mine.torch_impl lacks Mixer" in text
    assert {row["operation"] for row in result["rows"] if row["cases"]} == {"scan"}


def test_values_in_the_page_are_escaped(parity, monkeypatch):
    monkeypatch.setattr(adapters, "missing", lambda name: "<b>&" if name == "jax" else None)
    _, _, _, page, _ = parity()
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page


def test_bad_input_is_refused(refused, monkeypatch, tmp_path):
    assert "draws" in refused("--draws", 0)
    assert "unknown model family 'mingruu'" in refused("--family", "mingruu")
    (tmp_path / "file").write_text("")
    assert "a directory that can be written" in refused("--report", tmp_path / "file")
    assert "a directory that can be written" in refused("--report", tmp_path / "file" / "below")
    with monkeypatch.context() as change:
        change.setattr(tool_backends, "installed", list)
        assert "no backend is installed" in refused()
    find = tool_backends.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "hypothesis" else find(name, *rest)
    )
    assert "pip install 'liquidnet-dual[parity]'" in refused()
