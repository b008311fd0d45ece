"""The report of a sweep: one result as JSON, as Markdown and as a page of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from parity.proof import adapters
from parity.proof.bounds import TIGHT
from parity.proof.environment import environment
from parity.proof.family_checks import Outcome
from parity.suite import mutants
from parity.suite.report.html import page
from parity.suite.report.sweep import Row
from parity.suite.report.tables import Report, markdown
from parity.suite.runs.trajectory_drift import Drift, Estimate
from spec.checkpoint.files import new_file


def assemble(
    rows: Sequence[Row],
    drift: Drift | str,
    estimated: Estimate | str,
    draws: int,
    seed: int | None,
    seconds: float,
    family: str | None = None,
    outcomes: Sequence[Outcome] = (),
) -> Report:
    """Everything that the report says, as JSON holds it.

    Args:
        rows: of the sweep.
        drift, estimated: runs of parity/suite/runs/trajectory_drift.py, or why there is none.
        draws, seed, seconds: how it was made.
        family, outcomes: of which family alone, and what its checks came to.
    """
    result: Report = {
        "verdict": "",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "draws": draws,
        "seed": seed,
        "family": family,
        "family_checks": [one._asdict() for one in outcomes],
        "environment": environment(),
        "problems": problems(rows),
        "checks": sum(row.cases for row in rows),
        "rows": [{**asdict(row), "implementation": row.implementation} for row in rows],
        "tightness": tightness(rows),
        "trajectories": {"race": drift_entry(drift), "estimated": estimate_entry(estimated)},
        # What is planted is planted in the families of this project.
        "mutants": mutant_score() if family is None else None,
        "generic_mutants": generic_score() if family is None else None,
        "passed": False,
    }
    result["passed"] = passed(result)
    result["verdict"] = verdict(result)
    return plain(result)


def problems(rows: Sequence[Row]) -> int:
    """How many problems were drawn; each went to every implementation."""
    return sum(max(row.cases for row in rows if row.operation == name) for name in {row.operation for row in rows})


def tightness(rows: Sequence[Row]) -> list[Report]:
    """For each operation, how much of its float32 bound was used at most at the shapes of nano, by tensor too."""
    found: list[Report] = []
    for name in dict.fromkeys(row.operation for row in rows):
        measured = [row for row in rows if row.operation == name and row.dtype == "float32" and row.cases]
        if not measured:
            continue
        # The whole model is drawn at small widths only: compiling nano for every method takes minutes.
        small = not any(row.nano for row in measured)
        tensors: dict[str, float] = {}
        for row in measured:
            for tensor, units in (row.tensors if small else row.nano).items():
                tensors[tensor] = max(units, tensors.get(tensor, 0.0))
        used, theorem = max(tensors.values()), measured[0].theorem
        line = {"operation": name, "theorem": theorem, "used": used, "tight": used >= TIGHT}
        found.append({**line, "tensors": tensors, "shapes": "small" if small else "nano"})
    return found


def drift_entry(drift: Drift | str) -> Report:
    """The run in several orders of summation, or why there is none."""
    if isinstance(drift, str):
        return {"skipped": drift}
    gap = float(drift.gap.max())
    return plain({**asdict(drift), "limit": drift.limit, "largest_gap": gap, "passed": bool(drift.passed)})


def estimate_entry(estimated: Estimate | str) -> Report:
    """The run against the float64 reference, or why there is none."""
    if isinstance(estimated, str):
        return {"skipped": estimated}
    units = estimated.units
    return plain({**asdict(estimated), "units": units, "passed": all(x <= 1.0 for x in units.values())})


def mutant_score() -> Report | None:
    """The last score of the planted mistakes, and whether the sources have changed since."""
    score = mutants.load_score()
    return None if score is None else {**score, "current": score["sources"] == mutants.sources_digest()}


def generic_score() -> Report | None:
    """The last sample of generic mutants, and whether the sources have changed since."""
    score = mutants.load_generic_score()
    return None if score is None else {**score, "current": score["sources"] == mutants.sources_digest()}


def passed(result: Report) -> bool:
    """Whether no bound was broken, no trajectory left its limit, and every operation of each backend here was tried."""
    within = all(row["failure"] is None for row in result["rows"])
    tried = {(row["operation"], row["backend"]) for row in result["rows"] if row["cases"]}
    wanted = {(row["operation"], row["backend"]) for row in result["rows"] if adapters.missing(row["backend"]) is None}
    whole = bool(tried) and tried >= wanted
    runs = result["trajectories"]["race"], result["trajectories"]["estimated"]
    right = not any(one["message"] for one in result["family_checks"])
    return right and whole and within and all("skipped" in run or run["passed"] for run in runs)


def verdict(result: Report) -> str:
    """What the whole report says, as one sentence."""
    asked = [one for one in result["family_checks"] if not one["skipped"]]
    wrong = [one for one in asked if one["message"]]
    if wrong:
        first = f"{wrong[0]['check']} ({wrong[0]['backend'] or 'reference'})"
        failed = f"{len(wrong)} of {len(asked)} checks failed, the first of them {first}"
        return f"{result['family']} is not what a family must be: {failed}."
    both = list(dict.fromkeys(row["backend"] for row in result["rows"] if row["cases"]))
    who = "both implementations were" if len(both) == 2 else f"{both[0]} was" if both else "no implementation was"
    proved = {row["operation"] for row in result["rows"] if row["theorem"]}
    estimated = {row["operation"] for row in result["rows"]} - proved
    known = [f"proved for {len(proved)} operations"] if proved or not estimated else []
    known += [f"estimated for {', '.join(sorted(estimated))}"] if estimated else []
    what = f"within the rounding bound of the mathematics, {' and '.join(known)}"
    if result["passed"] and both:
        sentence = f"For every one of {result['problems']:,} problems drawn, {who} {what}"
    elif both:
        broken = [row for row in result["rows"] if row["failure"]]
        names = ", ".join(f"{row['operation']} ({row['implementation']}, {row['dtype']})" for row in broken[:3])
        names += f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        what = f"a bound was broken: {names}" if names else "a trajectory left its limit, or an operation was not tried"
        sentence = f"On {result['problems']:,} problems drawn, {what}"
    else:
        sentence = "Nothing was measured: every implementation is missing or refuses to run here"
    if result["family"]:
        return f"{sentence}; it passed all {len(asked)} checks of a family."
    return f"{sentence}; {mutant_sentence(result['mutants'], result['generic_mutants'])}."


def mutant_sentence(score: Report | None, generic: Report | None) -> str:
    """What the planted mistakes, and those that mutation operators made, say about the suite."""
    if score is None:
        return "how many planted mistakes the suite notices was not measured here (make mutants)"
    sentence = f"the suite noticed {score['caught']} of {score['total']} planted mistakes ({_known(score)})"
    if generic is not None:
        sentence += f" and {generic['caught']} of {generic['total']} generic mutants ({_known(generic)})"
    return sentence


def _known(score: Report) -> str:
    since = "" if score["current"] else "; the sources have changed since"
    return f"commit {score['commit'][:12] or 'unknown'}{since}"


def plain(value: Any) -> Any:
    """The value as JSON holds it: arrays as lists, numbers that are not finite as words."""
    if isinstance(value, Mapping):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(x) for x in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def write(directory: Path, result: Report) -> None:
    """DIR/report.html, report.json and report.md; each replaces its predecessor whole."""
    files = {"html": page(result), "json": json.dumps(result, indent=1, allow_nan=False) + "\n", "md": markdown(result)}
    for suffix, text in files.items():
        with new_file(directory / f"report.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
