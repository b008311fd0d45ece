"""Generic mutants: the operators, the sample, the record of what tests execute, and what becomes of each, on toys."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from parity.proof.environment import ROOT
from parity.suite.mutants import Mutant
from parity.suite.mutants.__main__ import Flags, main
from parity.suite.mutants.generic import coverage_record, run
from parity.suite.mutants.generic.check_tests import changed_lines, files_of_tests, passed_by, selected
from parity.suite.mutants.generic.coverage_record import Finder, Record
from parity.suite.mutants.generic.equivalent import Excluded, read_excluded
from parity.suite.mutants.generic.operators import OPERATORS, is_program, mutations
from parity.suite.mutants.generic.sample import sample, shares, source_files
from parity.suite.mutants.runner import TIMEOUT, Copy, Ended


def changes(source: str, operator: str | None = None) -> set[tuple[str, str]]:
    """(operator, changed statement) of every mutant."""
    found = mutations("f.py", source.encode())
    return {(one.operator, one.new) for one in found if operator in (None, one.operator)}


@pytest.mark.parametrize(
    "source, operator, expected",
    [
        ("x = (a) + (b)", "AOR", {"x = (a) - (b)"}),
        ("x = a // b", "AOR", {"x = a * b"}),
        ("x = a ** b", "AOR", {"x = a * b"}),
        ("x = -a", "AOD", {"x = (a)"}),
        ("x += a", "ASR", {"x -= a"}),
        ("x = a <= b", "ROR", {"x = a < b", "x = a > b"}),
        ("x = a is not b", "ROR", {"x = a is b"}),
        ("x = a in b", "ROR", {"x = a not in b"}),
        ("x = a and b and c", "LCR", {"x = a or b and c", "x = a and b or c"}),
        ("if a:\n    f()", "COI", {"if not (a):"}),
        ("x = [b for b in c if b.d]", "COI", {"x = [b for b in c if not (b.d)]"}),
        ("x = not a", "COD", {"x = (a)"}),
        ("x = 3", "CRP", {"x = 4", "x = 2", "x = 6"}),
        ("x = 0", "CRP", {"x = 1", "x = (-1)"}),
        ("x = True", "CRP", {"x = False"}),
        ("x = a[b:c]", "SIR", {"x = a[(b) + 1:c]", "x = a[b:(c) - 1]"}),
        ("x = a[:c]", "SIR", {"x = a[1:c]", "x = a[:(c) - 1]"}),
        ("for a in b:\n    break", "BCR", {"continue"}),
        ("self.x = 1", "SDL", {"pass"}),
        ("f(a)", "SDL", {"pass"}),
        ("x = 1", "SDL", set()),
        ("x = f(a, b, c)", "IPEX", {"x = f(b, a, c)"}),
        ("x = max(a, b)", "IPEX", set()),
        ("x = f(a, b=c)", "VDL", {"x = f(a)"}),
        ("x = f(b=c, d=e)", "VDL", {"x = f(d=e)", "x = f(b=c)"}),
        ("x = min(a)", "MER", {"x = max(a)"}),
        ("x = a.zeros(b)", "MER", {"x = a.ones(b)"}),
    ],
)
def test_an_operator_changes(source, operator, expected):
    assert {new for _, new in changes(source, operator)} == expected
    for one in mutations("f.py", source.encode()):
        assert is_program(one, source.encode())


def test_every_operator_has_a_case():
    cases = next(mark for mark in test_an_operator_changes.pytestmark if mark.name == "parametrize").args[1]
    assert {operator for _, operator, _ in cases} == set(OPERATORS)


@pytest.mark.parametrize(
    "source",
    [
        '"""1 + 1"""',
        "def f(a: Literal[1]) -> Array[2]:\n    '''3 + 4'''",
        "x: Array[1]",
        "assert a < 1, 2 + 3",
        "class A:\n    def __repr__(self):\n        return a + 1",
        "if TYPE_CHECKING:\n    x = 1",
        "if __name__ == '__main__':\n    f(1)",
        "x = f'{a + 1}'",
        "x = 'a' + b",
    ],
)
def test_what_is_no_behaviour_is_left_alone(source):
    assert changes(source) == set()


def test_a_message_is_left_alone_and_its_statement_is_not():
    assert changes("raise ValueError(a + 1)") == {("SDL", "pass")} == changes("print(a + 1)")


PLACES = """class A:
    def f(self):
        x = g(
            1 < y,
        )
        while x:  # so
            # and so
            h()
"""


def test_a_place_is_told_by_function_and_lines():
    source = PLACES
    found = {one.operator: one for one in mutations("f.py", source.encode())}
    less, loop = found["ROR"], found["COI"]
    assert (less.function, less.first, less.last, less.old) == ("A.f", 3, 5, "x = g( 1 < y, )")
    assert (loop.function, loop.first, loop.last) == ("A.f", 6, 7)
    assert less.apply(source.encode()).decode() in (source.replace("<", "<="), source.replace("<", ">="))


def test_letters_of_several_bytes_move_nothing():
    assert changes("x = 'ä' if a < b else 'ö'", "ROR") == {
        ("ROR", "x = 'ä' if a <= b else 'ö'"),
        ("ROR", "x = 'ä' if a >= b else 'ö'"),
    }


def test_what_is_no_program_or_the_same_one_is_told():
    one = mutations("f.py", b"x = 1 + a")[0]
    assert is_program(one, b"x = 1 + a")
    for text in ("(", "1"):
        assert not is_program(replace(one, start=4, end=5, text=text), b"x = 1 + a")


def test_shares_are_equal_and_none_is_larger_than_its_places():
    assert shares({"a": 100, "b": 2, "c": 100}, 12) == {"a": 5, "b": 2, "c": 5}
    assert shares({"a": 1, "b": 1}, 12) == {"a": 1, "b": 1}


FILES = {"a.py": b"x = 1 + 2\n" * 30, "b.py": b"y = 3 < z\n" * 10, "c.py": b"w = not v\n"}


def test_a_sample_is_even_and_the_same_for_a_seed():
    one, other = (sample(FILES, 21, seed) for seed in (0, 1))
    assert one == sample(FILES, 21, 0) != other
    by_operator = Counter(found.operator for found in one)
    assert sorted(by_operator.values()) == [1, 6, 7, 7] and by_operator["COD"] == 1
    numbers = Counter(found.file for found in one if found.operator == "CRP")
    # 60 places in the first file, 10 in the second.
    assert numbers["a.py"] >= 5 and numbers["b.py"] >= 1
    assert not {*sample(FILES, 21, 0, one)} & {*one}


def test_the_sources_hold_places_of_every_operator():
    files = {name: text for name, text in source_files(ROOT).items() if name.startswith(("spec/", "tools/plot/"))}
    assert "spec/data.py" in files and not any("tests" in name for name in source_files(ROOT))
    found = sample(files, 28, 3)
    assert {one.operator for one in found} == set(OPERATORS) and len(found) == 28


def test_equivalent_mutants_are_found_again_and_stale_ones_refused():
    """Those of the repository too: an entry that fits nothing any more is taken out."""
    read_excluded().among(source_files(ROOT))
    entry = ("b.py", "", "y = 3 < z", "y = 3 <= z")
    assert {one.new for one in Excluded({entry}).among(FILES)} == {"y = 3 <= z"}
    assert {one.file for one in Excluded((), {"c.py"}).among(FILES)} == {"c.py"}
    for stale in (Excluded({(*entry[:3], "y = 4 <= z")}), Excluded((), {"gone.py"})):
        with pytest.raises(ValueError, match="take the entry out"):
            stale.among(FILES)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[[equal]]", "unknown table 'equal'"),
        ('[[elsewhere]]\nfile = "a"', "has the keys file, reason"),
        ('[[elsewhere]]\nfile = "a"\nreason = " "', "no reason"),
        ("[[", "list.toml: "),
    ],
)
def test_a_malformed_list_is_refused(tmp_path, text, message):
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_excluded(tmp_path / "list.toml")


SOURCE = """LIMIT = 8


def double(x):
    if x > 100:
        return x
    return 2 * x


def unused(x):
    return x + 1


def made_once(x):
    return x + 1
"""
TEST = """import pathlib, subprocess, sys
import pytest
from spec import double, made_once

@pytest.fixture(scope="module")
def once():
    return made_once(3)

def test_double():
    assert double(3) == 6

def test_elsewhere(once):
    done = subprocess.run([sys.executable, "-c", "from spec import double; print(double(200))"], capture_output=True)
    assert done.stdout == b"200\\n"

def test_shared(once):
    assert once == 4

def test_fails():
    assert double(3) == 7
"""
FILE = "parity/tests/ops/test_double.py"


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A repository of two functions and their tests, with a record of its own."""
    root = tmp_path / "toy"
    for name, text in {"spec/__init__.py": SOURCE, "parity/__init__.py": "", FILE: TEST}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setenv("LIQUIDNET_MUTATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "read_excluded", Excluded)
    return root


def test_each_mutant_meets_the_tests_that_execute_it(toy, tmp_path, capsys):
    pytest.importorskip("coverage", reason="coverage is not installed")
    flags = Flags(generic=1, workers=1, record=tmp_path / "score.json")
    assert main(flags, (), toy) in (0, 1)
    assert f"1/1 {FILE}: 3 tests, 1 others" in capsys.readouterr().out
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["total"] == 1 == score["caught"] + len(score["survivors"])
    # What is there is taken as it is. The child alone executes line 6.
    copy = Copy(toy, tmp_path / "copy", timeout=120.0)
    finder = Finder(coverage_record.record([copy], toy, lambda line: pytest.fail(line)), toy)
    assert finder.record.executing("spec/__init__.py", [6]) == {f"{FILE}::test_elsewhere"}
    assert finder.record.executing("spec/__init__.py", [7]) == {f"{FILE}::test_double"}
    # What a fixture of several tests executes, each of them may notice.
    asking = {f"{FILE}::{name}" for name in ("test_elsewhere", "test_shared")}
    assert finder.record.executing("spec/__init__.py", [15]) == asking
    found = {(one.first, one.operator): one for one in mutations("spec/__init__.py", SOURCE.encode())}
    noticed, missed = (run._try(copy, found[line, "AOR"], finder, 60.0, SOURCE.encode()) for line in (7, 11))
    assert (noticed.outcome, noticed.caught_by, noticed.executed) == ("caught", f"{FILE}::test_double", True)
    # No test executes it, so those of the modules that import it have a try.
    assert (missed.outcome, missed.tests, missed.executed) == ("survived", 3, False)
    assert missed.diff == "@@ -11 +11 @@\n-    return x + 1\n+    return x - 1\n"
    assert (copy.tree / "spec" / "__init__.py").read_text() == SOURCE
    (toy / "spec" / "__init__.py").write_text(SOURCE + "\n")
    assert coverage_record._kept(FILE, toy, make=True) is None and coverage_record._kept(FILE, toy, make=False)


def recorded(lines=(), seconds=None) -> Record:
    found = Record(seconds or {f"{FILE}::test_double": 1.0, f"{FILE}::test_elsewhere": 0.5}, files={FILE})
    for line, test in lines:
        found.lines["spec/__init__.py"][line].add(f"{FILE}::{test}")
    return found


def test_without_coverage_a_modules_tests_are_those_that_import_it(toy):
    tests, executed = Finder(recorded(), toy).tests("spec/__init__.py", [7])
    assert tests == set(recorded().seconds) and not executed


def test_a_line_that_none_executes_gets_the_tests_of_its_function(toy):
    finder = Finder(recorded([(7, "test_double")]), toy)
    assert finder.tests("spec/__init__.py", [6]) == ({f"{FILE}::test_double"}, False)
    assert finder.tests("spec/__init__.py", [1]) == ({f"{FILE}::test_double"}, True)


def test_tests_are_ordered_by_file_and_time():
    seconds = {"a.py::slow": 3.0, "a.py::quick": 1.0, "b.py::late": 2.0, "b.py::last": 50.0}
    finder = Finder.__new__(Finder)
    finder.record = recorded(seconds=seconds)
    assert finder.order(seconds, 10.0) == ["a.py::quick", "b.py::late", "a.py::slow"]
    assert finder.order(["b.py::last"], 10.0) == ["b.py::last"]


def test_how_a_run_ends_says_what_became_of_the_mutant():
    assert run._outcome(Ended(TIMEOUT, None, "")) == (TIMEOUT, None)
    assert run._outcome(Ended(0, None, "")) == ("survived", None)
    assert run._outcome(Ended(1, None, "", ("a::b",))) == ("caught", "a::b")
    assert {run._outcome(Ended(code, None, ""))[0] for code in (2, 3, 4, -9, -11)} == {"caught"}


def test_a_test_that_fails_anyway_catches_nothing(toy, tmp_path):
    copy = Copy(toy, tmp_path / "copy", timeout=120.0)
    rows = [
        run.GenericRow("spec/__init__.py", 7, "double", "AOR", "caught", f"{FILE}::{name}", True, 1, 0.0, "")
        for name in ("test_double", "test_fails")
    ]
    found = run._checked(copy, rows, lambda line: None)
    assert [row.outcome for row in found] == ["caught", "unsure"]
    score = run.score_of(found, 0, "", toy)
    assert (score["total"], score["caught"], score["unsure"]) == (1, 1, 1)


FAULT = Mutant("all doubled", "spec/__init__.py", "    if x > 100:\n        return x\n", "", (FILE, "-k", "double"))


def test_a_planted_fault_whose_tests_go_another_way_is_told(toy):
    """Here the branch: another test takes it, and the chosen one does not."""
    assert changed_lines(FAULT, SOURCE) == [5, 6]
    change = Mutant("none", FAULT.file, "        return x\n", "        return None\n", FAULT.tests)
    lines = [(5, "test_double"), (5, "test_elsewhere"), (6, "test_elsewhere"), (7, "test_double")]
    found = recorded(lines)
    assert selected(FAULT.tests, found) == set(found.seconds)  # the file's name, too, holds the word
    chosen = Mutant(change.name, change.file, change.old, change.new, (FILE, "-k", "test_double.py and not elsewhere"))
    assert [why for _, why in passed_by([chosen], found, toy)] == ["its tests enter the function and pass by"]
    assert not list(passed_by([FAULT, change], found, toy))
    assert files_of_tests(chosen) == {FILE} == files_of_tests(gone := replace(change, tests=(f"{FILE}::test_gone",)))
    assert "none of its tests is recorded" in next(iter(passed_by([gone], found, toy)))[1]


def test_nothing_to_do_is_refused(toy):
    for flags in (Flags(generic=0), Flags(generic=1, workers=0), Flags(generic=1, seconds=0.0)):
        with pytest.raises(ValueError, match="nothing to do"):
            main(flags, (), toy)
    with pytest.raises(ValueError, match="no generic mutant in the files of --only gone"):
        main(Flags(generic=1, only=("gone",)), (), toy)
