"""What a run of `liquidnet bench` has measured: as tables, and kept, one JSON a run in a directory for each machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.bench.timer import Row
from tools.cli.json_file import Json, write_json

Result = Json
"""One run, as the JSON has it; `targets` of a processor, `device` and `modelled` of a GPU."""

_OPERATION = {"pass": "pass", "ms": "milliseconds", "GB/s": "gb_per_s", "of copy": "of_copy",
              "of least traffic": "passes"}  # fmt: skip
COLUMNS = {
    "machine": {"by": "way", "ms": "milliseconds", "GB/s": "gb_per_s", "GFLOP/s": "gflops"},
    "peak": {"ms": "milliseconds", "GB/s": "gb_per_s", "TFLOP/s": "tflops"},
    "scan": _OPERATION,
    "mixer": _OPERATION,
    "loss": {"ms": "milliseconds", "extra MiB": "extra_mib", "logits MiB": "float32_logits_mib"},
    "train": {"ms": "milliseconds", "tokens/s": "tokens_per_second", "parameters": "parameters"},
    "decode": {"context": "context", "rows": "rows", "tokens/s": "tokens_per_second", "MB": "megabytes",
               "GB/s": "gb_per_s", "of reading": "of_reading"},
    "growth": {"ms": "milliseconds", "us a token": "microseconds_a_token", "times the first": "times_first",
               "kB a token": "kilobytes", "units": "units"},
}  # fmt: skip
GPU_COLUMNS = COLUMNS | {
    "train": {"ms": "milliseconds", "tokens/s": "tokens_per_second", "TFLOP/s": "tflops", "MFU": "mfu_of_measured",
              "of datasheet": "mfu_of_datasheet"},
    "decode": {"batch": "batch", "ms": "milliseconds", "tokens/s": "tokens_per_second"},
}  # fmt: skip
NOTES = {
    "scan": "* what `auto` takes; of least traffic: times what a memory pass takes for the bytes that must move",
    "decode": "MB: the weights as stored and what a cache holds, read once a token; of reading: over a sum's GB/s",
    "growth": "units: peak memory a token and layer of forward + backward, in d float32 numbers",
}


def show(result: Result, console: Console | None = None) -> None:
    """A table for each section and thing measured, with what did not run and why; then the targets or the model."""
    console = console or Console(highlight=False)
    gpu = "device" in result
    if gpu:
        where = result["device"]["name"]
    else:
        environment = result["environment"]
        where = f"{environment['processor']}, {environment['threads'].get('torch', environment['cores'])} threads,"
    console.print(f"measured on {where} in {result['seconds']:.0f} s", soft_wrap=True)
    for section, rows in result["sections"].items():
        parts: dict[str, list[Row]] = {}
        for row in rows:
            part = " x ".join(map(str, row["shape"])) if "shape" in row else row.get("what", "")
            parts.setdefault(part, []).append(row)
        for part, own in parts.items():
            columns = (GPU_COLUMNS if gpu else COLUMNS)[section]
            show_table(console, f"{section}, {part}" if part else section, columns, own)
        if section in NOTES and not gpu:
            console.print(f"  {NOTES[section]}", style="dim", markup=False, soft_wrap=True)
    if result.get("targets"):
        table = Table("target", "measured", "limit", "holds")
        for one in result["targets"]:
            limit = f"{'<=' if one['most'] else '>='} {one['limit']:g}"
            table.add_row(one["name"], cell(one["measured"]), limit, "yes" if one["holds"] else "no")
        console.print(table)
    if modelled := result.get("modelled"):
        console.print(
            f"modelled floor of the train step: {modelled['milliseconds']:.1f} ms, "
            f"{modelled['tokens_per_second']:,.0f} tokens/s (liquidnet bench --roofline)",
            soft_wrap=True,
        )


def show_table(console: Console, title: str, columns: Mapping[str, str], rows: Sequence[Row]) -> None:
    """What was measured, in columns of heading: key of the row; below, each method that did not run and why."""
    readable = [_readable(row) for row in rows]
    measured = [row for row in readable if "milliseconds" in row]
    # What nothing was measured of takes no place: a terminal has 80 columns.
    shown = {heading: key for heading, key in columns.items() if not measured or any(key in row for row in measured)}
    table = Table(title, *shown)
    for row in measured:
        table.add_row(str(row["name"]), *(cell(row.get(key)) for key in shown.values()))
    console.print(table)
    # Both passes of a method that does not run give one reason.
    reasons = {(row["name"], kind, row[kind]) for row in readable for kind in ("not_run", "error") if kind in row}
    for name, kind, reason in sorted(reasons):
        style = "red" if kind == "error" else "dim"
        console.print(f"  {name}: {kind.replace('_', ' ')}: {reason}", style=style, markup=False, soft_wrap=True)


def _readable(row: Row) -> dict[str, object]:
    shown: dict[str, object] = {**row, "name": f"{row['name']} *" if row.get("auto") else row["name"]}
    if row.get("batch", 1) > 1:
        shown["rows"] = row["batch"]
    if "context" in row and "bytes" in row:
        shown["megabytes"] = row["bytes"] / 1e6
    if "bytes_a_token" in row:
        shown["kilobytes"] = row["bytes_a_token"] / 1e3
    return shown


def cell(value: object) -> str:
    """A number in three digits, whole from a thousand on."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def is_fault(row: Row) -> bool:
    """Whether a row tells of a failure of ours; a peer that fails is shown and blamed on no one here."""
    return "error" in row and "peer" not in row


def errors_of(sections: Mapping[str, Sequence[Row]]) -> list[str]:
    """What failed, a line each."""
    return [
        f"{name}: {row['name']}: {row['error']}" for name, rows in sections.items() for row in rows if is_fault(row)
    ]


def machine_of(result: Result) -> str:
    """A directory's name for the processor and the threads used: `amd-epyc-2-threads`."""
    environment = result["environment"]
    threads = environment["threads"].get("torch", environment["cores"])
    return f"{re.sub(r'[^a-z0-9]+', '-', environment['processor'].lower()).strip('-')}-{threads}-threads"


def append(directory: Path, result: Result) -> Path:
    """Write a run beside those before it; nothing is ever replaced.

    Args:
        directory: of all machines.
        result: of `measure.measured` on a processor.

    Returns:
        The file, named after the time in UTC.
    """
    place, stem = directory / machine_of(result), re.sub(r"[-:]", "", result["when"])
    names = (f"{stem}.json" if number == 1 else f"{stem}-{number}.json" for number in count(1))
    path = next(path for path in (place / name for name in names) if not path.exists())
    write_json(path, result)
    return path


def runs(directory: Path) -> dict[str, list[Result]]:
    """Every run below a history, by machine, in the order of time.

    Raises:
        ValueError: no directory, nothing in it, or a file that no bench wrote.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory; name the one given to `liquidnet bench --history`")
    found: dict[str, list[Result]] = {}
    for path in sorted(directory.glob("*/*.json"), key=lambda path: (path.parent.name, path.stem)):
        found.setdefault(path.parent.name, []).append(read(path))
    if not found:
        raise ValueError(f"{directory} holds no run; make one with `liquidnet bench --history {directory}`")
    return {name: sorted(each, key=lambda run: run["when"]) for name, each in found.items()}


def read(path: Path) -> Result:
    """One run; raises ValueError where the file is none."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name one of its files, a JSON of `liquidnet bench`")
    try:
        run = json.loads(path.read_text())
        if {"when", "targets", "sections", "environment"} <= run.keys():
            return run
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    raise ValueError(
        f"{path} is no JSON of `liquidnet bench` on a processor; take it out of the history, or name another"
    )
