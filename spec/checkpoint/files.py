"""Files and directories that appear whole or not at all, whatever kills the writer.

Source: what a file system promises is that rename(2) is atomic; what is in a file, and that its name is there, it
promises after fsync(2) of the file and of its directory: Pillai et al. 2014, "All file systems are not created equal".
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".unfinished-"


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its name once the block has ended well.

    Every file is fsynced before the rename and the parent after it; on any failure nothing is left behind.

    Raises:
        ValueError: `target` already exists and is not an empty directory.
    """
    target = Path(target)
    require_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=target.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            fsync(path)
        fsync(temporary)
        os.rename(temporary, target)
        fsync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it once the block has ended well."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}"
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, target)
        fsync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_new(target: Path) -> None:
    """Raises ValueError where `target` exists and is not an empty directory."""
    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} already exists; name another place or remove it first")


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
    """The text of a small file, line breaks as they are; raises ValueError where it is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def remove_unfinished(directory: Path) -> None:
    """Delete what a killed writer left in `directory`."""
    for path in Path(directory).glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fsync(path: Path) -> None:
    """Wait until the file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
