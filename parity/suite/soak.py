"""Property tests on fresh random problems, round after round, until the time is up or something is found.

    python -m parity.suite.soak --minutes 30

What it finds is printed with the case that shows it, and kept in .hypothesis/: the next run of the same test begins
with it. Fix the fault, then keep the case as a test of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

GRACE = 60.0


@dataclass(frozen=True)
class Soak:
    """How long to look, and where."""

    minutes: float = 30.0
    """Time in all; the last round is cut off by it."""
    workers: int = 2
    """Test processes, one thread each."""
    tests: tuple[str, ...] = ()
    """Arguments for pytest, in place of all property tests."""


def soak(options: Soak) -> int:
    """Exit code 0 where nothing was found in the time, 1 where something was, 2 where pytest could not run."""
    end, rounds = time.monotonic() + 60.0 * options.minutes, 0
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", str(options.workers), "--dist", "worksteal"]
    command += list(options.tests) or ["-m", "hypothesis and not long"]
    environment = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", **os.environ, "PARITY_PROFILE": "soak"}
    while (left := end - time.monotonic()) > 0.0:
        print(f"round {rounds + 1}, {left / 60.0:.1f} minutes left", flush=True)
        code = _round(command, environment, left)
        if code == 1:
            print(f"round {rounds + 1} found something: see above")
            return 1
        if code is None:
            break
        if code:
            print(f"pytest could not run the tests: it ended with {code}")
            return 2
        rounds += 1
    print(f"nothing found in {options.minutes:g} minutes: {rounds} whole rounds, and part of another")
    return 0


def _round(command: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """pytest's exit code, 1 too where the time ended it after a failure; None where it had found nothing by then."""
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "results.xml"
        # A session of its own, so that whatever ends the soak ends the workers too.
        running = subprocess.Popen([*command, f"--junitxml={results}"], env=environment, start_new_session=True)
        try:
            code: int | None = running.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
            # Interrupted, pytest still tells what has failed so far.
            running.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                running.wait(timeout=GRACE)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
        # With several workers pytest ends with 2 after its first failure, as if it had been interrupted.
        return 1 if results.is_file() and "<failure" in results.read_text() else code


if __name__ == "__main__":
    sys.exit(soak(tyro.cli(Soak, description=__doc__)))
