"""The trainer under torchrun: legs of any size go on from each other, a signal or a death ends all processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torchrun is PyTorch's")

from parity.proof.problems.cases import perturbed_parameters
from parity.suite.runs.trajectory_drift import NOISE, SMALL, bounded_run
from spec.checkpoint.format import Checkpoint, list_checkpoints, read_checkpoint, write_checkpoint
from spec.checkpoint.sharded import is_shard
from spec.config import TrainingConfig
from spec.data import open_data

pytestmark = pytest.mark.long

STEPS = 32
TRAINING = TrainingConfig(steps=STEPS, batch_size=12, seq_len=16, peak_lr=1e-3, warmup_steps=3)
MODEL_FLAGS = ("--d-model", "16", "--d-ff", "24", "--n-layers", "2", "--seq-len", "16", "--batch-size", "12")
FLAGS = (*MODEL_FLAGS, "--steps", str(STEPS), "--lr", "1e-3", "--warmup-steps", "3", "--eval-windows", "40")
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def command(processes, *flags, backend="torch"):
    torchrun = (*TORCHRUN, str(processes)) if processes > 1 else ()
    return [sys.executable, *torchrun, "-m", f"{backend}_impl.train", *flags]


def run(processes, *flags, backend="torch", code=0):
    line = command(processes, *flags, backend=backend)
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == code, done.stderr[-4000:]
    return done.stderr


def metrics(out, key="loss"):
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if key in line]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint of weights of which none is zero."""
    place = tmp_path_factory.mktemp("start") / "checkpoint"
    write_checkpoint(place, Checkpoint(SMALL, perturbed_parameters(SMALL, 0, NOISE)))
    return place


def ready(tmp_path, small_data, start):
    """Flags of a run from those weights, whose tokenizer is that of the data."""
    out = tmp_path / "run"
    return out, ("--data", str(small_data), "--out", str(out), *FLAGS)


@pytest.mark.parametrize("stream", [False, True], ids=["windows", "stream"])
def test_four_processes_then_one_then_jax_then_two(stream, small_data, start, tmp_path, report):
    """One curve, held against the float64 reference of the whole run."""
    pytest.importorskip("jax", reason="jax is not installed")
    out, flags = ready(tmp_path, small_data, start)
    flags = (*flags, *(("--stream",) if stream else ()), "--eval-every", "16")
    run(4, *flags, "--init-from", str(start), "--parallel", "fsdp", "--checkpoint-format", "dcp", "--stop-at", "8")
    newest = list_checkpoints(out)[-1]
    assert sum(is_shard(path.name) for path in newest.iterdir()) == 4
    run(1, *flags, "--resume", "--stop-at", "16", "--checkpoint-format", "dcp", "--micro-batch-size", "5")
    run(1, *flags, "--resume", "--stop-at", "24", backend="jax")
    run(2, *flags, "--resume", "--context-parallel", "2")
    lines = metrics(out)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    where = [(line["backend"], line["processes"]) for line in lines]
    assert where == [("torch", 4)] * 8 + [("torch", 1)] * 8 + [("jax", 1)] * 8 + [("torch", 2)] * 8
    training = TrainingConfig(**{**vars(TRAINING), "stream": stream})
    truth, bound = bounded_run(open_data(small_data), STEPS, training)
    units = float((np.abs(np.array([line["loss"] for line in lines]) - truth) / bound).max())
    report(f"4 processes, 1, jax, 2{', stream' if stream else ''}: {units:.2f} of the bound over {STEPS} steps")
    assert 0.0 < units <= 1.0
    assert [line["step"] for line in metrics(out, "val_loss")] == [16, 32]
    final = read_checkpoint(out)
    assert final.state["samples_consumed"] == STEPS * 12 and (final.states is not None) == stream


def start_and_wait(command, out, line):
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True)
    path = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while not path.is_file() or path.read_text().count("\n") < line:
        assert process.poll() is None and time.monotonic() < until, process.communicate(timeout=30)[1][-4000:]
        time.sleep(0.01)
    return process


def workers(process):
    """The processes that torchrun started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_sigterm_to_torchrun_saves_in_all_processes(small_data, start, tmp_path):
    out, flags = ready(tmp_path, small_data, start)
    flags = (*flags, "--steps", "5000")
    process = start_and_wait(command(2, *flags, "--checkpoint-format", "dcp", "--parallel", "fsdp"), out, 5)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert "stopped by SIGTERM at step" in told
    saved = read_checkpoint(out).state["step"]
    assert saved >= 5 and len(metrics(out)) == saved
    assert not [path for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]
    run(1, *flags, "--resume", "--stop-at", str(saved + 1))


def test_sigterm_to_one_process_stops_all_of_them_with_75(small_data, start, tmp_path):
    out, flags = ready(tmp_path, small_data, start)
    process = start_and_wait(command(2, *flags, "--steps", "5000"), out, 5)
    os.kill(workers(process)[1], signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    # torchrun ends whoever is left once one has gone.
    assert "stopped by SIGTERM at step" in told and "exitcode  : 75" in told
    assert read_checkpoint(out).state["step"] == len(metrics(out))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
def test_a_lost_process_ends_the_run_with_a_message(how, small_data, start, tmp_path):
    out, flags = ready(tmp_path, small_data, start)
    flags = (*flags, "--steps", "5000", "--checkpoint-every", "4", "--rank-timeout", "5")
    process = start_and_wait(command(2, *flags), out, 9)
    lost = workers(process)[1]
    os.kill(lost, how)
    if how == signal.SIGSTOP:
        # torchrun waits half a minute for whom it asked to end; what matters is what the other process says.
        told = process.stderr.readline()
        while told and "lost another one" not in told:
            told = process.stderr.readline()
        os.kill(lost, signal.SIGKILL)
        process.communicate(timeout=60)
    else:
        _, told = process.communicate(timeout=60)
    assert "process 0 of 2 lost another one" in told and "the last good checkpoint is" in told
    assert process.returncode != 0 and read_checkpoint(out).state["step"] >= 8
    run(1, *flags, "--resume", "--stop-at", str(read_checkpoint(out).state["step"] + 1))


def test_a_mistake_is_told_once_and_ends_all_processes(small_data, start, tmp_path):
    out, flags = ready(tmp_path, small_data, start)
    told = run(2, *flags, "--batch-size", "1", code=1)
    lines = [line for line in told.splitlines() if line.startswith("liquidnet: error")]
    assert len(lines) == 1 and "batch_size 1 leaves some of 2 processes without work" in lines[0], told
    assert "exitcode  : 2" in told and not (out / "config.json").exists()


LEAVING = """
import atexit
import sys
atexit.register(lambda: print("the interpreter is taken down"))
from tools.cli.main import main
from torch_impl.training import distributed
distributed.initialize()
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("argument", "code"), [("train --help", 0), ("chant", 2)])
def test_a_process_of_several_ends_before_its_interpreter_does(argument, code, tmp_path):
    """A thread of gloo's that wanted the GIL meanwhile aborted one exit of thirty, with -6 for an exit code."""
    program = tmp_path / "leaving.py"
    program.write_text(LEAVING)
    line = [sys.executable, *TORCHRUN, "2", str(program), *argument.split()]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    told = done.stdout + done.stderr
    assert "taken down" not in told and ("usage: liquidnet" if code == 0 else "liquidnet: error") in told, told
    assert f"exitcode  : {code}" in told if code else done.returncode == 0


def test_a_live_run_is_not_joined_by_another(small_data, start, tmp_path):
    out, flags = ready(tmp_path, small_data, start)
    process = start_and_wait(command(2, *flags, "--steps", "5000"), out, 2)
    told = run(2, *flags, "--steps", "5000", "--resume", code=1)
    assert told.count("is in use by another live run") == 1
    for pid in (*workers(process), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    # A dead run's lock vanishes with it.
    run(1, *flags, "--steps", "5000", "--resume", "--stop-at", "3")


def test_a_loss_that_is_not_finite_stops_every_process_and_keeps_the_good_checkpoint(small_data, start, tmp_path):
    out, flags = ready(tmp_path, small_data, start)
    flags = tuple("900" if flag == "1e-3" else flag for flag in flags)
    told = run(
        2, *flags, "--checkpoint-every", "1", "--grad-clip", "0", "--warmup-steps", "0", "--steps", "400", code=1
    )
    lines = [line for line in told.splitlines() if line.startswith("liquidnet: error")]
    assert len(lines) == 1 and "samples" in lines[0] and "the last good checkpoint is" in lines[0]
    assert "exitcode  : 1" in told
    good = read_checkpoint(out)
    assert good.state["step"] == len(metrics(out))
