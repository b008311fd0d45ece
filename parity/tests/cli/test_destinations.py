"""Where a command may write is known before its work: rights, room, and whether somebody else is writing there."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity.suite.robustness import corruption
from tools import convert
from tools.cli import destination, file_lock
from tools.cli.backends import installed
from tools.data import prepare as module
from tools.data.documents import ROW_READERS
from tools.data.prepare import Prepare
from tools.training.run_dir import RunDir

HOLD = """import sys
from pathlib import Path
from tools.cli.file_lock import sole_writer
with sole_writer(Path(sys.argv[1]), "--out"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("there", [True, False])
def test_the_second_is_told_who_the_first_is(there: bool, tmp_path: Path, refused: Callable[..., str]):
    corruption.write_sample("neutral", tmp_path / "whole")
    out = tmp_path / "out"
    if there:
        out.mkdir()
    line = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdin is not None and first.stdout.readline() == "held\n"
        for command in (["prepare", "--stories", "9", "--out"], ["convert", str(tmp_path / "whole")]):
            assert f"is being written by process {first.pid} on " in refused(*command, str(out))
        first.kill()
        first.wait()
    assert out.exists() == there
    # Of one that was killed nothing has to be removed by hand.
    Prepare(stories=9, out=out).run()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}
    assert {path.suffix for path in out.iterdir()} == {".bin", ".json"}


def test_a_run_names_its_process_and_a_refused_one_leaves_nothing(tmp_path: Path):
    with (
        RunDir(tmp_path).locked(),
        pytest.raises(ValueError, match=f"another live run, process {os.getpid()} on .*; wait for it or name"),
        RunDir(tmp_path).locked(),
    ):
        pass
    (tmp_path / ".lock").write_text("what is this?")
    with (
        file_lock.exclusive_lock(tmp_path / ".lock", ""),
        pytest.raises(ValueError, match="run, another process;"),
        RunDir(tmp_path).locked(),
    ):
        pass
    assert (tmp_path / ".lock").read_text() == "what is this?"

    def fail(run: Path, *files: str) -> None:
        with RunDir(run).locked():
            for name in files:
                (run / name).touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail(tmp_path / "a")
    with pytest.raises(KeyError):
        fail(tmp_path / "b", "file")
    assert not (tmp_path / "a").exists() and (tmp_path / "b" / "file").exists()


def test_of_two_runs_that_begin_at_once_the_refused_one_leaves_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with RunDir(tmp_path / "run").locked():
        exists, asked = Path.exists, []

        def before_the_other(path: Path, **flags: bool) -> bool:
            asked.append(path)
            return path != tmp_path / "run" and exists(path, **flags)

        monkeypatch.setattr(Path, "exists", before_the_other)
        with pytest.raises(ValueError, match="another live run"), RunDir(tmp_path / "run").locked():
            pass
        assert tmp_path / "run" in asked and (tmp_path / "run" / ".lock").is_file()


def test_a_holder_signs_alone(tmp_path: Path):
    """Over the longer signature of one that was killed."""
    path = tmp_path / ".lock"
    path.write_text("process 1234567890 on a-long-name.of-another-machine.example.org\n")
    with file_lock.exclusive_lock(path, ""):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
        with (
            pytest.raises(ValueError, match=rf"by process {os.getpid()} on {re.escape(socket.gethostname())}$"),
            file_lock.exclusive_lock(path, "held by {}"),
        ):
            pass


@pytest.mark.parametrize("mode, lock_mode", [(0o2775, 0o664), (0o700, 0o600), (0o755, 0o644)])
def test_who_may_write_in_a_directory_may_hold_its_lock(mode: int, lock_mode: int, tmp_path: Path):
    tmp_path.chmod(mode)
    before = os.umask(0o022)
    try:
        with file_lock.exclusive_lock(tmp_path / "lock", ""):
            assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == lock_mode
    finally:
        os.umask(before)


def test_a_lock_that_can_only_be_read_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Earlier versions made it by the umask of whoever came first."""

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr(file_lock, "FileLock", denied)
    with (
        file_lock.exclusive_lock(path, "busy: {}"),
        pytest.raises(ValueError, match="busy: process"),
        file_lock.exclusive_lock(path, "busy: {}"),
    ):
        pass
    with pytest.raises(BlockingIOError), file_lock.exclusive_lock(path, "busy"):
        raise BlockingIOError(errno.EAGAIN, "write could not complete without blocking")
    path.unlink()
    with pytest.raises(PermissionError), file_lock.exclusive_lock(path, ""):
        pass


def commands(tmp_path: Path, place: Path) -> dict[str, list[str]]:
    corruption.write_sample("neutral", tmp_path / "whole")
    (tmp_path / "run").mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "lr": 1.0, "backend": "torch"}\n')
    corruption.write_data(tmp_path / "data")
    return {
        "prepare": ["--stories", "9", "--out", str(place / "x")],
        "train": [installed()[0], "--data", str(tmp_path / "data"), "--out", str(place / "x")],
        "convert": [str(tmp_path / "whole"), str(place / "x")],
        "plot": [str(tmp_path / "run"), "--out", str(place / "x.png")],
        "compare": [str(tmp_path / "whole"), "--json", str(place / "x.json")],
        "doctor": ["--json", str(place / "x.json")],
        "bench": ["--roofline", "--json", str(place / "x.json")],
        "plan": ["--json", str(place / "x.json")],
        "parity": ["--report", str(place / "x")],
    }


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
def test_every_command_asks_before_its_work(
    number: int, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "place"
    place.mkdir()
    lines = commands(tmp_path, place)

    def denied(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(destination.tempfile, "TemporaryFile", denied)
    for name, flags in lines.items():
        message = refused(name, *flags)
        assert f"needs a directory that can be written, {place}: {os.strerror(number)}; " in message, name
    assert not [*place.iterdir()]


def test_a_checkpoint_is_left_as_it_is(tmp_path: Path, refused: Callable[..., str]):
    """With one more file in it, or one replaced, it could not be read."""
    lines = commands(tmp_path, tmp_path / "whole" / "new")
    for name, flags in lines.items():
        assert f"would lie in the checkpoint {tmp_path / 'whole'}, which is no" in refused(name, *flags), name
    (tmp_path / "link").symlink_to("whole")
    for place in ("whole/config.json", "link/x.json"):
        assert "would lie in the checkpoint" in refused("doctor", "--json", str(tmp_path / place))
    assert "already exists" in refused("convert", str(tmp_path / "whole"), str(tmp_path / "whole"))
    assert "would lie in" in refused("convert", str(tmp_path / "whole"), str(tmp_path / "whole" / "x.pt"))
    convert.read(tmp_path / "whole")


def test_what_a_command_reads_is_not_replaced(tmp_path: Path, refused: Callable[..., str]):
    text, picture = tmp_path / "text", tmp_path / "b.png"
    for path in (text, picture):
        path.write_text("precious")
    (tmp_path / "link").symlink_to(text)
    whole = str(tmp_path / "whole")
    for name, *flags in (
        ("compare", str(text), "--json", str(text)),
        ("compare", whole, f"jax:{text}", "--json", str(tmp_path / "x" / ".." / "text")),
        ("compare", whole, "--text-file", str(text), "--json", str(tmp_path / "link")),
        ("plot", str(picture), "--what", "scaling", "--out", str(picture)),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "is what the command reads, and would be replaced; name another" in refused(name, *flags), flags
    assert text.read_text() == picture.read_text() == "precious"
    # Nor what a run, or a data set, is not read without.
    for kind, there, others in (
        ("a run", "config.json", ("metrics.jsonl",)),
        ("a run", "checkpoints", ("config.json", "metrics.jsonl")),
        ("prepared data", "train.bin", ("meta.json", "tokenizer.json", "val.bin")),
    ):
        place = tmp_path / there.partition(".")[0]
        place.mkdir()
        (place / there).touch()
        for other in others:
            assert f"is a file of {kind}; name" in refused("doctor", "--json", str(place / other))
        destination.require_new_or_file(place / "x.json", "--json")
    destination.require_new_or_file(tmp_path / "new" / "config.json", "--json")


def test_a_file_under_the_name_of_a_lock_is_its_owner_s(tmp_path: Path, refused: Callable[..., str]):
    (tmp_path / ".unfinished-a.lock").write_text("mine\n")
    (tmp_path / ".unfinished-b.lock").write_text("process 12 on a-host\n")
    (tmp_path / ".unfinished-c.lock").symlink_to("a")
    for name in ("a", "b"):
        with file_lock.sole_writer(tmp_path / name, "--out"):
            pass
    message = refused("prepare", "--stories", "9", "--out", str(tmp_path / "c"))
    assert f"{tmp_path / '.unfinished-c.lock'} is a link, no lock of one process; remove it" in message
    assert {path.name for path in tmp_path.iterdir()} == {".unfinished-a.lock", ".unfinished-c.lock"}
    assert (tmp_path / ".unfinished-a.lock").read_text() == "mine\n"


def test_what_was_made_for_nothing_goes(tmp_path: Path, refused: Callable[..., str]):
    for target in ("a/b/x.pt", "a/b/x"):
        refused("convert", str(tmp_path / "nowhere"), str(tmp_path / target))
    assert not [*tmp_path.iterdir()]


def test_a_name_that_orbax_does_not_open(tmp_path: Path):
    """Told before anything is read."""
    with pytest.raises(ValueError, match="Orbax takes no name that is not UTF-8"):
        convert.Convert(tmp_path / "nowhere", tmp_path / "o\udcff" / "x", "orbax").run()


def test_a_file_in_the_way_is_told(tmp_path: Path, refused: Callable[..., str]):
    (tmp_path / "file").touch()
    for name, flags in commands(tmp_path, tmp_path / "file").items():
        assert "Not a directory; name a directory" in refused(name, *flags), name
    os.mkfifo(tmp_path / "pipe.json")
    assert "is no regular file" in refused("bench", "--roofline", "--json", str(tmp_path / "pipe.json"))


def test_a_link_needs_room_where_it_lies(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file/below")
    destination.require_new_or_file(tmp_path / "link", "--json")


def test_a_directory_in_the_place_of_a_broken_link_is_not_made(tmp_path: Path, refused: Callable[..., str]):
    lines = commands(tmp_path, tmp_path)
    (tmp_path / "x").symlink_to("nowhere")
    for name in ("prepare", "train", "convert"):
        assert "x is a link to nowhere, which is not there; make that" in refused(name, *lines[name]), name
    for name, flags in commands(tmp_path / "new", tmp_path / "x").items():
        assert "x is a link to nowhere, which is not there; make that" in refused(name, *flags), name
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """How many bytes are free, as far as anybody asks."""
    disk = SimpleNamespace(free=10**12)
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: disk)
    return disk


def test_a_disk_without_room_is_told_before_the_work(
    tmp_path: Path, refused: Callable[..., str], room: SimpleNamespace
):
    place = tmp_path / "place"
    place.mkdir()
    lines = commands(tmp_path, place)
    room.free = 1000
    for name in ("train", "convert"):
        assert "bytes, and its disk has 1,000; free some space" in refused(name, *lines[name])
    assert not [*place.iterdir()]


def test_a_text_larger_than_the_room(tmp_path: Path, room: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    text = tmp_path / "text.txt"
    text.write_text("Some words in a line.\n" * 500)
    room.free = text.stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(module, "_document_lengths", None)  # what is read first
        with pytest.raises(OSError, match=r"needs some 17,600 bytes"):
            Prepare(text=(text,), out=tmp_path / "out").run()
    # A row holds more than its text.
    for suffix in ROW_READERS.keys() - {".parquet"}:
        rows = text.with_suffix(suffix)
        rows.write_text('{"text": "Some words", "more": "%s"}\n' % (" " * 1000) * 20)
        Prepare(text=(rows,), out=tmp_path / suffix).run()
    # What other tokenizers make of it the first batch shows.
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 1000)
    room.free, flags = 3000, {"text": (text,), "out": tmp_path / "out", "tokenizer": "bpe:300"}
    monkeypatch.setattr(module, "_BATCH_PIECES", 1)
    monkeypatch.setattr("tools.data.pieces._PIECE_CHARACTERS", 500)
    monkeypatch.setattr("tools.data.documents._BLOCK_BYTES", 500)
    with pytest.raises(OSError, match=r"needs some .* bytes, and its disk has 3,000"):
        Prepare(**flags).run()
    assert not (tmp_path / "out").exists()
    room.free = 10**5
    Prepare(**flags).run()
