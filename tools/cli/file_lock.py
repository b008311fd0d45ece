"""A lock file that one process holds at a time, on any operating system, and who that is."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from spec.checkpoint.files import TEMPORARY_PREFIX, name_part, remove_half_moved, remove_unfinished, require_new

_READ_AND_WRITE = 0o666
_SIGNATURE = re.compile(r"(process \d{1,10} on [\w.-]{1,255})?\n")
_LONGEST_SIGNATURE = 300


@contextmanager
def exclusive_lock(path: Path, busy: str, remove: bool = False) -> Iterator[None]:
    """Hold the lock file; the operating system frees what a dead process held.

    Whoever may write into its directory may hold it: it has the permissions of the directory, whatever its maker's
    umask is, so that a colleague can take it after them.

    Args:
        path: of the lock file, in a directory that exists.
        busy: what to say where another process holds it; {} becomes "process 12 on a-host", or "another process".
        remove: take the file away in the end; by default it stays where it is.

    Raises:
        ValueError: another process holds it, or it is a link.
        OSError: the file cannot be written.
    """
    with ExitStack() as held:
        try:
            mode = path.parent.stat().st_mode & _READ_AND_WRITE | 0o600
            held.enter_context(FileLock(path, mode=mode).acquire(blocking=False))
        except (Timeout, BlockingIOError) as error:
            raise ValueError(busy.replace("{}", _holder(path))) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ValueError(f"{path} is a link, no lock of one process; remove it") from error
            if not isinstance(error, PermissionError):
                raise
            # Earlier versions let the maker's umask decide. Who may write in the directory could replace the file, too.
            if not os.access(path.parent, os.W_OK) or not path.is_file():
                raise
            held.enter_context(_lock_to_read(path, busy))
        _sign(path)
        try:
            yield
        finally:
            if remove and _is_lock(path):
                path.unlink(missing_ok=True)


@contextmanager
def sole_writer(target: Path, flag: str) -> Iterator[None]:
    """Be the only process that makes `target`, from before the work until it is there; what a killed one left goes.

    Raises:
        ValueError: another process is making it, or it is there and is not empty.
        OSError: its place cannot be written.
    """
    require_new(target)
    inside = target.is_dir()
    place = target if inside else target.parent
    lock = place / f"{TEMPORARY_PREFIX}{'' if inside else name_part(target.name) + '.'}lock"
    busy = f"{target} is being written by {{}}; wait for it or name another {flag}"
    with _made(place), exclusive_lock(lock, busy, remove=True):
        require_new(target)
        if inside:
            remove_half_moved(place)
        else:
            remove_unfinished(place, of=target.name)
        yield


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """Make a directory and those above it; after an error those of them that are empty go again."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def _lock_to_read(path: Path, busy: str) -> Iterator[None]:
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        # Of the lock alone: what the body writes to may be busy, too.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(busy.replace("{}", _holder(path))) from error
        yield
    finally:
        os.close(descriptor)


def _sign(path: Path) -> None:
    """Say in the lock file who holds it; nothing but a message depends on that."""
    with suppress(OSError):
        # Not through a link that has taken its place meanwhile, and not over what the library has written itself.
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "r+", errors="replace") as file:
            if _SIGNATURE.fullmatch(file.read(_LONGEST_SIGNATURE) or "\n"):
                file.seek(0)
                file.truncate()
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")


def _is_lock(path: Path) -> bool:
    """Whether what is in the file is what locks hold, and not another's text under a lock's name."""
    with suppress(OSError), path.open(errors="replace") as file:
        return _SIGNATURE.fullmatch(file.read(_LONGEST_SIGNATURE) or "\n") is not None
    return False


def _holder(path: Path) -> str:
    with suppress(OSError), path.open(errors="replace") as file:
        if found := _SIGNATURE.fullmatch(file.read(_LONGEST_SIGNATURE)):
            return found[1] or "another process"
    return "another process"
