"""Files and directories that appear whole or not at all, whatever kills the writer.

Source: what a file system promises is that rename(2) is atomic; what is in a file, and that its name is there, it
promises after fsync(2) of the file and of its directory: Pillai et al. 2014, "All file systems are not created equal".
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".unfinished-"
#: A temporary directory inside its target, and in that what is being moved out of it.
_INSIDE = re.compile(re.escape(TEMPORARY_PREFIX) + r"\.[0-9a-f]{8}")
_MOVED = ".moved"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Bytes of a name that another holds besides what is put around it: file systems allow 255.
_NAME_BYTES = 200
#: What systems put into directories by themselves: an empty one that holds them is empty.
_SYSTEM = ("lost+found", ".DS_Store", ".gitkeep", "Thumbs.db", "desktop.ini")


@contextmanager
def new_directory(target: Path, last: str = "SHA256SUMS") -> Iterator[Path]:
    """A temporary directory that takes the place of `target` once the block has ended well.

    It lies beside `target` and is renamed; where `target` is there already, empty (the current directory, a link, a
    mounted volume), it lies inside, and its files are moved, `last` after all others: without that one nothing counts.
    Modes are what the umask and the parent's set-group-ID bit make of them. Every file is fsynced before and the parent
    after; on any failure nothing is left behind.

    Args:
        target: where the files are to be.
        last: name of the file whose presence makes the directory valid.

    Raises:
        ValueError: `target` already exists and is not an empty directory, or a name in it has come meanwhile.
    """
    target = Path(target)
    require_new(target)
    inside = target.is_dir()
    parent = target if inside else target.parent
    parent.mkdir(parents=True, exist_ok=True)
    left = _half_moved(target) if inside else set[str]()
    # Not by tempfile, whose directories are their owner's alone whatever the umask is.
    temporary = _temporary(parent, "" if inside else target.name)
    temporary.mkdir()
    try:
        with _naming_what_fills_the_disk(target):
            yield temporary
            for path in sorted(temporary.rglob("*")):
                fsync(path)
            fsync(temporary)
        if inside:
            _move_out(temporary, target, last, left)
        else:
            # What has come meanwhile is another's.
            require_new(target)
            os.rename(temporary, target)
        fsync(parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_out(temporary: Path, target: Path, last: str, replaced: set[str]) -> None:
    names = sorted((path.name for path in temporary.iterdir()), key=lambda name: (name == last, name))
    (temporary / _MOVED).write_text("".join(f"{name}\n" for name in names))
    moved = []
    try:
        for name in names:
            if name == last:
                fsync(target)
            if name not in replaced and os.path.lexists(target / name):
                raise ValueError(f"{target / name} has come meanwhile; move it away, or name another directory")
            os.rename(temporary / name, target / name)
            moved.append(target / name)
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _temporary(parent: Path, name: str) -> Path:
    """A new place in `parent` for what is to become `name` there; with no name, for what is to be moved there."""
    return parent / f"{TEMPORARY_PREFIX}{name_part(name)}.{secrets.token_hex(4)}"


@contextmanager
def _naming_what_fills_the_disk(target: Path) -> Iterator[None]:
    """Have an OSError of a full disk name `target`: that of a write names nothing."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def name_part(name: str) -> str:
    """The name, or of a long one the end, suffix included, so that more than 50 bytes can be put around it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _NAME_BYTES else encoded[-_NAME_BYTES:].decode(errors="ignore")


@contextmanager
def new_file(target: Path, replace: bool = True) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it once the block has ended well; a link itself is replaced.

    Args:
        target: the file that is to be.
        replace: what is there; else ValueError is raised where something has come meanwhile.
    """
    # Whoever else may write in the directory can neither lead to a file elsewhere by a link, nor know the name before.
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target.parent, target.name)
    try:
        with _naming_what_fills_the_disk(target):
            yield temporary
            fsync(temporary)
        if not replace:
            require_new(target)
        os.replace(temporary, target)
        fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_new(target: Path) -> None:
    """Raises ValueError where `target` exists and is no empty directory; what a killed writer left does not count."""
    target = Path(target)
    require_no_broken_link(target)
    if target.exists() and not (target.is_dir() and not _entries(target)):
        raise ValueError(f"{target} already exists; name another place or remove it first")


def require_no_broken_link(path: Path) -> None:
    """Raises ValueError for a link to what is not there: no directory can be made in its place."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to {os.readlink(path)}, which is not there; make that or name another")


def _entries(directory: Path) -> set[str]:
    """The names in a directory, without what systems put there, and without what a killed writer left."""
    names = {path.name for path in directory.iterdir()} - {*_SYSTEM}
    return {name for name in names if not name.startswith(TEMPORARY_PREFIX)} - _half_moved(directory)


def _half_moved(directory: Path) -> set[str]:
    """What a writer had moved that was killed while it moved its files into the directory, the last of them not yet.

    It said so itself in its temporary directory: of what others say there nothing is believed.
    """
    here, moved = {path.name for path in directory.iterdir()}, set[str]()
    for name in here:
        listed = directory / name / _MOVED
        if _INSIDE.fullmatch(name) and _is_own(listed.parent, stat.S_ISDIR) and _is_own(listed, stat.S_ISREG):
            names = listed.read_text(errors="replace").splitlines() or [""]
            # With the last of them the directory is valid, whoever filled it since.
            if names[-1] and names[-1] not in here and (directory / name / names[-1]).exists():
                # A name of this directory leads to no other; what is still to be moved is here as another's.
                moved |= {*names} & here - {path.name for path in listed.parent.iterdir()}
    return moved


def _is_own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether it is this user's, and of this kind itself, no link to one."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return kind(status.st_mode) and status.st_uid == os.geteuid()


def is_utf8(path: Path) -> bool:
    """Whether libraries that take names as text can be given the path: to the system a name is any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def require_utf8(path: Path, library: str) -> None:
    """Raises ValueError for a path that the library, which takes names as text, would not open."""
    if not is_utf8(path.absolute()):
        raise ValueError(f"{path}: {library} takes no name that is not UTF-8; name another place, or another format")


def require_file(path: Path) -> None:
    """Raises ValueError for what a reader could wait on for ever: a pipe, a device, anything but a regular file."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a directory, no regular file; name a file")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no regular file; save its content to one")


def read_file(path: Path) -> bytes:
    """The content of a regular file; raises ValueError for any other, and for one larger than this machine's memory."""
    require_file(path)
    size = Path(path).stat().st_size
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ValueError(f"{path} has {size:,} bytes, more than this machine has memory; take a larger one")
    return Path(path).read_bytes()


def read_utf8(path: Path) -> str:
    """The text of a small file, line breaks as they are; raises ValueError where it is not UTF-8, or no file."""
    if path.exists():
        require_file(path)
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def remove_half_moved(directory: Path) -> None:
    """Delete what a killed writer had moved into the directory that it was to fill, and what it had not moved yet.

    Only for who alone writes the directory, and only where `require_new` has found it empty.
    """
    moved = _half_moved(directory)
    for path in [*directory.iterdir()]:
        if path.name in moved:
            remove(path)
    remove_named(directory, _INSIDE)


def remove_unfinished(directory: Path, of: str) -> None:
    """Delete the temporary files and directories in `directory` that a killed writer left of what was to be `of`."""
    name = re.escape(name_part(of))
    # Earlier versions put the number of a file before its name.
    forms = rf"{name}\.[0-9a-f]{{8}}|(?!.*\.[0-9a-f]{{8}}\Z)[0-9a-f]{{8}}-{name}"
    remove_named(directory, re.compile(f"{re.escape(TEMPORARY_PREFIX)}({forms})", re.DOTALL))


def remove_named(directory: Path, names: re.Pattern[str]) -> None:
    """Delete what has such a name in `directory`, where that is one."""
    for path in [*Path(directory).iterdir()] if Path(directory).is_dir() else []:
        if names.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> bool:
    """Delete a file, or a directory with all in it; False where part of it is another's, who alone may."""
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except PermissionError:
        return False
    return True


def fsync(path: Path) -> None:
    """Wait until the file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
