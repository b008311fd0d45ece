"""Ctrl-C in real processes, at any moment: exit code 130, one line that says how to go on, nothing half-written."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity.suite.support.fixtures import HEED_SIGINT
from spec.checkpoint.format import list_checkpoints
from tools.cli import backends, signals
from tools.cli.commands import COMMANDS
from tools.cli.main import main
from tools.cli.signals import DEBOUNCE_SECONDS

PLAIN = "from tools.cli.main import main\nimport sys\nprint('started', file=sys.stderr, flush=True)\nmain()"
# Where every file is waited for on the disk, a writer is met in the middle of its work.
SLOW_DISK = "import time, spec.checkpoint.files\nspec.checkpoint.files.fsync = lambda path: time.sleep(60)\n" + PLAIN
# As a compiler does: no Python code runs in this thread until it has finished. A mutex that is taken twice never has.
UNRESPONSIVE = (
    "import ctypes, tools.doctor\nlock, take = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock\n"
    "tools.doctor.Doctor.run = lambda self: (take(lock), print('busy', flush=True), take(lock))\n" + PLAIN
)
SMALL = ("--d-model", "16", "--d-ff", "24", "--n-layers", "1", "--batch-size", "2", "--seq-len", "16")
SECONDS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """So much text that nothing comes to its end by itself."""
    out = tmp_path_factory.mktemp("interrupts") / "data"
    main(["prepare", "--stories", "4000", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupts") / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", backends.default(), "--data", str(data), "--out", str(out), *SMALL, "--steps", "2",
              "--eval-windows", "2"])  # fmt: skip
    assert stop.value.code == 0
    return out


@pytest.fixture
def command_lines(data, run, tmp_path):
    """Of each command, a line that takes long."""
    out, checkpoint = tmp_path / "out", ("--checkpoint", run)
    return {
        "prepare": ("--stories", 10**6, "--out", out),
        "train": (backends.default(), "--data", data, "--out", out, *SMALL, "--steps", 10**6, "--eval-windows", 2),
        "evaluate": (*checkpoint, "--data", data, "--batch-size", 1, "--seq-len", 8),
        "generate": (*checkpoint, "--max-tokens", 10**6),
        "chat": checkpoint,
        "ui": checkpoint,
        "serve": checkpoint,
        "plot": (run, "--out", tmp_path / "loss.png"),
        "convert": (run, out),
        "compare": (run, run, "--max-tokens", 4096),
        "parity": ("--draws", 10**6, "--report", out),
        "bench": ("--rounds", 10**6),
        "plan": (),
        "doctor": (),
    }


class Live:
    """A command in a process group of its own, as a terminal starts it."""

    def __init__(self, directory: Path, arguments: tuple[object, ...], program: str = PLAIN):
        self.told, self.written = directory / "stderr", directory / "stdout"
        with self.told.open("w") as err, self.written.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HEED_SIGINT + program, *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, sign: str) -> None:
        """Until it has said so, on stdout or stderr."""
        until = time.monotonic() + SECONDS
        while sign not in self.told.read_text() + self.written.read_text():
            assert time.monotonic() < until and self.process.poll() is None, self.told.read_text()
            time.sleep(0.02)

    def wait_for_file(self, directory: Path, pattern: str) -> None:
        until = time.monotonic() + SECONDS
        while not list(directory.rglob(pattern)):
            assert time.monotonic() < until and self.process.poll() is None, self.told.read_text()
            time.sleep(0.02)

    def press(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Its exit code and stderr; whatever it left running is ended."""
        try:
            code = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return code, self.told.read_text()


def files(directory: Path) -> list[Path]:
    """What a command has written."""
    return [path for path in directory.rglob("*") if path.is_file() and path.name not in ("stdout", "stderr")]


def assert_clean(live: Live, directory: Path, about: object = "") -> str:
    """What every interrupted command leaves; returns its last line."""
    code, told = live.end()
    assert code == 130 and "Traceback" not in told and "Exception ignored" not in told, (about, code, told)
    lines = [line for line in told.splitlines() if line.startswith("liquidnet: ")]
    assert lines and any(word in lines[-1] for word in ("again", "--resume")), (about, told)
    assert not list(directory.rglob(".unfinished-*")), about
    return lines[-1]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("chat", "ui")])
def test_a_command_that_has_just_been_started(name, command_lines, tmp_path):
    live = Live(tmp_path, (name, *command_lines[name]))
    live.wait_for("started")
    # Three have finished before long.
    seconds = random.uniform(0.0, 0.05 if name in ("convert", "plot", "plan") else 0.2)
    time.sleep(seconds)
    live.press()
    assert assert_clean(live, tmp_path, f"after {seconds:.3f} s").startswith("liquidnet: interrupted; ")
    assert files(tmp_path) == [] or (tmp_path / "out" / "SHA256SUMS").is_file()


@pytest.mark.parametrize(
    "name, sign", [("prepare", "reading"), ("generate", "Once upon a time"), ("parity", "scan"), ("train", "step ")]
)
def test_a_command_at_work(name, sign, command_lines, tmp_path):
    live = Live(tmp_path, (name, *command_lines[name]))
    live.wait_for(sign)
    live.press()
    last = assert_clean(live, tmp_path)
    if name == "train":
        assert "stopped by SIGINT at step" in last and list_checkpoints(tmp_path / "out")
    elif name == "generate":
        assert live.written.read_text().endswith("\n")
    else:
        assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["evaluate", "bench", "doctor"])
@pytest.mark.long
def test_a_silent_command_at_work(name, command_lines, tmp_path):
    for _ in range(3):
        live = Live(tmp_path, (name, *command_lines[name]))
        seconds = random.uniform(1.0, 6.0)
        time.sleep(seconds)
        live.press()
        assert_clean(live, tmp_path, f"after {seconds:.3f} s")


@pytest.mark.parametrize("number", signals.TERMINATING)
def test_what_ends_a_command_lets_it_clean_up(number, tmp_path, monkeypatch, capsys):
    """The code is the one that a shell gives to a process which the signal has killed."""

    def unheeded(*_: object) -> None:
        """In place of what would end the tests."""

    monkeypatch.setattr("tools.data.prepare._write_meta", lambda *_: signal.raise_signal(number))
    before = signal.signal(number, unheeded)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["prepare", "--stories", "9", "--out", str(tmp_path / "a" / "out")])
        assert signal.getsignal(number) is unheeded
    finally:
        signal.signal(number, before)
    assert stop.value.code == 128 + number and not [*tmp_path.iterdir()]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"liquidnet: stopped by {number.name}; nothing half-written is left; run it again"


def test_what_ends_a_command_is_never_dropped(monkeypatch):
    class Late:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGHUP)

    def run() -> None:
        with signals.handlers(lambda: "", terminating=True):
            Late()
            time.sleep(10)

    began = time.monotonic()
    with pytest.raises(signals.Terminated, match="129"):
        run()
    assert time.monotonic() - began < 5
    # Nor is a call waited for that lets no Python code run.
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(signals, "UNRESPONSIVE_SECONDS", 0.1)
    signals._end_unless_unwinding(signal.SIGTERM)
    monkeypatch.setattr(signals, "_ended", False)
    signals._end_unless_unwinding(signal.SIGTERM)
    assert ended == [143]


@pytest.mark.parametrize("name", ["prepare", "convert"])
def test_a_command_that_writes(name, command_lines, tmp_path):
    lines = {**command_lines, "prepare": ("--stories", 10, "--out", tmp_path / "out")}
    live = Live(tmp_path, (name, *lines[name]), SLOW_DISK)
    live.wait_for_file(tmp_path, ".unfinished-*")
    time.sleep(0.5)
    live.press()
    assert "nothing half-written is left" in assert_clean(live, tmp_path) and not (tmp_path / "out").exists()


def test_a_second_one_while_a_checkpoint_is_written(run, data, tmp_path):
    program = SLOW_DISK.replace("lambda path:", "lambda path: 'checkpoints' in str(path) and")
    flags = (*SMALL, "--steps", 10**6, "--eval-every", 10**6, "--checkpoint-every", 20)
    live = Live(tmp_path, ("train", backends.default(), "--data", data, "--out", tmp_path / "out", *flags), program)
    live.wait_for_file(tmp_path, "checkpoints/.unfinished-*")
    live.press()
    live.wait_for("stopping after this step")
    time.sleep(2 * DEBOUNCE_SECONDS)
    live.press()
    last = assert_clean(live, tmp_path)
    assert last == "liquidnet: interrupted; there is no checkpoint yet; run it again with --resume"


def test_a_checkpoint_that_cannot_be_written_is_told(run, data, tmp_path):
    """It was asked for by Ctrl-C, and yet is no interruption but an error."""
    program = (
        "import errno, tools.training.run_dir\n"
        "def full(path, checkpoint):\n    raise OSError(errno.ENOSPC, 'full', str(path))\n"
    )
    flags = (*SMALL, "--steps", 10**6, "--eval-every", 10**6, "--checkpoint-every", 10**6)
    command = ("train", backends.default(), "--data", data, "--out", tmp_path / "out", *flags)
    live = Live(tmp_path, command, program + "tools.training.run_dir.write_checkpoint = full\n" + PLAIN)
    live.wait_for_file(tmp_path, "metrics.jsonl")
    time.sleep(1)
    live.press()
    code, told = live.end()
    assert code == 2 and "Traceback" not in told and told.splitlines()[-1].startswith("liquidnet: error: "), told


def test_a_second_one_names_the_last_good_checkpoint(run, data, tmp_path):
    program = "import time, tools.training.trainer as t\nt.Trainer._evaluate = lambda self: time.sleep(60)\n" + PLAIN
    flags = (*SMALL, "--steps", 10**6, "--eval-every", 20, "--checkpoint-every", 10)
    live = Live(tmp_path, ("train", backends.default(), "--data", data, "--out", tmp_path / "out", *flags), program)
    live.wait_for_file(tmp_path, "step_00000010")
    time.sleep(1)
    live.press()
    live.wait_for("stopping after this step")
    time.sleep(2 * DEBOUNCE_SECONDS)
    live.press()
    last = assert_clean(live, tmp_path)
    assert f"the last good checkpoint is {list_checkpoints(tmp_path / 'out')[-1]}; run it again with --resume" in last


def test_a_compiler_that_hears_nothing(tmp_path):
    live = Live(tmp_path, ("doctor",), UNRESPONSIVE)
    live.wait_for("busy")
    live.press()
    live.wait_for("call under way returns; Ctrl-C again stops at once")
    live.press()
    began = time.monotonic()
    assert "nothing was written" in assert_clean(live, tmp_path) and time.monotonic() - began < 10


def test_a_key_that_is_held_down(command_lines, tmp_path):
    live = Live(tmp_path, ("convert", *command_lines["convert"]), SLOW_DISK)
    live.wait_for_file(tmp_path, ".unfinished-*")
    for _ in range(5):
        if live.process.poll() is None:
            live.press()
        time.sleep(0.02)
    assert_clean(live, tmp_path)


@pytest.mark.parametrize("backend", backends.BACKENDS)
@pytest.mark.long
def test_a_start_of_training_at_any_moment(backend, command_lines, tmp_path):
    if backend not in backends.installed():
        pytest.skip(f"{backend} is not installed")
    for _ in range(6):
        out, seconds = tmp_path / f"run{time.monotonic_ns()}", random.uniform(0.5, 12.0)
        line = [backend if word == backends.default() else word for word in command_lines["train"]]
        live = Live(tmp_path, ("train", *(out if word == tmp_path / "out" else word for word in line)))
        time.sleep(seconds)
        live.press()
        assert "--resume" in assert_clean(live, tmp_path, f"after {seconds:.3f} s")


def test_one_that_an_import_would_drop_interrupts_after_it(monkeypatch):
    """As numpy.random does, whose C code takes any exception for a module that is absent."""
    # Both stay as they were: for the tests that follow nobody has pressed anything.
    monkeypatch.setattr(signals, "_last", -math.inf)
    monkeypatch.setattr(signals, "_raised", -math.inf)
    dropped = []

    def run() -> None:
        with signals.handlers(lambda: "run it again", terminating=False):
            with signals.interrupted_at_the_end():
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    dropped.append(True)
            raise AssertionError("it was forgotten")

    # A shell has what it starts in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not dropped and signal.getsignal(signal.SIGINT) is not signals.interrupt
