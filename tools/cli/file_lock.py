"""A lock file that one process holds at a time, on any operating system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file, which stays where it is; the operating system frees what a dead process held.

    Args:
        path: of the lock file, in a directory that exists.
        busy: what to say where another process holds it.

    Raises:
        ValueError: another process holds it.
        OSError: the file cannot be written.
    """
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(path).acquire(blocking=False))
        except Timeout as error:
            raise ValueError(busy) from error
        yield
