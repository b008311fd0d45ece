"""--tensorboard: the event files hold what metrics.jsonl holds, leg after leg, and say where a leg went on from."""

from __future__ import annotations

import re
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.cli import backends
from tools.cli.main import main
from tools.training import tensorboard
from tools.training.run_dir import RunDir
from tools.training.tensorboard import SCALARS

SMALL = ("--d-model", "16", "--d-ff", "24", "--n-layers", "1", "--eval-windows", "2", "--batch-size", "2")
EVERY = ("--eval-every", "2", "--checkpoint-every", "2")


def events(directory: Path) -> list:
    """Every event in the order of TensorBoard: by name of file. A record is its length, a checksum, itself, another."""
    from tensorboardX.proto import event_pb2

    event: Any = vars(event_pb2)["Event"]
    found = []
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def shown(directory: Path) -> dict[str, dict[int, Any]]:
    """What TensorBoard shows, by tag and step: a session that starts at a step forgets what was there and after."""
    tags: dict[str, dict[int, Any]] = {}
    for event in events(directory):
        if event.HasField("session_log"):
            tags = {tag: {at: x for at, x in points.items() if at < event.step} for tag, points in tags.items()}
        for value in event.summary.value:
            text = value.tensor.string_val
            points = tags.setdefault(value.tag, {})
            assert event.step not in points, "TensorBoard would draw both"
            points[event.step] = text[0].decode() if text else value.simple_value
    return tags


def train(backend: str, data: Path, out: Path, *more: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", backend, "--data", str(data), "--out", str(out), "--tensorboard", *more])
    assert stop.value.code == 0


def require_the_same(run: Path) -> None:
    tags, lines = shown(run / "tensorboard"), RunDir(run).metrics()
    for name in SCALARS:
        assert tags[name] == {line["step"]: np.float32(line[name]) for line in lines if name in line}, name
    samples = {line["step"]: line["sample"] for line in lines if "sample" in line}
    assert {
        step: re.sub("^    ", "", text, flags=re.MULTILINE) for step, text in tags["sample/text_summary"].items()
    } == {step: "".join(f"{row}\n" for row in sample.splitlines()) for step, sample in samples.items()}
    assert set(tags) == {*SCALARS, "sample/text_summary"}


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_the_events_are_the_metrics_over_all_legs(backend, small_data, tmp_path):
    pytest.importorskip("tensorboardX", reason="writes event files")
    pytest.importorskip(backend, reason=f"trains in {backend}")
    run = tmp_path / "run"
    train(backend, small_data, run, *SMALL, *EVERY, "--steps", "6", "--stop-at", "5")
    require_the_same(run)
    assert len(RunDir(run).metrics()) == 7
    train(backend, small_data, run, "--resume")
    require_the_same(run)
    assert [len(shown(run / "tensorboard")[name]) for name in ("loss", "val_loss")] == [6, 3]


def test_a_leg_that_was_killed_is_cut_back_to_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboardX", reason="writes event files")
    run = RunDir(tmp_path, tensorboard=True)
    for first, last in ((0, 7), (4, 6)):  # the checkpoint was of step 4
        run.cut_metrics(first)
        with run.metrics_writer(first) as write:
            for step in range(first + 1, last + 1):
                write({"step": step, "loss": 10.0 * first + step})
    losses = shown(tmp_path / "tensorboard")["loss"]
    assert losses == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 45.0, 6: 46.0}
    assert [line["loss"] for line in run.metrics()] == list(losses.values())


def test_events_are_there_while_training_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX", reason="writes event files")
    monkeypatch.setattr(tensorboard, "FLUSH_SECONDS", 1)
    with RunDir(tmp_path, tensorboard=True).metrics_writer(0) as write:
        write({"step": 1, "loss": 1.0})
        deadline = time.monotonic() + 20
        while not shown(tmp_path / "tensorboard"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert shown(tmp_path / "tensorboard") == {"loss": {1: 1.0}}


def test_without_the_flag_there_are_none(tmp_path):
    with RunDir(tmp_path).metrics_writer(0) as write:
        write({"step": 1, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_installation_is_told_before_anything_is_done(tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    told = refused("train", "torch", "--data", "data", "--out", str(tmp_path / "run"), "--tensorboard")
    assert "pip install 'liquidnet-dual[tensorboard]'" in told and not (tmp_path / "run").exists()
