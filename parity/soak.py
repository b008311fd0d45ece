"""Property tests on fresh random problems, round after round, until the time is up or something is found.

    python -m parity.soak --minutes 30

What it finds is printed with the case that shows it, and kept in .hypothesis/: the next run of the same test begins
with it. Fix the fault, then keep the case as an `@example` of its test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import tyro


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
        # A session of its own, so that the time limit ends the workers too.
        running = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            code = running.wait(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            break
        if code:
            print(f"round {rounds + 1} found something: see above" if code == 1 else "pytest could not run the tests")
            return 1 if code == 1 else 2
        rounds += 1
    print(f"nothing found in {options.minutes:g} minutes: {rounds} whole rounds and part of another")
    return 0


if __name__ == "__main__":
    sys.exit(soak(tyro.cli(Soak, description=__doc__)))
