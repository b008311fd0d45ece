"""The trainer of JAX in two processes, as on two hosts: one run, one checkpoint, signals, deaths and mistakes."""

from __future__ import annotations

import json
import resource
import signal
import time

import numpy as np
import pytest

pytest.importorskip("jax", reason="meshes are JAX's")

from parity.proof.problems.cases import perturbed_parameters
from parity.suite.runs.launch import finish, start
from parity.suite.runs.trajectory_drift import NOISE, SMALL, bounded_run
from spec.checkpoint.format import Checkpoint, list_checkpoints, read_checkpoint, write_checkpoint
from spec.config import TrainingConfig
from spec.data import open_data
from tools.convert import read

pytestmark = pytest.mark.long

STEPS = 24
TRAINING = TrainingConfig(steps=STEPS, batch_size=12, seq_len=16, peak_lr=1e-3, warmup_steps=3)
MODEL_FLAGS = ("--d-model", "16", "--d-ff", "24", "--n-layers", "2", "--seq-len", "16", "--batch-size", "12")
FLAGS = (*MODEL_FLAGS, "--steps", str(STEPS), "--lr", "1e-3", "--warmup-steps", "3", "--eval-windows", "40")


def train(devices, processes, *flags):
    return start(devices, processes, "-m", "jax_impl.train", *flags)


def metrics(out, key="loss"):
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if key in line]


@pytest.fixture
def flags(tmp_path, small_data):
    """Of a run from weights of which none is zero."""
    weights = tmp_path / "weights"
    write_checkpoint(weights, Checkpoint(SMALL, perturbed_parameters(SMALL, 0, NOISE)))
    return "--data", str(small_data), "--out", str(tmp_path / "run"), *FLAGS, "--init-from", str(weights)


def wait_for(processes, out, lines):
    until, path = time.monotonic() + 120, out / "metrics.jsonl"
    while not path.is_file() or path.read_text().count("\n") < lines:
        assert all(one.poll() is None for one in processes) and time.monotonic() < until, finish(processes)
        time.sleep(0.01)


def test_a_run_of_two_hosts_is_killed_and_resumed_by_one(flags, small_data, tmp_path, report):
    """The same tokens, one curve against the float64 reference, checkpoints of two read by one on another mesh."""
    out, rest = tmp_path / "run", (*flags, "--checkpoint-every", "4", "--checkpoint-format", "orbax")
    both = train(8, 2, *rest, "--mesh", "data=2,fsdp=4")
    wait_for(both, out, 10)
    for one in both:
        one.send_signal(signal.SIGKILL)
    finish(both, -signal.SIGKILL)
    saved = read(out).state["step"]
    assert saved >= 4 and saved % 4 == 0
    finish(train(4, 1, *rest, "--resume", "--mesh", "fsdp=2,sequence=2"))
    lines = metrics(out)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    assert [line["processes"] for line in lines] == [2] * saved + [1] * (STEPS - saved)
    truth, bound = bounded_run(open_data(small_data), STEPS, TRAINING)
    units = float((np.abs(np.array([line["loss"] for line in lines]) - truth) / bound).max())
    report(f"2 hosts, killed after step {saved} was saved, then 1: {units:.2f} of the bound over {STEPS} steps")
    assert 0.0 < units <= 1.0
    final = read(out)
    assert final.state["step"] == STEPS and final.state["samples_consumed"] == STEPS * 12


@pytest.mark.parametrize("form", ["neutral", "orbax"])
def test_two_hosts_write_one_checkpoint_and_one_log(form, flags, tmp_path):
    """With a stream, whose states belong to rows of both."""
    out = tmp_path / "run"
    logs = finish(train(4, 2, *flags, "--stream", "--steps", "6", "--checkpoint-format", form, "--parallel", "fsdp"))
    assert "reached step 6" in logs[0] and "reached" not in logs[1]
    assert [line["step"] for line in metrics(out)] == [*range(1, 7)] and len(metrics(out, "val_loss")) == 1
    (one,) = [path for path in list_checkpoints(out) if path.name == "step_00000006"]
    checkpoint = read(one)
    assert checkpoint.states is not None and checkpoint.states.shape == (2, 12, 16)
    assert np.abs(checkpoint.states).min(axis=(0, 2)).shape == (12,) and checkpoint.states.any(axis=(0, 2)).all()


def test_sigterm_to_one_host_stops_both_with_75(flags, tmp_path):
    out = tmp_path / "run"
    both = train(2, 2, *flags, "--steps", "50000")
    wait_for(both, out, 5)
    both[1].send_signal(signal.SIGTERM)
    logs = finish(both, 75)
    assert "stopped by SIGTERM at step" in logs[0]
    saved = read_checkpoint(out).state["step"]
    assert saved >= 5 and len(metrics(out)) == saved
    finish(train(1, 1, *flags, "--steps", "50000", "--resume", "--stop-at", str(saved + 1)))


def test_a_lost_host_ends_the_other_with_a_message(flags, tmp_path):
    out = tmp_path / "run"
    both = train(2, 2, *flags, "--steps", "50000", "--checkpoint-every", "4", "--rank-timeout", "10")
    wait_for(both, out, 9)
    both[1].send_signal(signal.SIGKILL)
    logs = both[0].communicate(timeout=60)[1]
    assert "process 0 of 2 lost another one" in logs and "the last good checkpoint is" in logs, logs[-3000:]
    both[1].communicate(timeout=10)
    assert [one.returncode for one in both] == [1, -signal.SIGKILL]
    assert read_checkpoint(out).state["step"] >= 8


def test_a_mistake_is_reported_once_and_ends_both(flags, tmp_path):
    logs = finish(train(2, 2, *flags, "--batch-size", "1"), 2)
    assert "batch_size 1 leaves some of 2 processes without work" in logs[0] and "error" not in logs[1]
    assert not (tmp_path / "run" / "config.json").exists()
    logs = finish(train(4, 1, *flags, "--mesh", "data=3"), 2)
    assert "--mesh data=3 must read as" in logs[0] and "4 devices" in logs[0]


def test_a_mistake_that_speaks_of_gloo_is_no_lost_host(flags, tmp_path):
    out = tmp_path / "gloo-heartbeat"
    out.mkdir()
    (out / "metrics.jsonl").write_text("")
    logs = finish(train(2, 2, *("gloo-heartbeat".join(flag.rsplit("run", 1)) for flag in flags)), 2)
    assert "already holds a run" in logs[0] and "lost" not in logs[0]


def test_a_host_that_fails_alone_does_not_wait_for_the_others(flags, tmp_path):
    """The log of the first one cannot grow any more; the other one waits for it in a collective."""
    both = train(2, 2, *flags, "--steps", "1000000", "--rank-timeout", "10")
    wait_for(both, tmp_path / "run", 2)
    resource.prlimit(both[0].pid, resource.RLIMIT_FSIZE, (1, 1))
    logs = [one.communicate(timeout=60)[1] for one in both]
    assert both[0].returncode == 2 and "File too large" in logs[0], logs[0][-3000:]
    assert both[1].returncode != 0
