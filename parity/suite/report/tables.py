"""The tables of the report, as rows of text that Markdown and HTML both show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

Report = dict[str, Any]
"""report.json, as `report.assemble` makes it."""
Units = float | str
"""Numbers that are not finite are words in JSON."""
Table = list[tuple[str, ...]]

ERROR_HEADER = ("operation", "implementation", "dtype", "bound", "cases", "worst error", "at")
RIGHT = "right"
CHECK_HEADER = ("check", "of", "result")
TIGHT_HEADER = ("operation", "bound", "used at most", "verdict", "by tensor")
BLOCK = re.compile(r"\bblocks\.\d+\.")


def kind(theorem: bool, dtype: str = "float32") -> str:
    """Whether a bound is proved; in float64 what is estimated has to agree to 1e-12 of the tensor's largest entry."""
    return "theorem" if theorem else "1e-12" if dtype == "float64" else "estimate"


def number(units: Units) -> str:
    """A number of bounds, short."""
    return units if isinstance(units, str) else f"{units:.2f}" if 0.1 <= units < 100.0 else f"{units:.2g}"


def environment_rows(result: Report) -> Table:
    """What was measured with, and how."""
    e = result["environment"]
    found = [f"{name} {version}" for name, version in e["versions"].items() if version != "not installed"]
    threads = ", ".join(f"{name} {value}" for name, value in e["threads"].items())
    rows = [
        ("made", f"{result['made']}, in {result['seconds']:,.0f} s"),
        ("commit", e["commit"] or "not in a git checkout"),
        ("draws", f"{result['draws']}, " + ("always the same" if result["seed"] is None else f"seed {result['seed']}")),
        ("problems", f"{result['problems']:,}, checked {result['checks']:,} times"),
        ("python", f"{e['python']} on {e['system']}"),
        ("processor", f"{e['processor']}, {e['cores']} cores, {e['memory_gib']} GiB"),
        ("threads", threads or "as the libraries choose"),
    ]
    rows += [(f"{name} devices", ", ".join(devices)) for name, devices in e["devices"].items()]
    return [*rows, ("packages", ", ".join(found))]


def error_rows(result: Report) -> Table:
    """Operation x implementation x dtype: the worst error in units of the bound."""
    rows = []
    for row in result["rows"]:
        head = row["operation"], row["implementation"], row["dtype"], kind(row["theorem"], row["dtype"])
        if row["skipped"]:
            rows.append((*head[:3], "", str(row["cases"]), "skipped", row["skipped"]))
        else:
            mark = " FAILS" if row["failure"] else ""
            rows.append((*head, f"{row['cases']:,}", number(row["worst"]) + mark, row["tensor"]))
    return rows


def check_rows(result: Report) -> Table:
    """What the checks of one family came to."""
    return [(one["check"], one["backend"] or "reference", _outcome(one)) for one in result["family_checks"]]


def tightness_rows(result: Report) -> Table:
    """How much of each float32 bound was used."""
    return [
        (
            line["operation"],
            kind(line["theorem"]),
            part_of_bound(line["used"]),
            "tight" if line["tight"] else "not tight",
            ", ".join(f"{name} {number(units)}" for name, units in grouped(line["tensors"]).items()),
        )
        for line in result["tightness"]
    ]


def part_of_bound(units: Units) -> str:
    """A part of a bound, as a number and as a fraction."""
    return f"{number(units)} (1/{1 / units:.0f})" if isinstance(units, float) and 0.0 < units < 0.5 else number(units)


def grouped(tensors: dict[str, Units]) -> dict[str, Units]:
    """The same tensors of all blocks as one, the largest first."""
    found: dict[str, Units] = {}
    for name, units in tensors.items():
        name = BLOCK.sub("blocks.*.", name)
        found[name] = max(units, found.get(name, units), key=float)
    return dict(sorted(found.items(), key=lambda item: -float(item[1])))


def trajectory_rows(result: Report) -> Table:
    """What whole runs showed."""
    race, estimated = result["trajectories"]["race"], result["trajectories"]["estimated"]
    steps = "optimizer steps of both backends from perturbed weights"
    if "skipped" in race:
        drift = race["skipped"]
    else:
        steps = f"{len(race['gap'])} {steps}"
        drift = (
            f"{_word(race)}: torch and JAX differ by {race['largest_gap']:.2e} at most, the limit is 5 times the "
            f"largest spread of torch's own orders of summation, {race['limit']:.2e}"
        )
    if "skipped" in estimated:
        units = estimated["skipped"]
    else:
        found = (f"{name} at most {number(x)} of the bound" for name, x in estimated["units"].items())
        units = f"{_word(estimated)}: {', '.join(found)}"
    return [(steps, drift), ("the loss of a small run against the float64 reference (estimate)", units)]


def warnings(result: Report) -> list[str]:
    """What is no failure, and should be known."""
    loose = [line["operation"] for line in result["tightness"] if not line["tight"]]
    lines = [f"Not tight (largest error below 1/30 of the bound): {', '.join(loose)}."] if loose else []
    skipped = dict.fromkeys(f"{row['implementation']}: {row['skipped']}" for row in result["rows"] if row["skipped"])
    lines += [f"Skipped: {reason}." for reason in skipped]
    if result["mutants"] and not result["mutants"]["current"]:
        lines.append("The sources have changed since the planted mistakes were counted: run make mutants.")
    if result["generic_mutants"] and not result["generic_mutants"]["current"]:
        lines.append("The sources have changed since the generic mutants were counted: run make mutation.")
    return lines


def markdown(result: Report) -> str:
    """The whole report but for its plots."""
    parts = [f"# Parity\n\n**{'PASS' if result['passed'] else 'FAIL'}.** {result['verdict']}"]
    parts += ["\n".join(f"* {line}" for line in warnings(result))] if warnings(result) else []
    parts += ["## Failing problems\n\n" + "\n\n".join(map(_failure, failures(result)))] if failures(result) else []
    if result["family"]:
        parts.append(f"## What {result['family']} is\n\n" + _table(CHECK_HEADER, check_rows(result)))
    parts.append("## Errors, in units of the bound\n\n" + _table(ERROR_HEADER, error_rows(result)))
    parts.append(
        "## Tightness\n\nThe share of each float32 bound that was used at most; 1/30 or more is tight.\n\n"
        + _table(TIGHT_HEADER, tightness_rows(result))
    )
    parts.append("## Trajectories\n\n" + _table(("run", "result"), trajectory_rows(result)))
    parts.append("## Environment\n\n" + _table(("what", "value"), environment_rows(result)))
    return "\n\n".join(parts) + "\n"


def failures(result: Report) -> list[dict[str, str]]:
    """Of the rows that broke a bound."""
    return [row["failure"] for row in result["rows"] if row["failure"]]


def _failure(failure: dict[str, str]) -> str:
    return f"{failure['message']}\n\n```console\n{failure['reproduction']}\n```"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _outcome(check: Report) -> str:
    return check["message"] or (f"not asked: {check['skipped']}" if check["skipped"] else RIGHT)


def _word(run: Report) -> str:
    return "within" if run["passed"] else "OUTSIDE"
