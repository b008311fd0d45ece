"""A run that died at a rename, was stopped or taken over: nothing is lost or half-written, the bits are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from spec.checkpoint.format import list_checkpoints, read_checkpoint
from tools.training.trainer import EXIT_SIGTERM

STEPS = 24
FLAGS = (
    "--preset",
    "nano",
    "--steps",
    str(STEPS),
    "--checkpoint-every",
    "4",
    "--eval-every",
    "12",
    "--eval-windows",
    "8",
)

pytestmark = pytest.mark.long


def command(backend, data, out, *more):
    return [sys.executable, "-m", f"{backend}_impl.train", "--data", str(data), "--out", str(out), *FLAGS, *more]


def lines(run):
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def stop_at_line(process, run, line, number):
    """Send the signal once metrics.jsonl has `line` lines."""
    while lines(run) < line and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before the signal"
    os.kill(process.pid, number)
    return process.wait(timeout=120)


def losses(run):
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in read if "loss" in line]


@pytest.fixture(scope="module", params=["torch", "jax"])
def whole(request, small_data, tmp_path_factory):
    """An uninterrupted run."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    out = tmp_path_factory.mktemp("whole") / request.param
    subprocess.run(command(request.param, small_data, out), check=True, capture_output=True)
    return request.param, out


def final_files(run):
    checkpoint = list_checkpoints(run)[-1]
    return {name: (checkpoint / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


def test_weights_taken_over_survive_a_kill_before_the_first_checkpoint(whole, small_data, tmp_path):
    backend, reference = whole
    more = ("--init-from", str(reference), "--checkpoint-every", "100")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    subprocess.run(command(backend, small_data, alone, *more, "--stop-at", "4"), check=True, capture_output=True)
    process = subprocess.Popen(command(backend, small_data, killed, *more), stderr=subprocess.DEVNULL)
    assert stop_at_line(process, killed, 2, signal.SIGKILL) == -signal.SIGKILL
    resume = command(backend, small_data, killed, "--checkpoint-every", "100", "--resume", "--stop-at", "4")
    subprocess.run(resume, check=True, capture_output=True)
    assert losses(killed) == losses(alone)


CRASH = """
import os, shutil, sys
calls = 0
def dying(function):
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[1]):
            os._exit(9)
        return function(*arguments, **named)
    return call
os.rename, os.replace, shutil.rmtree = map(dying, (os.rename, os.replace, shutil.rmtree))
from tools.cli.main import main
main(sys.argv[2:])
"""


def test_death_at_every_rename_loses_nothing(small_data, tmp_path, report):
    pytest.importorskip("torch", reason="the shell is the same; one backend will do")
    model = ("train", "torch", "--data", str(small_data), "--d-model", "16", "--d-ff", "24", "--n-layers", "1")
    habits = ("--checkpoint-every", "2", "--keep", "1", "--eval-every", "3", "--eval-windows", "2")
    start, run, whole = tmp_path / "start", tmp_path / "run", tmp_path / "whole"
    program = [sys.executable, "-c", CRASH]
    subprocess.run([*program, "0", *model, "--steps", "1", "--out", str(start)], check=True, capture_output=True)
    flags, weights = (*model, *habits, "--steps", "6"), ("--init-from", str(start))
    subprocess.run([*program, "0", *flags, *weights, "--out", str(whole)], check=True, capture_output=True)
    for call in range(1, 40):
        # Once the run has begun, it knows by itself where its weights came from.
        more = () if (run / "config.json").is_file() else weights
        resume = [*program, str(call), *flags, *more, "--out", str(run), "--resume"]
        code = subprocess.run(resume, capture_output=True).returncode
        if code == 0:
            break
        assert code == 9
    report(f"died at {call - 1} different renames and deletions, each time resumed")
    assert call > 5 and final_files(run) == final_files(whole) and losses(run) == losses(whole)


def test_sigterm_saves_and_exits_75(whole, small_data, tmp_path):
    backend, reference = whole
    out = tmp_path / "run"
    process = subprocess.Popen(command(backend, small_data, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert stop_at_line(process, out, 5, signal.SIGTERM) == EXIT_SIGTERM
    saved = read_checkpoint(out).state["step"]
    assert saved >= 5 and len(losses(out)) == saved
    subprocess.run(command(backend, small_data, out, "--resume"), check=True, capture_output=True)
    assert final_files(out) == final_files(reference)
