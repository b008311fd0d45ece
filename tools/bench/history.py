"""What `liquidnet bench` has measured, kept: one JSON a run, in a directory for each machine."""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path
from typing import Any

from spec.checkpoint.files import new_file


def machine_of(result: dict[str, Any]) -> str:
    """A directory's name for the processor and the threads used: `amd-epyc-2-threads`."""
    environment = result["environment"]
    threads = environment["threads"].get("torch", environment["cores"])
    return f"{re.sub(r'[^a-z0-9]+', '-', environment['processor'].lower()).strip('-')}-{threads}-threads"


def append(directory: Path, result: dict[str, Any]) -> Path:
    """Write a run beside those before it; nothing is ever replaced.

    Args:
        directory: of all machines.
        result: of `bench_cpu.measured`.

    Returns:
        The file, named after the time in UTC.
    """
    place, stem = directory / machine_of(result), re.sub(r"[-:]", "", result["when"])
    names = (f"{stem}.json" if number == 1 else f"{stem}-{number}.json" for number in count(1))
    path = next(path for path in (place / name for name in names) if not path.exists())
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return path


def runs(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Every run below a history, by machine, in the order of time.

    Raises:
        ValueError: no directory, nothing in it, or a file that no bench wrote.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory; name the one given to `liquidnet bench --history`")
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(directory.glob("*/*.json"), key=lambda path: (path.parent.name, path.stem)):
        found.setdefault(path.parent.name, []).append(read(path))
    if not found:
        raise ValueError(f"{directory} holds no run; make one with `liquidnet bench --history {directory}`")
    return {name: sorted(each, key=lambda run: run["when"]) for name, each in found.items()}


def read(path: Path) -> dict[str, Any]:
    """One run; raises ValueError where the file is none."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name one of its files, a JSON of `liquidnet bench`")
    try:
        run = json.loads(path.read_text())
        if {"when", "targets", "sections", "environment"} <= run.keys():
            return run
    except (ValueError, AttributeError):
        pass
    raise ValueError(
        f"{path} is no JSON of `liquidnet bench` on a processor; take it out of the history, or name another"
    )
