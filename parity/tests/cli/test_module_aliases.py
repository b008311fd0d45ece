"""Commands keep the names under which they were published first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from parity.proof.environment import ROOT

ALIASES = {
    "parity.mutants": "parity.suite.mutants",
    "parity.kernels": "parity.suite.compiled.triton",
    "parity.tpu": "parity.suite.compiled.tpu",
    "parity.kills": "parity.suite.runs.crash_resume",
    "parity.soak": "parity.suite.soak",
    "tools.gpu_check": "tools.bench.gpu_check",
}


@pytest.mark.parametrize("alias", ALIASES)
def test_the_first_name_of_a_command_is_the_command(alias):
    """--help says the same under both names, but for the name."""
    helped = []
    for name in (alias, ALIASES[alias]):
        done = subprocess.run([sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        helped.append([line for line in done.stdout.splitlines() if "usage:" not in line])
    assert helped[0] == helped[1] and any("--" in line for line in helped[0])
