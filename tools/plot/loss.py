"""The loss of a run over all its segments, each hand-over between backends marked, with the learning rate below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tools.plot.figure import BACKEND_COLOURS, matplotlib_defaults, new_figure, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A line of metrics.jsonl: `step` and `backend`, and `loss` and `lr` of a train step or `val_loss` of an evaluation.
MetricsLine: TypeAlias = Mapping[str, float | str]


@matplotlib_defaults()
def plot_loss(metrics: Sequence[MetricsLine], target: Path, reference: Sequence[MetricsLine] = ()) -> None:
    """Draw training loss (one colour a backend), validation loss, learning rate and hand-overs against the step.

    Args:
        metrics: lines of metrics.jsonl.
        target: the PNG or SVG.
        reference: those of another run, to be drawn behind.
    """
    figure = new_figure(8, 5.4)
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    train, behind = ([line for line in lines if "loss" in line] for lines in (metrics, reference))
    evaluations = [line for line in metrics if "val_loss" in line]
    for axes, name in ((loss_axes, "loss"), (rate_axes, "lr")):
        axes.grid(alpha=0.25)
        label = "training, another run" if behind else None
        axes.plot(*_curve(behind, name), color="lightgrey", linewidth=3.0, label=label)
        for backend, colour in BACKEND_COLOURS.items():
            own = [line if line["backend"] == backend else {**line, name: float("nan")} for line in train]
            label = f"training, {backend}" if any(line["backend"] == backend for line in train) else None
            axes.plot(*_curve(own, name), color=colour, linewidth=0.8 if name == "loss" else 1.6, label=label)
    if evaluations:
        loss_axes.plot(*_curve(evaluations, "val_loss"), "ko-", markersize=3, linewidth=1.0, label="validation")
    for before, after in pairwise(train):
        if _place(before) != _place(after):
            _mark(loss_axes, rate_axes, float(before["step"]), f"{_place(before)} → {_place(after)}")
    loss_axes.set(ylabel="loss (nats a token)")
    rate_axes.set(xlabel="optimizer step", ylabel="learning rate", ylim=(0, None))
    rate_axes.locator_params(axis="y", nbins=4)
    if train or evaluations:
        loss_axes.legend(frameon=False)
    write_picture(figure, target)


def _curve(lines: Sequence[MetricsLine], name: str) -> tuple[list[float], list[float]]:
    return [float(line["step"]) for line in lines], [float(line[name]) for line in lines]


def _mark(loss_axes: Axes, rate_axes: Axes, step: float, text: str) -> None:
    for axes in (loss_axes, rate_axes):
        axes.axvline(step, color="grey", linestyle="--", linewidth=1.0)
    loss_axes.annotate(
        text, (step, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", va="top",
        fontsize=9,
    )  # fmt: skip


def _place(line: MetricsLine) -> str:
    # Lines of runs that were started before there could be several processes do not say how many.
    processes = line.get("processes", 1)
    return str(line["backend"]) if processes == 1 else f"{line['backend']} x {processes}"
