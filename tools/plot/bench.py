"""What `liquidnet bench` measured: its ratios over time by machine, and how cost grows with length and context."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench import results
from tools.bench.limits import Target
from tools.bench.results import Result
from tools.bench.timer import Row, ran
from tools.plot.figure import BLUE, GREY, ORANGE, matplotlib_defaults, new_figure, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
COLOURS = (ORANGE, BLUE, "#009e73", "#cc79a7", GREY)
BACKENDS = {"torch": ORANGE, "jax": BLUE}


@matplotlib_defaults()
def plot_history(directory: Path, target: Path) -> None:
    """Each ratio of every run against its time, a colour a machine, its limit dashed.

    Args:
        directory: that `liquidnet bench --history` was given.
        target: the PNG or SVG.
    """
    machines = results.runs(directory)
    limits = {one["name"]: one for runs in machines.values() for run in runs for one in run["targets"]}
    if not limits:
        raise ValueError(f"{directory} holds runs without a ratio; measure more than one section")
    rows = -(-len(limits) // COLUMNS)
    figure = new_figure(12, 1.0 + 1.9 * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).ravel()
    for panel in panels[len(limits) :]:
        panel.set_visible(False)
    for panel, one in zip(panels, limits.values(), strict=False):
        _ratio(panel, one, machines)
    panels[0].legend(frameon=False, fontsize=7)
    write_picture(figure, target)


def _ratio(panel: Axes, target: Target, machines: dict[str, list[Result]]) -> None:
    top, limit = target["limit"], f"{'at most' if target['most'] else 'at least'} {target['limit']:g}"
    panel.axhline(target["limit"], color=GREY, linestyle="--", linewidth=1.0)
    for number, (machine, runs) in enumerate(machines.items()):
        found = [(run, one["measured"]) for run in runs for one in run["targets"] if one["name"] == target["name"]]
        times, ratios = [datetime.fromisoformat(run["when"]) for run, _ in found], [ratio for _, ratio in found]
        colour = COLOURS[number % len(COLOURS)]
        panel.plot(times, ratios, "o-", color=colour, label=machine)  # pyright: ignore[reportArgumentType]  times
        top = max(top, *ratios, 0.0)
    panel.set_title(f"{target['name']} ({limit})", fontsize=8)
    panel.set_ylim(0, 1.15 * top)
    panel.grid(alpha=0.25)
    panel.tick_params(axis="x", rotation=30, labelsize=7)


@matplotlib_defaults()
def plot_scaling(file: Path, target: Path) -> None:
    """One run's time and memory of training against the length of a row, and of decoding against context.

    Args:
        file: a JSON of `liquidnet bench`.
        target: the PNG or SVG.
    """
    run = results.read(file)
    sections = {name: ran(rows) for name, rows in run["sections"].items()}
    missing = [name for name in ("growth", "decode") if not sections.get(name)]
    if missing:
        raise ValueError(f"{file} did not measure {' and '.join(missing)}; run `liquidnet bench` without --sections")
    figure = new_figure(12, 3.8)
    time_axes, memory_axes, decode_axes = figure.subplots(1, 3)
    _growth(time_axes, memory_axes, sections["growth"])
    _decode(decode_axes, sections["decode"])
    for axes in (time_axes, memory_axes, decode_axes):
        axes.grid(alpha=0.25)
        axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{run['environment']['processor']}, {run['when'][:10]}", fontsize=9)
    write_picture(figure, target)


def _growth(time_axes: Axes, memory_axes: Axes, rows: list[Row]) -> None:
    for backend, colour in BACKENDS.items():
        own = [row for row in rows if row["backend"] == backend]
        if own:
            points = [(row["length"], row["microseconds_a_token"]) for row in own]
            time_axes.plot(
                *zip(*points, strict=True), "o-", color=colour, label=f"{backend}, {own[0]['tokens']:,} a step"
            )
        kept = [(row["length"], row["peak_bytes"] / 2**20) for row in own if "peak_bytes" in row]
        if kept:
            label = f"{backend}, {own[-1]['bytes_a_token'] / 1e3:.1f} kB a token"
            memory_axes.plot(*zip(*kept, strict=True), "o-", color=colour, label=label)
    time_axes.set(xlabel="T, tokens a row", ylabel="µs a token of a train step")
    time_axes.set_ylim(0, 1.2 * max(row["microseconds_a_token"] for row in rows))
    memory_axes.set(xlabel="T, tokens of one row", ylabel="peak MiB, forward + backward", yscale="log")


def _decode(axes: Axes, rows: list[Row]) -> None:
    names = dict.fromkeys((row["what"], row["name"]) for row in rows if "context" in row and row["batch"] == 1)
    chosen = [
        key for key in names
        if any((row["what"], row["name"]) == key and (row.get("auto") or "peer" in row) for row in rows)
    ]  # fmt: skip
    for colour, (what, name) in zip(COLOURS * len(chosen), chosen, strict=False):
        own = [row for row in rows if (row["what"], row["name"]) == (what, name) and row["batch"] == 1]
        points = sorted((row["context"], row["tokens_per_second"]) for row in own)
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{what}: {name}")
    axes.set(xlabel="tokens of context", ylabel="tokens a second, one row", yscale="log")
