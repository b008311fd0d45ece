"""Which files of a directory are a checkpoint's own, and which lie beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from spec.checkpoint.checksums import files_below
from spec.checkpoint.files import read_file
from spec.checkpoint.sharded import ORBAX, is_part, is_shard

TEXTS = ("config.json", "state.json", "tokenizer.json", "SHA256SUMS")
FILES = (*TEXTS, "model.safetensors", "optimizer.safetensors", "states.safetensors")
#: What systems, people and hubs put beside the weights, which is no damage.
_SYSTEM = re.compile(r"\.ds_store|\._.*|\.nfs.*|thumbs\.db|desktop\.ini|lost\+found", re.IGNORECASE)
_BESIDE = re.compile(r"\..*|.*\.md|(readme|licen[cs]e|notice|citation|changelog)(\..*)?|.*~", re.IGNORECASE)


def checkpoint_files(directory: Path) -> dict[str, Path]:
    """Every file by its path in the checkpoint; what Orbax wrote lies deeper than the others.

    What systems, people and hubs put beside the weights is left out unless SHA256SUMS names it.

    Raises:
        ValueError: a file is no part of a checkpoint.
    """
    paths = {path.name: path for path in sorted(directory.iterdir())}
    if parts_of(directory) == ORBAX:
        paths |= {f"{ORBAX}/{name}": path for name, path in files_below(paths.pop(ORBAX)).items()}
    listed = _listed(paths.get("SHA256SUMS"))
    paths = {name: path for name, path in paths.items() if name in listed or not _is_beside(name)}
    for name in paths:
        if name not in FILES and not is_part(name):
            raise ValueError(f"checkpoint {directory}: {name} is no part of a checkpoint; take it out of there")
    return paths


def _is_beside(name: str) -> bool:
    """Whether a file, by its path in the checkpoint, is none of its own; among Orbax's hidden ones may count."""
    return bool(_SYSTEM.fullmatch(name.rpartition("/")[2]) or ("/" not in name and _BESIDE.fullmatch(name)))


def _listed(path: Path | None) -> set[str]:
    """What SHA256SUMS names; whether all of it is right is not asked here."""
    if path is None or not path.is_file():
        return set()
    return {row.partition("  ")[2] for row in read_file(path).decode(errors="replace").split("\n")}


def parts_of(directory: Path) -> Literal["dcp", "orbax"] | None:
    """Who wrote a checkpoint in parts; None where it is neutral."""
    if (directory / ORBAX).is_dir() and not (directory / ORBAX).is_symlink():
        return "orbax"
    return "dcp" if any(is_shard(path.name) for path in directory.iterdir()) else None
