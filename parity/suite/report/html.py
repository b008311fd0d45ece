"""The report as one page: no script, no font, no picture from outside; for a screen, a phone and paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from parity.suite.report import plots, tables
from parity.suite.report.tables import Report, Units

STYLE = Path(__file__).with_name("style.css")


def page(result: Report) -> str:
    """The whole document."""
    body = "\n".join(
        part
        for part in (
            _verdict(result),
            _figures(result),
            _warnings(result),
            _failures(result),
            _checks(result),
            _plots(result),
            _errors(result),
            _tightness(result),
            _mutants(result),
            _generic_mutants(result),
            _section("Trajectories", "", _table(("run", "result"), tables.trajectory_rows(result))),
            _section("Environment", "", _table(("what", "value"), tables.environment_rows(result))),
        )
        if part
    )
    style, outcome = STYLE.read_text("utf-8"), "pass" if result["passed"] else "fail"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Parity: {outcome}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _verdict(result: Report) -> str:
    kind = "verdict" if result["passed"] else "verdict fail"
    made = f"{result['made']} · commit {result['environment']['commit'] or 'unknown'}"
    return (
        '<header><p class="name">LiquidNet · parity report</p></header>\n'
        f'<section class="{kind}"><h1>{escape(result["verdict"])}</h1>\n<p>{escape(made)}</p></section>'
    )


def _figures(result: Report) -> str:
    measured = [row for row in result["rows"] if row["cases"]]
    worst = max((float(line["used"]) for line in result["tightness"]), default=0.0)
    implementations = len({(row["operation"], row["implementation"], row["dtype"]) for row in measured})
    score = result["mutants"]
    figures = [
        (f"{result['problems']:,}", "problems drawn"),
        (f"{result['checks']:,}", "times an implementation was checked on one"),
        (f"{implementations}", "operations x implementations x dtypes"),
        (tables.number(worst), "worst float32 error, in units of its bound"),
        (f"{score['caught']} / {score['total']}" if score else "not counted", "planted mistakes noticed"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in figures)
    return f'<section class="figures">{cells}</section>'


def _warnings(result: Report) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in tables.warnings(result))
    return f'<ul class="warnings">{items}</ul>' if items else ""


def _failures(result: Report) -> str:
    parts = [
        f"<p>{escape(failure['message'])}</p>\n<pre>{escape(failure['reproduction'])}</pre>"
        for failure in tables.failures(result)
    ]
    note = "The smallest problem that was found for each. The command repeats it."
    return _section("Failing problems", note, "\n".join(parts)) if parts else ""


def _checks(result: Report) -> str:
    note = "What a family must be besides numbers within bounds; parity/proof/family_checks/ says what each asks."
    rows = tables.check_rows(result)
    return _section(f"What {result['family']} is", note, _table(tables.CHECK_HEADER, rows)) if rows else ""


def _plots(result: Report) -> str:
    scans, race, estimated = plots.scans(result), *(result["trajectories"][name] for name in ("race", "estimated"))
    drawn = [
        ("The scan: worst float32 error at each length", plots.errors_against_length(scans)),
        ("The scan: worst float32 error in each regime of decays", plots.errors_against_decay(scans)),
    ]
    if "skipped" not in race:
        what = "One run: torch against JAX, and torch against itself; no dot where the losses are equal to the bit"
        drawn += [(what, plots.drift(race))]
        drawn += [("The losses of that run, in every order of summation", plots.losses(race))]
    if "skipped" not in estimated:
        drawn += [("A small run against the float64 reference", plots.estimated(estimated))]
    figures = [f"<figure><figcaption>{escape(what)}</figcaption>{svg}</figure>" for what, svg in drawn if svg]
    note = "A bound is at 1. Below it an error is one that rounding alone explains."
    return _section("How errors grow", note, f'<div class="plots">{"".join(figures)}</div>') if figures else ""


def _errors(result: Report) -> str:
    lines, before = [], ""
    for row, cells in zip(result["rows"], tables.error_rows(result), strict=True):
        classes = ["group"] if row["operation"] != before else []
        classes += ["fails"] if row["failure"] else ["skipped"] if row["skipped"] else []
        before = row["operation"]
        shown = [escape(cell) for cell in cells]
        if not row["skipped"]:
            shown[5] = _bar(row["worst"]) + shown[5]
        marked = f' class="{" ".join(classes)}"' if classes else ""
        numbers = ["", "", "", "", "number", "number", ""]
        lines.append(f"<tr{marked}>{_cells(shown, numbers)}</tr>")
    note = (
        "The largest |error| / bound over all problems and all entries of outputs and gradients. A theorem is proved "
        "in parity/proof/bounds/; an estimate is the float64 reference rounding at random, times 4; "
        "1e-12 is of the largest entry of a tensor."
    )
    return _section("Errors, in units of the bound", note, _grid(tables.ERROR_HEADER, lines))


def _tightness(result: Report) -> str:
    lines = []
    for line, cells in zip(result["tightness"], tables.tightness_rows(result), strict=True):
        shown = [escape(cell) for cell in cells]
        shown[2] = _bar(line["used"]) + shown[2]
        lines.append(f"<tr>{_cells(shown, ['', '', 'number', 'number', 'small'])}</tr>")
    note = (
        "A bound that is far too large notices nothing. This is the share of each float32 bound that some "
        "implementation used on some problem; 1/30 or more is tight."
    )
    return _section("Tightness", note, _grid(tables.TIGHT_HEADER, lines))


def _mutants(result: Report) -> str:
    score = result["mutants"]
    if score is None:
        return ""
    header = ("planted mistake", "in", "noticed by", "units of its bound")
    rows = [
        (row["name"], row["file"], row["caught_by"] or "nobody", "" if row["units"] is None else _units(row["units"]))
        for row in score["rows"]
    ]
    note = "Each was planted in a copy of the sources, by itself, and the tests were run on it."
    open_list = f"<details><summary>All {len(rows)}</summary>{_table(header, rows)}</details>"
    return _section(f"Planted mistakes: {score['caught']} of {score['total']} noticed", note, open_list)


def _generic_mutants(result: Report) -> str:
    score = result["generic_mutants"]
    if score is None:
        return ""
    note = (
        "A sample of the changes that mutation operators make, even over operators and files; each was planted by "
        "itself, and the tests that execute it were run. An endless loop counts as noticed."
    )
    counts = score["operators"] | score["directories"]
    kinds = [(name, str(one["caught"]), str(one["total"])) for name, one in counts.items()]
    lost = [(f"{row['file']}:{row['line']}", row["operator"], row["diff"]) for row in score["survivors"]]
    body = _table(("operator or directory", "noticed", "planted"), kinds)
    body += f"<details><summary>All {len(lost)} others</summary>{_table(('in', 'operator', 'change'), lost)}</details>"
    return _section(f"Generic mutants: {score['caught']} of {score['total']} noticed", note, body)


def _units(units: Units) -> str:
    return units if isinstance(units, str) else f"{units:.3g}"


def _bar(units: Units) -> str:
    width = 100.0 * min(1.0, float(units))
    return f'<span class="bar"><i style="width: {width:.1f}%"></i></span>'


def _section(title: str, note: str, body: str) -> str:
    paragraph = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>\n{paragraph}{body}</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _grid(header, [f"<tr>{_cells([escape(cell) for cell in row], [''] * len(row))}</tr>" for row in rows])


def _grid(header: Sequence[str], lines: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cells(cells: Sequence[str], classes: Sequence[str]) -> str:
    return "".join(
        f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>"
        for cell, kind in zip(cells, classes, strict=True)
    )
