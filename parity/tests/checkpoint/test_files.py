"""Directories and files appear whole or not at all, wherever they are asked for, with the modes of their place."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity.suite.robustness import corruption
from spec.checkpoint.files import TEMPORARY_PREFIX, name_part, new_directory, new_file, remove_half_moved, require_new
from spec.checkpoint.format import find_checkpoint, read_checkpoint
from tools import convert
from tools.cli.file_lock import sole_writer
from tools.training.run_dir import RunDir

CONTENT = {"a.bin": b"1", "meta.json": b"{}", "z.bin": b"22"}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def write(target: Path) -> None:
    with new_directory(target, last="meta.json") as temporary:
        for name, content in CONTENT.items():
            (temporary / name).write_bytes(content)
        (temporary / "deep").mkdir()
        (temporary / "deep" / "file").write_bytes(b"")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("kind", ["new", "below new ones", "empty", "a link", "here", "of a system"])
def test_a_directory_may_be_there_already(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, real = tmp_path / "target", tmp_path / "real"
    if kind == "below new ones":
        target = tmp_path / "a" / "b"
    elif kind in ("empty", "of a system"):
        target.mkdir()
    elif kind == "a link":
        real.mkdir()
        target.symlink_to("real")
    elif kind == "here":
        real.mkdir()
        monkeypatch.chdir(real)
        target = Path()
    if kind == "of a system":
        (target / "lost+found").mkdir()
        (target / ".DS_Store").touch()
    number = target.stat().st_ino if target.exists() else None
    write(target)
    assert {*CONTENT, "deep"} == names(target) - {"lost+found", ".DS_Store"}
    assert number in (None, target.stat().st_ino) and target.is_symlink() == (kind == "a link")
    assert all((target / name).read_bytes() == content for name, content in CONTENT.items())
    with pytest.raises(ValueError, match="already exists"):
        require_new(target)


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is deep inside too, files and directories: a power cut leaves no empty file under a valid name."""
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append("rename"), rename(*paths)))
    write(tmp_path / "target")
    before, after = events[: events.index("rename")], events[events.index("rename") :]
    (temporary,) = {path for path in before if Path(path).parent == tmp_path}
    inside = {path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*")}
    assert {*before} == {temporary, *(f"{temporary}/{name}" for name in inside)} and str(tmp_path) in after


def test_a_link_to_nothing_is_refused(tmp_path: Path):
    (tmp_path / "target").symlink_to("nowhere")
    with pytest.raises(ValueError, match="target is a link to nowhere, which is not there"):
        write(tmp_path / "target")
    assert names(tmp_path) == {"target"}


@pytest.mark.parametrize(
    "name", ["a" * 251, "\u3042" * 81 + "aa", "a" * 240 + "\udcff"], ids=["long", "wide", "no UTF-8"]
)
def test_a_name_may_be_as_long_as_the_file_system_allows(name: str, tmp_path: Path):
    left = tmp_path / f"{TEMPORARY_PREFIX}{name_part(name)}.deadbeef"
    left.mkdir()
    with sole_writer(tmp_path / name, "--out"):
        assert not left.exists()
        write(tmp_path / name)
    with new_file(tmp_path / f"{name}.png") as temporary:
        temporary.touch()
    assert names(tmp_path) == {name, f"{name}.png"}


def test_what_was_to_have_another_name_stays(tmp_path: Path):
    """A name that begins as the other does, too: somebody may be writing it."""
    stays = {"run.20260101.deadbeef", "another-run.deadbeef", "deadbeef-another-run", "deadbeef-run.deadbeef"}
    # The second is how earlier versions named a file.
    for name in (*stays, "run.deadbeef", "deadbeef-run"):
        (tmp_path / f"{TEMPORARY_PREFIX}{name}").mkdir()
    with sole_writer(tmp_path / "run", "--out"):
        left = {name.removeprefix(TEMPORARY_PREFIX) for name in names(tmp_path)}
    assert left == {*stays, "run.lock"}


def test_of_a_file_that_was_not_finished_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_half() -> None:
        with new_file(tmp_path / "c.pt") as temporary:
            temporary.touch()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            write_half()
    assert len(names(tmp_path)) == 1
    with sole_writer(tmp_path / "c.pt", "target"):
        pass
    assert not names(tmp_path)


class Killed(BaseException):
    """In the place of a kill: nothing is tidied up after it."""


@pytest.mark.parametrize("renames", range(4))
@pytest.mark.parametrize("tidy", [True, False], ids=["error", "kill"])
def test_what_is_half_moved_is_never_finished(
    renames: int, tidy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rename, moved = os.rename, []

    def failing(source: Path, target: Path) -> None:
        if len(moved) == renames:
            raise Killed
        rename(source, target)
        moved.append(Path(target).name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        if not tidy:
            patch.setattr("spec.checkpoint.files.shutil.rmtree", lambda *_, **__: None)
            patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            write(tmp_path)
    assert "meta.json" not in moved and len(names(tmp_path)) == (0 if tidy else 1 + renames)
    require_new(tmp_path)
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="already exists"):
        require_new(tmp_path)
    (tmp_path / "precious").unlink()
    remove_half_moved(tmp_path)
    assert not names(tmp_path)
    write(tmp_path)
    assert names(tmp_path) == {*CONTENT, "deep"}


def test_what_another_puts_there_meanwhile_stays(tmp_path: Path):
    """Whether its name comes first or after what was moved already."""

    def fill(target: Path, mine: str) -> None:
        with new_directory(target, last="meta.json") as temporary:
            for name in (*CONTENT, "deep"):
                (temporary / name).write_bytes(b"new")
            target.mkdir(exist_ok=True)
            (target / mine).write_bytes(b"mine")

    def write_file(target: Path) -> None:
        with new_file(target, replace=False) as temporary:
            temporary.touch()
            target.write_bytes(b"mine")

    there, new = tmp_path / "there", tmp_path / "new"
    for mine in ("a.bin", "meta.json", "deep"):
        there.mkdir()
        with pytest.raises(ValueError, match=f"{mine} has come meanwhile; move it away"):
            fill(there, mine)
        with pytest.raises(ValueError, match="already exists; name another"):
            fill(new, mine)
        for place in (there, new):
            assert names(place) == {mine} and (place / mine).read_bytes() == b"mine"
            shutil.rmtree(place)
    with pytest.raises(ValueError, match="already exists"):
        write_file(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"mine" and names(tmp_path) == {"c"}


def test_what_was_not_moved_yet_is_another_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = tmp_path / f"{TEMPORARY_PREFIX}.deadbeef"
    left.mkdir()
    for name in ("train.bin", "meta.json"):
        (left / name).touch()
    (left / ".moved").write_text("tokenizer.json\ntrain.bin\nmeta.json\n")
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "train.bin").write_text("mine")
    with pytest.raises(ValueError, match="already exists"), sole_writer(tmp_path, "--out"):
        pass
    (tmp_path / "train.bin").rename(tmp_path.parent / "mine")
    with sole_writer(tmp_path, "--out"):
        assert names(tmp_path) == {f"{TEMPORARY_PREFIX}lock"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_told_by_what_was_to_be_written(number: int, tmp_path: Path):
    for write in (new_file, new_directory):
        with pytest.raises(OSError) as caught, write(tmp_path / "x"):
            raise OSError(number, os.strerror(number))
        # Of what was read an error says nothing about the target.
        assert caught.value.filename == (None if number == errno.EIO else str(tmp_path / "x"))


def test_a_finished_directory_is_not_taken_for_a_half_moved_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spec.checkpoint.files.shutil.rmtree", lambda *_, **__: None)
    write(tmp_path)
    monkeypatch.undo()
    (left,) = tmp_path.glob(f"{TEMPORARY_PREFIX}*")
    with pytest.raises(ValueError, match="already exists"):
        require_new(tmp_path)
    # Nor does a list of names lead out of the directory.
    (left / "last").touch()
    (left / ".moved").write_text("../outside\n..\n/\nlast\n")
    (tmp_path.parent / "outside").touch()
    remove_half_moved(tmp_path)
    assert names(tmp_path) == {*CONTENT, "deep"} and (tmp_path.parent / "outside").exists()


def test_what_was_filled_after_a_kill_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = tmp_path / f"{TEMPORARY_PREFIX}.deadbeef"
    left.mkdir()
    (left / "meta.json").touch()
    (left / ".moved").write_text("a.bin\ndeep\nz.bin\nmeta.json\n")
    (tmp_path / "a.bin").touch()
    write(tmp_path)
    with pytest.raises(ValueError, match="already exists"), sole_writer(tmp_path, "--out"):
        pass
    remove_half_moved(tmp_path)
    assert names(tmp_path) == {*CONTENT, "deep"}


@pytest.mark.parametrize("whose", ["another target's", "a run's", "another user's", "one by link", "of no writer"])
def test_only_of_a_writer_of_this_very_directory_a_list_is_believed(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = {"another target's": "data.deadbeef", "of no writer": "mine"}.get(whose, ".deadbeef")
    left = tmp_path / f"{TEMPORARY_PREFIX}{name}"
    left.mkdir()
    (left / "last").touch()
    (left / ".moved").write_text("precious\nlast\n")
    if whose == "one by link":
        (left / ".moved").rename(tmp_path / "list")
        (left / ".moved").symlink_to("../list")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "work").touch()
    if whose == "another user's":
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    if whose == "another target's":
        with sole_writer(tmp_path / "data", "--out"):
            assert not left.exists()
    elif whose == "a run's":
        with RunDir(tmp_path).locked():
            pass
    else:
        with pytest.raises(ValueError, match="already exists"), sole_writer(tmp_path, "--out"):
            pass
        remove_half_moved(tmp_path)
    assert (tmp_path / "precious" / "work").exists()


def test_what_others_write_in_a_directory_that_is_filled_stays(tmp_path: Path):
    with sole_writer(tmp_path / "data", "--out"), new_directory(tmp_path / "data") as temporary:
        with sole_writer(tmp_path, "--out"):
            pass
        assert temporary.is_dir()


@pytest.mark.parametrize("mask, mode", [(0o002, 0o2770), (0o077, 0o700), (0o027, 0o755)])
@pytest.mark.parametrize("there", [True, False])
def test_modes_are_those_of_mkdir(mask: int, mode: int, there: bool, tmp_path: Path, umask: None):
    os.umask(mask)
    os.chmod(tmp_path, mode)
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual file").touch()
    if there:
        (tmp_path / "target").mkdir()
    write(tmp_path / "target")
    with new_file(tmp_path / "file") as temporary:
        temporary.write_text("")
    wanted = {kind: (tmp_path / name).stat().st_mode for kind, name in ((True, "usual"), (False, "usual file"))}
    for path in (tmp_path / "target", *(tmp_path / "target").rglob("*"), tmp_path / "file"):
        assert stat.filemode(path.stat().st_mode) == stat.filemode(wanted[path.is_dir()]), path


@pytest.mark.parametrize("points_to", ["elsewhere/file", "elsewhere", "nowhere"])
def test_a_link_is_replaced_not_what_it_points_to(points_to: str, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("another's")
    (tmp_path / "link").symlink_to(points_to)
    with new_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "new"
    assert names(tmp_path) == {"elsewhere", "link"} and (tmp_path / "elsewhere" / "file").read_text() == "another's"


BESIDE = ["README.md", "readme", ".gitattributes", ".gitignore", ".DS_Store", "Thumbs.db", "._config.json", "LICENSE"]


@pytest.mark.parametrize("form", ["neutral", "dcp", "orbax"])
def test_what_lies_beside_the_weights_is_no_damage(form: str, tmp_path: Path):
    if form == "orbax":
        pytest.importorskip("orbax.checkpoint", reason="orbax is not installed")
    path = tmp_path / "c"
    convert.write(path, corruption.sample(), form)
    for name in BESIDE:
        (path / name).write_text("anything")
    (path / ".git").mkdir()
    (path / ".git" / "config").touch()
    (path / "lost+found").mkdir()
    for below in [path / "orbax"] * (form == "orbax"):
        (below / ".DS_Store").write_text("anything")
    assert convert.read(path).state["step"] == 7
    (path / "config.json.bak").write_text("anything")
    with pytest.raises(ValueError, match=re.escape("config.json.bak is no part of a checkpoint; take it out")):
        convert.read(path)


def test_hidden_files_among_orbax_own_ones_count(tmp_path: Path):
    pytest.importorskip("orbax.checkpoint", reason="orbax is not installed")
    convert.write(tmp_path / "c", corruption.sample(), "orbax")
    (tmp_path / "c" / "orbax" / ".zarray").write_text("{}")
    with pytest.raises(ValueError, match="zarray is not listed in SHA256SUMS"):
        convert.read(tmp_path / "c")


def test_a_hidden_file_that_is_listed_is_not_overlooked(tmp_path: Path):
    corruption.write_sample("neutral", tmp_path / "c")
    (tmp_path / "c" / ".part").write_bytes(b"1")
    corruption.rewrite(tmp_path / "c")
    with pytest.raises(ValueError, match=r"\.part is no part of a checkpoint"):
        read_checkpoint(tmp_path / "c")


def test_the_directory_of_checkpoints_stands_for_its_newest(tmp_path: Path):
    place = tmp_path / "run" / "checkpoints"
    for step in (9, 10, 100):
        (place / f"step_{step}").mkdir(parents=True)
    (place / "step_200").touch()
    (place / "step_300.bak").mkdir()
    (place / "README.md").touch()
    (tmp_path / "link").symlink_to(place)
    for path in (tmp_path / "run", place, tmp_path / "link"):
        assert find_checkpoint(path).name == "step_100"
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / "other", tmp_path / "other" / "checkpoints"):
        with pytest.raises(ValueError, match="holds no checkpoint yet"):
            find_checkpoint(path)
