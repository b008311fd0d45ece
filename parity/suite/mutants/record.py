"""The score of the last full run, kept beside the mutants: a report quotes it, and says what it was taken from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.proof.environment import ROOT, commit
from spec.checkpoint.files import new_file

SCORE = Path(__file__).with_name("score.json")
GENERIC_SCORE = Path(__file__).with_name("generic_score.json")
PACKAGES = ("spec", "torch_impl", "jax_impl", "tools", "parity")
SOURCES = ("*.py", "*.toml", "*.css", "robustness/*.json")


@dataclass(frozen=True)
class Row:
    """What became of one mutant.

    Args:
        name, file: of the mutant.
        outcome: `caught`, `survived`, or `invalid`: the fault is badly planted and proves nothing.
        caught_by: the test that failed; None where none did.
        units: by how many of its bounds, a number, or the word `inf`, `exact` (an assertion without a bound) or
            `timeout`; None where nothing was caught.
        why: what makes it invalid.
    """

    name: str
    file: str
    outcome: str
    caught_by: str | None = None
    units: float | str | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "file": self.file, "caught_by": self.caught_by, "units": self.units}


def sources_digest(root: Path = ROOT) -> str:
    """SHA-256 over path and content of what a score is of: the packages' Python files, and the data that tests read."""
    sha = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for kind in SOURCES for path in (root / package).rglob(kind)):
        sha.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()


def write_score(path: Path, rows: Sequence[Row], sources: str, root: Path = ROOT) -> None:
    """Keep the outcome of a run as JSON."""
    caught = sum(row.outcome == "caught" for row in rows)
    score = {
        "commit": commit(root) or "",
        "sources": sources,
        "total": len(rows),
        "caught": caught,
        "rows": [row.to_json() for row in rows],
    }
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(score, indent=1) + "\n")


def load_score(path: Path = SCORE) -> dict[str, Any] | None:
    """The record of the last full run: commit, sources, total, caught and rows; None where none can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def load_generic_score(path: Path = GENERIC_SCORE) -> dict[str, Any] | None:
    """The record of the last sample of generic mutants, see generic/run.py; None where none can be read."""
    return load_score(path)
