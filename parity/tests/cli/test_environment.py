"""Whatever the environment: a run's exit code is that of the run, and what cannot be had is told in one line."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from parity.proof.environment import ROOT, UNUSABLE
from parity.suite.support.fixtures import HEED_SIGINT
from spec.checkpoint.format import read_checkpoint
from tools import doctor
from tools.cli import backends, errors, signals
from tools.cli.commands import COMMANDS
from tools.cli.main import main
from tools.plot import figure
from tools.plot.loss import plot_loss
from tools.training import trainer
from tools.training.train import Train

SMALL = ("--d-model", "16", "--d-ff", "16", "--n-layers", "1", "--batch-size", "2", "--seq-len", "16")
LINES = [{"step": step, "loss": 6.0 / step, "lr": 0.1 * step, "backend": "torch"} for step in (1, 2, 3)]


def python(program: str, *flags: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, *flags, "-c", HEED_SIGINT + program]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=200)


def train(data: Path, out: Path, *more: str) -> int | str | None:
    arguments = ["train", backends.default(), "--data", str(data), "--out", str(out), *SMALL, *more]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--steps", "3", "--eval-windows", "2"])
    return stop.value.code


@pytest.fixture
def sent(monkeypatch):
    """Sends this process signals at the end of its first step."""

    def send(*numbers: signal.Signals) -> None:
        step = trainer.Trainer._train_step

        def then_send(self: trainer.Trainer) -> None:
            step(self)
            for number in numbers if self.step == 1 else ():
                signal.raise_signal(number)

        monkeypatch.setattr(trainer.Trainer, "_train_step", then_send)

    return send


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), RuntimeError("latex\nwas not found"), AssertionError()]
)
def test_a_run_does_not_depend_on_its_picture(error, small_data, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(trainer, "plot_loss", fail)
    assert train(small_data, tmp_path / "run") == 0
    told = capsys.readouterr().err.splitlines()
    assert sum("could not be drawn" in line and type(error).__name__ in line for line in told) == 1
    assert told[-1] == "reached step 3 of 3" and read_checkpoint(tmp_path / "run").state["step"] == 3


@pytest.mark.parametrize("first, then, code, name", [
    (signal.SIGTERM, signal.SIGTERM, 75, "SIGTERM"), (signal.SIGHUP, signal.SIGHUP, 75, "SIGHUP"),
    (signal.SIGINT, signal.SIGHUP, 75, "SIGHUP"), (signal.SIGHUP, signal.SIGTERM, 75, "SIGTERM"),
    (signal.SIGINT, None, 130, "SIGINT"),
])  # fmt: skip
def test_what_ends_a_run_saves_it(first, then, code, name, sent, small_data, tmp_path, monkeypatch, capsys):
    """A second one while the checkpoint is written and a picture that fails change nothing."""
    sent(first)
    save = trainer.Trainer._save

    def save_and_send(self: trainer.Trainer) -> None:
        if then is not None:
            signal.raise_signal(then)
        save(self)

    def draw_and_send(*arguments: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise OSError("a picture")

    monkeypatch.setattr(trainer.Trainer, "_save", save_and_send)
    monkeypatch.setattr(trainer, "plot_loss", draw_and_send)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert train(small_data, tmp_path / "run") == code
    assert f"stopped by {name} at step 1; add --resume" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / "run").state["step"] == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("number", signals.TERMINATING)
def test_before_the_first_step_there_is_nothing_to_save(number, small_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Train, "_initial", lambda *_: signal.raise_signal(number))
    assert train(small_data, tmp_path / "run") == 75 and not (tmp_path / "run" / "config.json").exists()
    assert f"stopped by {number.name} before the first step; run it again with --resume" in capfd.readouterr().err
    # Raised where Python drops it, it is heeded by the loop.
    with signals.exit_if_terminated("again"):
        with contextlib.suppress(SystemExit):
            signal.raise_signal(number)
        with signals.collected() as caught:
            assert caught == [number]


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.exit_if_terminated("again"), signals.collected() as caught:
            signal.raise_signal(signal.SIGHUP)
            assert caught == [] and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_picture_is_the_same_whatever_matplotlib_is_told(tmp_path):
    """A backend that is not here, and a file of settings beside the user's work."""
    plot_loss(LINES, tmp_path / "here.png")
    settings = "backend: nonsense\ntext.usetex: True\naxes.facecolor: red\nno such line\nlines.linewidth: wide\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    program = (
        "import json, os\nfrom pathlib import Path\nfrom tools.plot.loss import plot_loss\n"
        "plot_loss(json.loads(os.environ['LINES_OF']), Path('there.png'))\n"
        "print(os.environ['MPLBACKEND'], 'MATPLOTLIBRC' in os.environ)"
    )
    backend = "module://no_such.backend"
    told = python(program, cwd=tmp_path, MPLBACKEND=backend, LINES_OF=json.dumps(LINES))
    assert (told.returncode, told.stdout, told.stderr) == (0, f"{backend} False\n", "")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_a_matplotlib_that_cannot_be_imported_ends_plot_in_one_line(refused, tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")

    def fail(name: str) -> None:
        assert os.environ["MPLBACKEND"] == "agg"
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setattr(figure, "import_module", fail)
    message = refused("plot", str(tmp_path))
    assert "matplotlib cannot be imported here (UnicodeDecodeError: " in message and "MPLBACKEND" not in os.environ


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'tpu'"), AssertionError()])
@pytest.mark.parametrize("variable", ["JAX_PLATFORMS", "JAX_PLATFORM_NAME", None])
def test_a_platform_that_jax_has_not_is_named(error, variable, refused, tmp_path, monkeypatch):
    """Whatever command starts JAX; for some platforms it raises an AssertionError without a word."""
    from tools.plot import command as plot

    jax = pytest.importorskip("jax")

    def fail(*_: object) -> None:
        raise error

    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, "quantum")
    monkeypatch.setattr(plot.Plot, "run", fail)
    with pytest.raises(type(error)):
        main(["plot", "run"])
    monkeypatch.setattr(jax, "devices", fail)
    message = refused("plot", "run")
    assert f"JAX {UNUSABLE} {str(error) or 'it has no such platform'}; " in message
    assert (f"{variable} is 'quantum': unset it" if variable else "set JAX_PLATFORMS=cpu") in message


def test_doctor_outlives_flags_that_xla_does_not_know(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setenv("XLA_FLAGS", "--no_such_flag=1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delitem(sys.modules, "jax")
    assert doctor.unknown_xla_flags() == "Unknown flag in XLA_FLAGS: --no_such_flag=1; mend XLA_FLAGS, or unset it"


NUMBA = """
import torch
from torch_impl.ops import decode, gated_scan, rowwise, scan
from torch_impl.ops.devices import HAS_NUMBA
found = [any(name.startswith("numba") for name in one.METHODS) for one in (decode, gated_scan, rowwise, scan)]
assert found == [HAS_NUMBA] * 4, found
states, last = scan.scan(torch.full((2, 70, 3), 0.5), torch.ones(2, 70, 3))
print(HAS_NUMBA, scan.choose_method((2, 70, 3), torch.device("cpu")), round(last.sum().item(), 4))
"""


@pytest.mark.parametrize("variables, methods, told", [
    ({"NUMBA_DISABLE_JIT": "1"}, "False chunked", "without kernels for a CPU, slower: NUMBA_DISABLE_JIT is set"),
    ({"NUMBA_THREADING_LAYER": "looms", "NUMBA_DEBUG_CACHE": "maybe"}, "True numba",
     "Numba: Environment variable 'NUMBA_DEBUG_CACHE' is defined but its associated value 'maybe' could not be parsed."
     "\nNUMBA_THREADING_LAYER looms is not taken"),
])  # fmt: skip
def test_numba_that_cannot_be_used_as_it_is_told_is_said_in_a_line(variables, methods, told):
    pytest.importorskip("numba")
    pytest.importorskip("torch")
    ended = python(NUMBA, **variables)
    assert ended.returncode == 0 and ended.stdout == f"{methods} 12.0\n", ended.stderr
    assert ended.stderr.startswith(told) and ended.stderr.count("\n") == 1 + told.count("\n"), ended.stderr


def test_numba_that_raises_on_import_is_as_if_it_were_not_there(monkeypatch):
    kernels = pytest.importorskip("torch_impl.kernels.numba", exc_type=ImportError)

    class Refusing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "numba":
                raise ValueError("Number of threads specified must be > 0.")

    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"must be > 0\.; look at the variables NUMBA_"):
        kernels._imported()


HELPS = (
    "import contextlib\nfrom tools.cli.commands import COMMANDS\nfrom tools.cli.main import main\n"
    "for name in COMMANDS:\n    with contextlib.suppress(SystemExit):\n        main([name, '--help'])\n"
)


def test_help_needs_no_docstrings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    exec(HELPS)
    whole = capsys.readouterr().out
    assert whole.count("Example: liquidnet ") == len(COMMANDS)
    ended = python(HELPS, "-OO")
    # Drawn in ASCII where the terminal knows no other.
    bare, expected = (" ".join(errors._BOX.sub(" ", text).split()) for text in (ended.stdout, whole))
    assert bare == expected and ended.stderr == ""


def test_the_proof_is_no_assert_statement():
    """`python -O` leaves them out: what a proof measures it has to raise itself; they may narrow a type."""
    for path in sorted((ROOT / "parity" / "proof").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                text = ast.unparse(node.test)
                assert "isinstance(" in text or "is not None" in text, f"{path.relative_to(ROOT)}: assert {text}"


@pytest.mark.parametrize("redirect", [">&- 2>&- <&-", "2> /dev/full", "2>&1 >/dev/null | true"])
def test_nothing_depends_on_who_reads_stderr(redirect, tmp_path):
    program = f"{sys.executable} -c 'from tools.cli.main import main; main()' prepare --stories 3 --out {tmp_path}/data"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"set -o pipefail; {program} {redirect}"
    ended = subprocess.run(["bash", "-c", line], env=environ, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0 and (tmp_path / "data" / "meta.json").is_file(), ended.stderr


def test_modules_of_the_working_directory_are_not_python_s_own_in_what_is_started(tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('not ours')\n")
    program = (
        "import subprocess, sys\nsys.path.remove('')\nsys.argv = ['liquidnet', '--version']\n"
        "from tools.cli.main import main\nmain()\n"
        "subprocess.run([sys.executable, '-c', 'import random'], check=True)"
    )
    ended = python(program, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_a_working_directory_that_was_deleted(refused, small_data, tmp_path, monkeypatch):
    pytest.importorskip("torch")

    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(backends.os, "getcwd", gone)
    message = refused("train", "torch", "--data", str(small_data), "--out", str(tmp_path / "run"))
    assert "torch needs a working directory, and this one was deleted; cd to another" in message


def test_an_editable_install_comes_after_a_project_s_own_folders():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["dev-mode-exact"] is True


@pytest.mark.long
def test_a_terminal_that_is_closed_ends_a_run_with_a_checkpoint(small_data, tmp_path):
    """It sends SIGHUP, and from then on refuses what is written to it."""
    out, backend = tmp_path / "run", backends.default()
    command = [sys.executable, "-m", f"{backend}_impl.train", "--data", str(small_data), "--out", str(out), *SMALL]
    terminal, of_child = pty.openpty()
    # Not pty.fork(): other tests have started threads in this process.
    child = subprocess.Popen(
        ["setsid", "--ctty", *command, "--steps", "1000000", "--eval-every", "1000000"],
        stdin=of_child, stdout=of_child, stderr=of_child, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(of_child)
    until, metrics = time.monotonic() + 200, out / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size > 2000):
        assert time.monotonic() < until and child.poll() is None
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    assert child.wait() == 75
    assert read_checkpoint(out).state["step"] == len(metrics.read_text().splitlines())


def test_an_error_of_the_system_without_words_is_told_as_it_is():
    assert errors.os_error_message(OSError(5, "")) == str(OSError(5, ""))
    assert errors.os_error_message(OSError("a line of our own")) == "a line of our own"
    assert errors.os_error_message(OSError(5, "Input/output error", "there")).startswith("there: Input/output error")
