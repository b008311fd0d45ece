"""A run's directory: written only while it is the run's own, nothing of others taken away, no line of metrics lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from parity.suite.robustness import corruption
from spec.checkpoint.files import TEMPORARY_PREFIX
from spec.checkpoint.format import Checkpoint, list_checkpoints
from spec.config import TrainingConfig
from spec.runtime.parallel import ParallelContext
from tools.cli import destination
from tools.cli.backends import installed
from tools.training.checkpoint_manager import make_checkpoint_manager
from tools.training.run_dir import ExecutionConfig, RunDir, Settings

SETTINGS = Settings(corruption.CONFIG, TrainingConfig(), ExecutionConfig(), {})


def at_step(step: int) -> Checkpoint:
    return replace(corruption.sample(), state={**corruption.sample().state, "step": step, "best": None})


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def remove_it(run: Path) -> None:
    shutil.rmtree(run)


def move_it(run: Path) -> None:
    run.rename(run.with_name("moved"))


def replace_it(run: Path) -> None:
    """Another run has begun in its place."""
    run.rename(run.with_name("moved"))
    with RunDir(run).locked():
        RunDir(run).write_settings(SETTINGS)
        (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        for step in (1, 2):
            RunDir(run).save(at_step(step), 9)


class Parts:
    """An engine whose parts of a checkpoint are there at once."""

    context = ParallelContext()

    def dump_states(self) -> None:
        return None

    def save_shards(self, directory: Path) -> Parts:
        return self

    def result(self) -> None:
        pass


def write_metrics(run: RunDir) -> None:
    with run.metrics_writer(0) as write:
        write({"step": 3})


def save_parts(run: RunDir, lost_before: Callable[[], None] = lambda: None) -> None:
    manager = make_checkpoint_manager("dcp", run, Parts(), keep=1)  # pyright: ignore[reportArgumentType]
    manager.save(corruption.CONFIG, dict(at_step(3).state), "{}")  # pyright: ignore[reportArgumentType]
    lost_before()
    manager.finish()


@pytest.mark.parametrize("lose", [remove_it, move_it, replace_it])
@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.write_settings(SETTINGS),
        lambda run: run.cut_metrics(1),
        lambda run: run.save(at_step(3), 1),
        lambda run: run.drop_old(None, 1),
        write_metrics,
        save_parts,
    ],
    ids=["settings", "cut", "checkpoint", "prune", "metrics", "parts"],
)
def test_what_lies_in_the_place_of_a_live_run_is_not_written(
    lose: Callable[[Path], None], write: Callable[[RunDir], None], tmp_path: Path
):
    run = RunDir(tmp_path / "run")
    with run.locked():
        run.require_held()
        lose(run.path)
        before = content(run.path)
        assert run.is_lost()
        with pytest.raises(
            ValueError, match=r"run, or its file \.lock, was moved or removed while .*; move it back and"
        ):
            write(run)
        assert content(run.path) == before and run.path.exists() == bool(before)


def test_a_checkpoint_in_parts_does_not_appear_in_a_directory_that_was_lost_meanwhile(tmp_path: Path):
    run = RunDir(tmp_path)
    with run.locked():
        with pytest.raises(ValueError, match="was moved or removed"):
            save_parts(run, lambda: (tmp_path / ".lock").unlink())
        assert not [*(tmp_path / "checkpoints").iterdir()]


def test_a_run_that_cannot_begin_leaves_the_directory_that_another_has_made_meanwhile(tmp_path: Path):
    def fail() -> None:
        with RunDir(tmp_path / "run").locked():
            shutil.rmtree(tmp_path / "run")
            with RunDir(tmp_path / "run").locked():
                pass
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "run" / ".lock").is_file()


def test_of_what_is_unfinished_a_run_takes_away_its_own(tmp_path: Path):
    own = (
        "config.json.0123abcd",
        "loss.png.0123abcd",
        "0123abcd-config.json",
        "0123abcd-metrics.jsonl",
        "0123abcd-loss.png",
        "checkpoints/step_00000004",
        "checkpoints/step_123456789.0123abcd",
    )
    others = ("data2.0123abcd", "data2.lock", "lock", ".0123abcd", "0123abcd-report.json", "checkpoints/data.0123abcd")
    places = {name: (tmp_path / name).with_name(TEMPORARY_PREFIX + Path(name).name) for name in (*own, *others)}
    for place in places.values():
        place.mkdir(parents=True)
        (place / "work").touch()
    with RunDir(tmp_path).locked():
        assert {name for name, place in places.items() if (place / "work").exists()} == {*others}


def test_of_metrics_only_what_is_to_be_made_again_and_a_torn_last_line_go(tmp_path: Path):
    run, path = RunDir(tmp_path), tmp_path / "metrics.jsonl"
    good = [b'{"step": 1, "loss": 2.50}\n', b'{"step": 2}\n', b'{"step": 3}\n', b'{"step": 4}\n']
    bad = [b'{"step": 2, "lo\xff\n', b"7\n", b'{"loss": 1.0}\n']
    path.write_bytes(good[0] + bad[0] + good[1] + bad[1] + good[2] + bad[2] + good[3] + b'{"step": 5, "lo')
    assert run.metrics() == [{"step": 1, "loss": 2.5}, {"step": 2}, {"step": 3}, {"step": 4}]
    run.cut_metrics(4)
    assert path.read_bytes() == good[0] + bad[0] + good[1] + bad[1] + good[2] + bad[2] + good[3]
    run.cut_metrics(2)
    assert path.read_bytes() == good[0] + bad[0] + good[1] + bad[1]
    # A last line that can be read is whole: the next one begins a line of its own.
    path.write_bytes(good[0] + good[1].rstrip())
    run.cut_metrics(2)
    assert path.read_bytes() == good[0] + good[1]


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As of a disk that has no room, the error names no file."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        patch.setattr(Path, "write_text", refuse)
        patch.setattr(os, "fsync", refuse)
        yield


def test_a_full_disk_is_told_with_the_file_and_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = RunDir(tmp_path)
    run.save(at_step(1), 1)
    last = f"; the last good checkpoint is {list_checkpoints(tmp_path)[-1]}; add --resume to carry on"
    writers = {
        "checkpoints/step_00000003": lambda: run.save(at_step(3), 1),
        "checkpoints/step_00000003/": lambda: save_parts(run),
        "metrics.jsonl": lambda: write_metrics(run),
        "metrics.jsonl/": lambda: run.cut_metrics(1),
        "config.json": lambda: run.write_settings(SETTINGS),
    }
    for name, write in writers.items():
        with full(monkeypatch), pytest.raises(OSError) as told:
            write()
        place = tmp_path / name
        assert str(told.value) == f"{place}: No space left on device; free some space or choose another disk{last}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk without room, of Linux")
def test_a_line_that_is_refused_is_told_once(tmp_path: Path):
    """Not tried again when the file is closed, by then with an error that names nothing."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics\.jsonl: No space left on device.*; there is no checkpoint yet"):
        write_metrics(RunDir(tmp_path))


def test_settings_that_may_not_be_read_are_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    RunDir(tmp_path).write_settings(SETTINGS)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        RunDir(tmp_path).settings()


@pytest.fixture
def train(tmp_path: Path, refused: Callable[..., str]) -> Callable[..., str]:
    """Train in tmp_path/run, which must be refused, with all in it as it was; returns the line."""
    data, out = tmp_path / "data", tmp_path / "run"
    corruption.write_data(data)
    out.mkdir()

    def run(*flags: str) -> str:
        names, before = {*out.rglob("*")}, content(out)
        line = refused("train", installed()[0], "--data", str(data), "--out", str(out), *flags)
        assert content(out) == before and {*out.rglob("*")} == names
        return line

    return run


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl"])
def test_a_disk_that_is_not_mounted_is_no_run_without_checkpoints(name: str, tmp_path: Path, train: Callable[..., str]):
    run = tmp_path / "run"
    (run / name).symlink_to("scratch")
    assert f"run/{name} is a link to scratch, which is not there; make that" in train()
    RunDir(run).write_settings(SETTINGS)
    assert f"run/{name} is a link to scratch, which is not there; make that" in train("--resume")


@pytest.mark.parametrize("name, flag", [("checkpoints", "--seed=0"), ("profile", "--profile")])
def test_a_directory_of_the_run_that_cannot_be_written_is_told_before_the_first_step(
    name: str, flag: str, tmp_path: Path, train: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    place, probe = tmp_path / "run" / name, destination.tempfile.TemporaryFile
    place.touch()
    assert f"--out needs a directory that can be written, {place}: Not a directory" in train(flag)
    place.unlink()
    place.mkdir()

    def denied(dir: Path) -> object:
        if dir == place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return probe(dir=dir)

    monkeypatch.setattr(destination.tempfile, "TemporaryFile", denied)
    assert f"--out needs a directory that can be written, {place}: Permission denied" in train(flag)


def test_a_picture_without_a_run_is_its_owners(tmp_path: Path, train: Callable[..., str]):
    (tmp_path / "run" / "loss.png").write_text("mine")
    assert "run/loss.png is there already, without a run; move it away or name another --out" in train()
    assert "run/loss.png is there already" in train("--resume")
