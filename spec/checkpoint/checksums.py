"""SHA256SUMS: the digest of every other file of a checkpoint, as sha256sum of GNU coreutils writes and checks it.

SHA-256: FIPS 180-4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from spec.checkpoint.sharded import is_part


def checksums(sums: Mapping[str, str]) -> bytes:
    """The content of SHA256SUMS from each file's digest."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


def files_below(directory: Path) -> dict[str, Path]:
    """Whatever lies below a directory, but for directories, by the name that SHA256SUMS gives it; links stay links."""
    found = (path for path in sorted(directory.rglob("*")) if path.is_symlink() or not path.is_dir())
    return {path.relative_to(directory).as_posix(): path for path in found}


def file_sha256(path: Path) -> str:
    """The digest of a file, which need not fit into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    """The digest as SHA256SUMS holds it."""
    return hashlib.sha256(content).hexdigest()


def verify(files: Mapping[str, bytes], elsewhere: Mapping[str, str] | None = None) -> None:
    """Raises ValueError where SHA256SUMS is not among the files, or is not about exactly the others.

    Args:
        files: content of each file.
        elsewhere: digests of further files, whose content is not here.
    """
    sums, found = listed_sums(files), {name: sha256(content) for name, content in files.items()} | dict(elsewhere or {})
    weights = () if any(map(is_part, sums)) else ("model.safetensors",)
    for name in ("config.json", "state.json", *weights, *(name for name in found if name != "SHA256SUMS")):
        if name not in sums:
            raise ValueError(f"{name} is not listed in SHA256SUMS")
    for name, digest in sums.items():
        if name not in found:
            raise ValueError(f"{name} is missing")
        if found[name] != digest:
            raise ValueError(f"{name} does not match SHA256SUMS: it was damaged or changed")


def listed_sums(files: Mapping[str, bytes]) -> dict[str, str]:
    """The digest of each file by name, as SHA256SUMS among the files has it; ValueError where it is not whole."""
    if "SHA256SUMS" not in files:
        raise ValueError("SHA256SUMS is missing; this is no checkpoint, or not a whole one: name another")
    # Not `splitlines`, to which a damaged line break is one of ten others.
    *rows, rest = files["SHA256SUMS"].decode().split("\n")
    if rest:
        raise ValueError("SHA256SUMS does not end with a line break: it was damaged or changed")
    sums = {name: digest for digest, _, name in (row.partition("  ") for row in rows)}
    for name in sums:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"SHA256SUMS names {name!r}, which is no file of a checkpoint")
    return sums
