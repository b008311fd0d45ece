"""`python -m tools.bench.gpu_check`: all tests that a GPU makes different, then the measurements, in one JSON."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import tyro

from tools.bench import measure, results, sizes
from tools.cli.destination import require_new_or_file
from tools.cli.json_file import Json, write_json
from tools.cli.main import fail

ROOT = Path(__file__).parents[2]
BOTH = ("operations", "scan", "properties", "model", "gates", "optimizer")
OWN = ("kernel", "triton", "cross_entropy", "generat", "decod", "compil", "precision", "doctor")
ELSEWHERE = ("jax", "pallas")
SELECTED = f"not ({' or '.join(ELSEWHERE)}) and (torch or {' or '.join(OWN)})"
"""torch's share of the tests of both backends, and all of those that are torch's own."""


@dataclass(frozen=True)
class GpuCheck:
    """Run torch's tests on the GPU, then `liquidnet bench --device cuda`; exit code 1: one failed, 2: no GPU."""

    json: Path = Path("gpu-check.json")
    """Environment, summary of the tests and measurements go here."""
    rounds: int = 15
    """Rounds to take medians over."""
    tests: bool = True
    """Run the tests."""
    bench: bool = True
    """Measure."""

    def run(self) -> int:
        measure.require_device("cuda")
        require_new_or_file(self.json, "--json")
        result: Json = {**measure.identity("cuda")}
        if self.tests:
            result["tests"] = run_tests(files())
            # What is known so far survives whatever happens to the GPU below.
            write_json(self.json, result)
        if self.bench:
            result["bench"] = measure.measured("cuda", self.rounds, sizes.on_gpu())
            results.show(result["bench"])
        write_json(self.json, result)
        print(summary(result))
        return 0 if passed(result) else 1


def files() -> list[str]:
    """The tests of both backends that compute on the device, and whatever there is of torch's own."""
    paths = {path for name in (*BOTH, *OWN) for path in (ROOT / "parity" / "tests").rglob(f"test_*{name}*.py")}
    return sorted(str(path) for path in paths if not any(name in path.name for name in ELSEWHERE))


def run_tests(files: list[str], selected: str = SELECTED) -> Json:
    """Run pytest in a process of its own: counts, the names of failures, exit code and seconds."""
    with tempfile.TemporaryDirectory() as directory:
        junit = Path(directory) / "tests.xml"
        pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-k", selected, f"--junitxml={junit}"]
        code = subprocess.run([*pytest, *files], cwd=ROOT).returncode
        return {"exit_code": code, "selected": selected, **read_junit(junit)}


def read_junit(path: Path) -> Json:
    """Counts, failures by name with their first line, and reasons for skipping, from pytest's JUnit file."""
    if not path.is_file():
        return {"tests": 0, "failed": [], "message": "pytest wrote no result"}
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    failed: list[dict[str, str]] = []
    skipped: dict[str, int] = {}
    for case in (case for suite in suites for case in suite.iter("testcase")):
        name = f"{case.get('classname')}::{case.get('name')}"
        failed += [
            {"test": name, "message": (child.get("message") or "")[:300]}
            for child in case
            if child.tag in ("failure", "error")
        ]
        for child in case.iter("skipped"):
            reason = (child.get("message") or "")[:200]
            skipped[reason] = skipped.get(reason, 0) + 1
    tests, seconds = (sum(float(suite.get(key, 0)) for suite in suites) for key in ("tests", "time"))
    return {"tests": int(tests), "failed": failed, "skipped": skipped, "seconds": seconds}


def passed(result: Json) -> bool:
    """No test failed, some ran, and nothing that was measured went wrong."""
    tests, bench = result.get("tests"), result.get("bench")
    return (tests is None or (tests["exit_code"] == 0 and tests["tests"] > 0)) and not (bench or {}).get("errors")


def summary(result: Json) -> str:
    """One line on tests and measurements each."""
    lines = []
    if "tests" in result:
        tests = result["tests"]
        skipped = sum(tests.get("skipped", {}).values())
        lines.append(f"tests: {tests['tests']} run, {len(tests['failed'])} failed, {skipped} of them skipped")
    if "bench" in result:
        lines.append(f"bench: {len(result['bench']['errors'])} errors")
        lines += [f"  {error}" for error in result["bench"]["errors"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run, and exit 0 where everything passed, 1 where something failed, 2 where there is no GPU."""
    command = tyro.cli(GpuCheck, args=arguments, config=(tyro.conf.HelptextFromCommentsOff,))
    try:
        code = command.run()
    except (ValueError, OSError) as error:
        fail(error, 2)
    else:
        sys.exit(code)


if __name__ == "__main__":
    main()
