"""`liquidnet bench` without flags: everything measured on a processor, in one JSON with the environment."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from spec.config import nearest
from spec.runtime.memory import keep_freed_memory
from tools.bench import decode, machine, recurrence, scaling, train_step
from tools.bench.limits import as_json, targets
from tools.bench.sizes import Sizes
from tools.bench.tables import cell, errors_of, show_table
from tools.bench.timer import Clock, Row, guarded
from tools.cli.progress import progress

SECTIONS: dict[str, Callable[[Clock, Sizes], list[Row]]] = {
    "machine": machine.machine,
    "scan": recurrence.scans,
    "mixer": recurrence.mixers,
    "train": train_step.train_steps,
    "decode": decode.decoding,
    "growth": scaling.growth,
}
SHARE = {"machine": 6, "scan": 8, "mixer": 8, "train": 70, "decode": 40, "growth": 25}
"""About the seconds of each on two cores, for the bar that shows how far it is."""
_PASSES = {"pass": "pass", "ms": "milliseconds", "of least traffic": "passes"}
COLUMNS = {
    "machine": {"by": "way", "ms": "milliseconds", "GB/s": "gb_per_s", "GFLOP/s": "gflops"},
    "scan": _PASSES,
    "mixer": _PASSES,
    "train": {"ms": "milliseconds", "tokens/s": "tokens_per_second", "parameters": "parameters"},
    "decode": {"context": "context", "rows": "rows", "tokens/s": "tokens_per_second", "MB": "megabytes",
               "GB/s": "gb_per_s", "of reading": "of_reading"},
    "growth": {"ms": "milliseconds", "us a token": "microseconds_a_token", "times the first": "times_first",
               "kB a token": "kilobytes", "units": "units"},
}  # fmt: skip
NOTES = {
    "scan": "* what `auto` takes; of least traffic: times what a memory pass takes for the bytes that must move",
    "decode": "MB: the weights as stored and what a cache holds, read once a token; of reading: over a sum's GB/s",
    "growth": "units: peak memory a token and layer of forward + backward, in d float32 numbers",
}


def chosen(names: str | None) -> tuple[str, ...]:
    """The sections of a comma-separated list, in the order in which they are measured; all of them for None.

    Raises:
        ValueError: one that is none.
    """
    if names is None:
        return tuple(SECTIONS)
    asked = [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in SECTIONS:
            told = nearest(name, list(SECTIONS)) or f"; choose from {','.join(SECTIONS)}"
            raise ValueError(f"--sections: there is no section {name!r}{told}")
    return tuple(name for name in SECTIONS if name in asked)


def measured(rounds: int, sizes: Sizes, names: Sequence[str] = tuple(SECTIONS)) -> dict[str, Any]:
    """The sections in turn, and the targets; one that fails becomes an error row and leaves the others alone.

    Args:
        rounds: rounds to take medians over.
        sizes: what is measured.
        names: of SECTIONS.
    """
    from parity.proof.environment import environment, version
    from tools.cli import backends

    # As the engines do: what a peer allocates costs it as little as ours.
    keep_freed_memory()
    for backend in backends.installed():
        # Before anything else imports it: it tells OpenMP how to wait.
        backends.load(backend, "layers")
    result: dict[str, Any] = {"when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    result |= {"environment": environment(), "rounds": rounds, "sections": {}, "section_seconds": {}}
    result["environment"]["versions"] |= {name: version(name) for name in ("numba", "transformers")}
    started = time.perf_counter()
    with progress("measuring", sum(SHARE[name] for name in names)) as bar:
        for name in names:
            begun = time.perf_counter()
            row: Row = {"name": name}
            rows = guarded(row, lambda name=name: SECTIONS[name](Clock("cpu", rounds), sizes))
            result["sections"][name] = [row] if rows is None else rows
            result["section_seconds"][name] = round(time.perf_counter() - begun, 1)
            # Engines refer to themselves: their memory would be measured with the next section.
            gc.collect()
            bar.advance(SHARE[name])
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["targets"] = as_json(targets(result["sections"]))
    result["errors"] = errors_of(result["sections"])
    return result


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """A table for each section and thing measured, then the targets."""
    console = console or Console(highlight=False)
    environment = result["environment"]
    threads = environment["threads"].get("torch", environment["cores"])
    console.print(
        f"measured on {environment['processor']}, {threads} threads, in {result['seconds']:.0f} s", soft_wrap=True
    )
    for section, rows in result["sections"].items():
        for what in dict.fromkeys(row.get("what") for row in rows):
            told = [_readable(row) for row in rows if row.get("what") == what]
            show_table(console, section if what is None else f"{section}, {what}", COLUMNS[section], told)
        if section in NOTES:
            console.print(f"  {NOTES[section]}", style="dim", markup=False, soft_wrap=True)
    if result["targets"]:
        table = Table("target", "measured", "limit", "holds")
        for one in result["targets"]:
            limit = f"{'<=' if one['most'] else '>='} {one['limit']:g}"
            table.add_row(one["name"], cell(one["measured"]), limit, "yes" if one["holds"] else "no")
        console.print(table)


def _readable(row: Row) -> Row:
    shown = {**row, "name": f"{row['name']} *" if row.get("auto") else row["name"]}
    if row.get("batch", 1) > 1:
        shown["rows"] = row["batch"]
    if "context" in row and "bytes" in row:
        shown["megabytes"] = row["bytes"] / 1e6
    if "bytes_a_token" in row:
        shown["kilobytes"] = row["bytes_a_token"] / 1e3
    return shown
