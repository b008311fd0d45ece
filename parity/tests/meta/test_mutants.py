"""The mutants can be planted as they are written, and their runner tells caught from survived from badly planted."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity.proof import bounds
from parity.proof.environment import ROOT
from parity.suite.mutants import MUTANTS, Mutant, load_score, runner, sources_digest
from parity.suite.mutants.__main__ import Flags, choose, main
from parity.suite.mutants.catalogue import read_catalogue
from parity.suite.mutants.runner import UNITS, Copy, whole_selections


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_can_be_planted(mutant):
    """The right text stands there once, another stands there afterwards, the file compiles, the tests exist."""
    text = (ROOT / mutant.file).read_text("utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.file} holds {text.count(mutant.old)} times: {mutant.old}"
    changed = text.replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    files = [argument for argument in mutant.tests if argument.startswith("parity/")]
    assert files and all((ROOT / file.partition("::")[0]).is_file() for file in files)
    assert mutant.tests[len(files) :][:1] in ((), ("-k",)) and len(mutant.tests) in (len(files), len(files) + 2)


def test_none_names_what_is_not_there(tmp_path):
    """A fault that ends in a NameError is a slip of the pen: any test at all would notice it."""
    for number, mutant in enumerate(MUTANTS):
        text = (ROOT / mutant.file).read_text("utf-8")
        (tmp_path / f"{number:03}.py").write_text(text.replace(mutant.old, mutant.new), "utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F823", "--output-format", "concise"]
    done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True)
    slips = [line for line in done.stdout.splitlines() if "F82" in line]
    assert not slips, [(MUTANTS[int(Path(line.partition(":")[0]).stem)].name, line) for line in slips]


def test_the_documents_say_how_many():
    for name in ("docs/design/proof.md", "CONTRIBUTING.md"):
        assert f"{len(MUTANTS)} planted faults" in (ROOT / name).read_text(), name


def test_there_are_enough_in_every_part():
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    parts = Counter(mutant.file.split("/")[0] for mutant in MUTANTS)
    assert len(MUTANTS) >= 60 and min(parts[part] for part in ("spec", "torch_impl", "jax_impl", "tools")) >= 10


def test_the_flags_choose():
    every = choose(MUTANTS, Flags())
    assert every == list(MUTANTS)
    few = choose(MUTANTS, Flags(sample=12))
    assert len(few) == 12 and {mutant.file.split("/")[0] for mutant in few} >= {"spec", "torch_impl", "jax_impl"}
    assert {mutant.file for mutant in choose(MUTANTS, Flags(only=("torch_impl/ops/cross_entropy/__init__.py",)))} == {
        "torch_impl/ops/cross_entropy/__init__.py"
    }
    for flags in (Flags(only=("no such fault",)), Flags(sample=0), Flags(workers=0)):
        with pytest.raises(ValueError, match="nothing to do"):
            choose(MUTANTS, flags)


def test_tests_of_one_file_are_joined():
    def of(*tests):
        return replace(MUTANTS[0], tests=tests)

    joined = whole_selections(
        [of("a", "-k", "x"), of("a", "-k", "y or z"), of("a", "-k", "x"), of("b", "-k", "x"), of("b")]
    )
    assert joined == [("a", "-k", "(x) or (y or z)"), ("b",)]


def test_the_units_of_a_bound_are_read_from_its_message():
    with pytest.raises(AssertionError) as raised:
        bounds.assert_within({"x": np.array([2.0])}, {"x": np.array([1.0])}, {"x": np.array([0.5])}, "label")
    bounds.WORST.clear()
    assert UNITS.search(str(raised.value))[1] == "2"


SOURCE = "def double(x):\n    return 2 * x\n\n\ndef unused():\n    return 1\n"
TEST = """from spec import double

def test_double():
    assert double(3) == 6, f"scan: x[0] is off by {double(3) - 6} units of its bound"

class TestSign:
    def test_sign(self):
        assert double(-1) < 0
"""
ALL = ("parity/tests/ops/test_double.py",)
CAUGHT = Mutant("three times", "spec/__init__.py", "2 * x", "3 * x", ALL)
EXACT = Mutant("no sign", "spec/__init__.py", "2 * x", "2 * abs(x)", ALL)
SURVIVOR = Mutant("another one", "spec/__init__.py", "return 1", "return 2", ALL)
BROKEN = Mutant("no such name", "spec/__init__.py", "2 * x", "two * x", ALL)
NO_IMPORT = Mutant("no such module", "spec/__init__.py", "def unused", "import nothing_of_this_name\ndef unused", ALL)
NO_TEST = replace(CAUGHT, name="no test", tests=(*ALL, "-k", "nothing_of_this_name"))


@pytest.fixture
def planted(tmp_path) -> Path:
    """A repository of one function and its tests."""
    root = tmp_path / "planted"
    (root / "spec").mkdir(parents=True)
    (root / "parity" / "tests" / "ops").mkdir(parents=True)
    (root / "spec" / "__init__.py").write_text(SOURCE)
    (root / "parity" / "__init__.py").write_text("")
    (root / "parity" / "tests" / "ops" / "test_double.py").write_text(TEST)
    return root


def test_caught_survived_and_invalid_are_told_apart(planted, tmp_path, capsys):
    record = tmp_path / "record.json"
    mutants = [CAUGHT, EXACT, SURVIVOR, BROKEN, NO_IMPORT]
    before = sources_digest(planted)
    assert main(Flags(record=record), mutants, planted) == 1
    found = load_score(record)
    rows = [(row["name"], row["caught_by"], row["units"]) for row in found.pop("rows")]
    # As pytest takes them, from the root of the repository.
    assert rows == [
        ("three times", "parity/tests/ops/test_double.py::test_double", 3.0),
        ("no sign", "parity/tests/ops/test_double.py::TestSign::test_sign", "exact"),
        *((mutant.name, None, None) for mutant in mutants[2:]),
    ]
    assert found == {"commit": "", "sources": before, "total": 5, "caught": 2}
    printed = capsys.readouterr().out
    assert "SURVIVED" in printed and printed.count("INVALID") == 4 and "2 of 5 mutants caught" in printed
    assert sources_digest(planted) == before


def test_all_caught_is_success(planted):
    assert main(Flags(workers=1), [CAUGHT], planted) == 0


@pytest.mark.parametrize("reason, mutant", [("a failing test", CAUGHT), ("no test", NO_TEST)])
def test_nothing_counts_where_the_tests_fail_anyway(planted, capsys, reason, mutant):
    if reason == "a failing test":
        (planted / "spec" / "__init__.py").write_text(SOURCE.replace("2 * x", "4 * x // 2 * 2"))
        mutant = replace(CAUGHT, old="4 * x", new="6 * x")
    assert main(Flags(workers=1), [mutant], planted) == 1
    assert "fails where nothing is planted" in capsys.readouterr().out


def test_a_hang_is_caught_and_the_copy_is_whole_again(planted, tmp_path):
    copy = Copy(planted, tmp_path / "copy", timeout=60.0)
    copy.timeout = 0.05
    row = copy.try_mutant(CAUGHT)
    assert (row.outcome, row.units) == ("caught", "timeout")
    assert (copy.tree / CAUGHT.file).read_text() == SOURCE


LEFT_BEHIND = """import pathlib, subprocess, sys

def test_that_starts_another():
    code = "import time; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    pathlib.Path("started").write_text(str(process.pid))
"""


def test_nothing_that_a_run_starts_outlives_it(planted, tmp_path):
    """Not in a session of its own either; nor does the run wait for it."""
    (planted / ALL[0]).write_text(LEFT_BEHIND)
    copy = Copy(planted, tmp_path / "copy", timeout=120.0)
    assert copy.run((*ALL, "-W", "ignore")).code == 0
    started = Path("/proc", (copy.tree / "started").read_text(), "stat")
    assert not started.is_file() or started.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: limits of a process that runs")
def test_memory_is_bounded(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MEMORY", 1 << 30)
    (planted / ALL[0]).write_text("def test_much():\n    assert len(bytearray(2 << 30))\n")
    ended = Copy(planted, tmp_path / "copy", timeout=120.0).run(ALL)
    assert ended.code == 1 and ended.failed is not None and "MemoryError" in ended.failed[1]


def test_a_fault_that_no_longer_fits_is_named(planted):
    with pytest.raises(ValueError, match="holds 0 times what `three times` replaces"):
        replace(CAUGHT, old="2 * y").apply(planted)


CATALOGUE = '''
[tests]
double = ["parity/tests/ops/test_double.py", "-k", "sign"]

[[mutant]]
name = "no sign"
file = "spec/__init__.py"
old = "2 * x"
new = "2 * abs(x)"
tests = "double"

[[mutant]]
name = "nothing"
file = "spec/__init__.py"
old = """
    return 2 * x
"""
new = ""
tests = ["parity/tests/ops/test_double.py"]
'''


def test_the_catalogue_is_read_as_it_is_written(tmp_path):
    other = '[tests]\n[[mutant]]\nname = "n"\nfile = "f"\nold = "o"\nnew = "w"\ntests = ["t"]\n'
    (tmp_path / "a.toml").write_text(other)
    (tmp_path / "b.toml").write_text(CATALOGUE)
    assert read_catalogue(tmp_path, ("b", "a")) == (
        Mutant("no sign", "spec/__init__.py", "2 * x", "2 * abs(x)", (*ALL, "-k", "sign")),
        Mutant("nothing", "spec/__init__.py", "    return 2 * x\n", "", ALL),
        Mutant("n", "f", "o", "w", ("t",)),
    )


@pytest.mark.parametrize(
    "right, wrong, message",
    [
        ('new = ""', 'now = ""', "a.toml: mutant 2, 'nothing': unknown key 'now'"),
        ('new = ""\n', "", "a.toml: mutant 2, 'nothing': no key 'new'"),
        ('name = "nothing"\n', "", "a.toml: mutant 2, None: no key 'name'"),
        ('new = ""', "new = 1", "a.toml: mutant 2, 'nothing': `new` is no string: 1"),
        ('tests = "double"', 'tests = "duble"', r"a.toml: mutant 1, 'no sign': \[tests\] names no selection 'duble'"),
        ('tests = "double"', "tests = []", r"a.toml: mutant 1, 'no sign': .* not \[\]"),
        ('tests = "double"', "tests = [1]", r"a.toml: mutant 1, 'no sign': .* not \[1\]"),
        ('tests = "double"', 'tests = ["x"]', r"a.toml: \[tests\] double: no mutant names it"),
        (
            'double = ["parity/tests/ops/test_double.py", "-k", "sign"]',
            'double = "x"',
            r"a.toml: \[tests\] double: .* 'x'",
        ),
        ('name = "nothing"', 'name = "no sign"', "a.toml: another mutant has the name `no sign` too"),
        ("[tests]", "[[tests]]", "a.toml: `tests` is no table"),
        ("[tests]", "[test]", "a.toml: unknown key 'test'"),
        (CATALOGUE, "mutant = 1\n[tests]\n", "a.toml: `mutant` is no array of tables: 1"),
        (CATALOGUE, "[tests]\n", "a.toml: no key 'mutant'"),
        (CATALOGUE, "[tests", "a.toml: .*at end of document"),
    ],
)
def test_a_malformed_entry_is_refused(tmp_path, right, wrong, message):
    assert CATALOGUE.count(right) == 1
    (tmp_path / "a.toml").write_text(CATALOGUE.replace(right, wrong))
    with pytest.raises(ValueError, match=message):
        read_catalogue(tmp_path, ("a",))


def test_a_name_that_another_file_has_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text(CATALOGUE)
    (tmp_path / "b.toml").write_text(CATALOGUE)
    with pytest.raises(ValueError, match=r"b\.toml: another mutant has the name `no sign` too"):
        read_catalogue(tmp_path, ("a", "b"))


@pytest.mark.parametrize("subjects", [(), ("a", "b")])
def test_a_file_that_is_not_listed_or_not_there_is_refused(tmp_path, subjects):
    (tmp_path / "a.toml").write_text(CATALOGUE)
    with pytest.raises(ValueError, match=r"holds \['a'\], and the subjects are"):
        read_catalogue(tmp_path, subjects)


def test_a_score_is_of_the_catalogue_too(planted):
    before = sources_digest(planted)
    catalogue = planted / "parity" / "suite" / "mutants" / "catalogue"
    catalogue.mkdir(parents=True)
    (catalogue / "a.toml").write_text(CATALOGUE)
    first = sources_digest(planted)
    (catalogue / "a.toml").write_text(CATALOGUE.replace("abs(x)", "max(x, 0)"))
    assert len({before, first, sources_digest(planted)}) == 3


def test_no_score_is_none(tmp_path):
    assert load_score(tmp_path / "none.json") is None
