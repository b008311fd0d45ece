"""A run killed at random instants comes to the same bits as one that was not; a difference or a failure is reported."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from parity.suite.robustness import corruption
from parity.suite.runs.crash_resume import (
    PLACES,
    Attempt,
    Kills,
    Table,
    differences,
    kill_runs,
    main,
    steps_of,
    summary,
)
from parity.suite.runs.trajectory_drift import OTHERS
from spec.checkpoint.format import write_checkpoint
from spec.mixers import families


@pytest.mark.long
@pytest.mark.parametrize(
    "backend, ranks, kills, preset, form",
    [
        ("torch", 1, 4, "nano", "neutral"),
        ("torch", 2, 2, "nano", "neutral"),
        ("torch", 2, 2, "nano", "dcp"),
        ("jax", 1, 4, "nano", "neutral"),
        ("jax", 1, 2, "nano", "orbax"),
        *(("torch", 1, 2, next(iter(families()[name].presets)), "neutral") for name in OTHERS),
    ],
)
def test_a_run_killed_again_and_again_comes_to_the_same_bits(
    backend, ranks, kills, preset, form, small_data, tmp_path, report
):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    path, parallel = tmp_path / "kills.json", "fsdp" if form == "dcp" else "ddp"
    flags = {"backend": backend, "ranks": ranks, "checkpoint_format": form, "parallel": parallel}
    assert main(Kills(kills=kills, preset=preset, data=small_data, json=path, **flags)) == 0
    table = json.loads(path.read_text())
    assert table["identical"] and not table["differences"] and table.items() >= flags.items()
    assert set(table["kills"]) == {*PLACES} and sum(table["kills"].values()) == kills
    assert table["restarts"] == kills and table["runs"] >= 1 and table["steps_done_again"] >= 0
    assert table["steps"] == table["runs"] * steps_of(kills)
    places, again = ", ".join(f"{count} {place}" for place, count in table["kills"].items()), table["steps_done_again"]
    report(
        f"{backend}, {preset}, {form}, {ranks} process(es): killed {places}; {again} steps done again, the same bits"
    )


def test_a_failed_start_is_reported(tmp_path, capsys):
    assert main(Kills(kills=1, data=tmp_path)) == 1
    message = capsys.readouterr().err
    assert "ended with 2" in message and "holds no prepared data" in message


@pytest.mark.parametrize("wrong", [{"kills": 0}, {"ranks": 0}, {"ranks": 2, "backend": "jax"}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="JAX trains in one process"):
        kill_runs(Kills(**wrong))


def a_run(path, checkpoint, *losses, sharded=False):
    path.mkdir()
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_checkpoint(path / "checkpoints" / f"step_{len(losses):08d}", checkpoint, sharded)
    return path


def test_a_difference_is_reported(tmp_path):
    whole = corruption.sample()
    bits = {**whole.parameters, corruption.BIAS: np.nextafter(whole.parameters[corruption.BIAS], np.float32(9))}
    first = a_run(tmp_path / "first", whole, 2.0, 1.5)
    assert differences(first, a_run(tmp_path / "same", whole, 2.0, 1.5)) == []
    assert differences(first, a_run(tmp_path / "bits", replace(whole, parameters=bits), 2.0, 1.5)) == [
        "model.safetensors has other bits"
    ]
    without = replace(whole, moments={}, states=None)
    assert differences(first, a_run(tmp_path / "files", without, 2.0, 1.5)) == [
        "optimizer.safetensors has other bits",
        "states.safetensors has other bits",
    ]
    assert differences(first, a_run(tmp_path / "loss", whole, 2.0, 1.25)) == ["the losses differ from step 2 on"]
    shorter = differences(first, a_run(tmp_path / "shorter", whole, 2.0))
    assert shorter == ["another last checkpoint, step_00000001", "the losses differ from step 2 on"]
    in_parts = a_run(tmp_path / "parts", whole, 2.0, 1.5, sharded=True)
    assert differences(in_parts, a_run(tmp_path / "same-parts", whole, 2.0, 1.5, sharded=True)) == []
    other = a_run(tmp_path / "other-parts", replace(whole, parameters=bits), 2.0, 1.5, sharded=True)
    assert differences(in_parts, other) == [f"parameters.{corruption.BIAS} has other bits"]
    assert "a checkpoint of another format, dcp" in differences(first, in_parts)
    assert "NOT the same: run 0: x" in summary(Table(identical=False, differences=["run 0: x"]))


WORKERS = """
import subprocess, sys, time
again = [sys.executable, "-c", "import time; open(%r, 'a').write('x'); time.sleep(60)"]
for _ in range(2):
    subprocess.Popen(again, start_new_session=True)
time.sleep(60)
"""


def test_a_kill_reaches_workers_in_sessions_of_their_own(tmp_path):
    ready = tmp_path / "ready"
    attempt = Attempt([sys.executable, "-c", WORKERS % str(ready)], tmp_path / "run")
    assert attempt.wait_until(lambda: ready.is_file() and ready.stat().st_size == 2)
    # `kill` returns once none of them is left.
    attempt.kill()
    assert attempt.process.returncode == -9
