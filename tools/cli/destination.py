"""Where a command is to write: known to have the rights and the room before the work, not after it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from tools.cli.errors import os_error_message

_PROBE_BYTES = 4096


def require_writable(place: Path, flag: str) -> None:
    """Raises ValueError where nothing could be written into a directory, or it could not be made; nothing is left."""
    there = _nearest(place)
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        # Of a quota or a full disk an empty file says nothing.
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        reason = OSError(error.errno, error.strerror, str(there))
        raise ValueError(f"{flag} needs a directory that can be written, {os_error_message(reason)}") from error


def require_new_or_file(path: Path | None, flag: str) -> None:
    """Raises ValueError where a file could not be written, or replaced; None is nothing to write."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{flag} {path} is no regular file, which could be replaced; name another")
    require_writable(path.parent, flag)


def require_room(place: Path, size: float, flag: str) -> None:
    """Raises OSError where the disk has less room than `size` bytes."""
    free = shutil.disk_usage(_nearest(place)).free
    if free < size:
        raise OSError(
            f"{flag} {place} needs some {size:,.0f} bytes, and its disk has {free:,}; free some space, or name a place "
            "on another disk"
        )


def _nearest(place: Path) -> Path:
    """The directory itself, or the one above in which it would be made."""
    place = Path(os.path.realpath(place))
    while not place.exists() and place != place.parent:
        place = place.parent
    return place
