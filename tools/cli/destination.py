"""Where a command is to write: known to have the rights and the room before the work, not after it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from spec.checkpoint.files import require_no_broken_link
from tools.cli.errors import os_error_message

_PROBE_BYTES = 4096
#: Files that belong together, by what they are: where one of them lies, another's name is that of its fellow.
_TOGETHER = {
    "a run": {"config.json", "metrics.jsonl", "checkpoints"},
    "prepared data": {"meta.json", "tokenizer.json", "train.bin", "val.bin"},
}


def require_writable(place: Path, flag: str) -> None:
    """Raises ValueError where nothing could be written into a directory, or it could not be made; nothing is left."""
    require_outside_checkpoints(place, flag)
    for path in (place, *place.parents):
        require_no_broken_link(path)
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


def require_outside_checkpoints(place: Path, flag: str) -> None:
    """Raises ValueError for a directory of a checkpoint, or one in it: with anything more it could not be read."""
    there = Path(os.path.realpath(place))
    for path in (there, *there.parents):
        if (path / "config.json").is_file() and _lists(path / "SHA256SUMS", "config.json"):
            raise ValueError(f"{flag} would lie in the checkpoint {path}, which is no longer read then; name another")


def _lists(sums: Path, name: str) -> bool:
    """Whether a file of sha256sum names this one."""
    return sums.is_file() and any(line.endswith(f"  {name}") for line in sums.read_text(errors="replace").splitlines())


def require_new_or_file(path: Path | None, flag: str, inputs: Iterable[Path] = ()) -> None:
    """Raises ValueError where a file could not be written, or must not be replaced.

    Args:
        path: the file; None is nothing to write.
        flag: what names it.
        inputs: what the command reads.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{flag} {path} is no regular file, which could be replaced; name another")
    for source in inputs if path.exists() else ():
        if source.exists() and path.samefile(source):
            raise ValueError(f"{flag} {path} is what the command reads, and would be replaced; name another")
    for kind, names in _TOGETHER.items():
        if path.name in names and any((path.parent / other).exists() for other in names - {path.name}):
            raise ValueError(f"{flag} {path} is a file of {kind}; name another")
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
