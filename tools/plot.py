"""The loss curve over all legs of a run, with every hand-over marked: to another backend, or number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

from spec.files import new_file
from tools.run import Run

COLOURS = {"torch": "#ee4c2c", "jax": "#1a73e8"}


@dataclass(frozen=True)
class Plot:
    """Draw the loss curve of a run, each hand-over marked, beside that of another run."""

    run_directory: Annotated[Path, tyro.conf.Positional]
    """The run."""
    reference: Path | None = None
    """Another run, drawn in grey behind it."""
    out: Path | None = None
    """PNG to write (default: loss.png in the run)."""

    def run(self) -> None:
        curves = [_metrics(path) for path in (self.run_directory, self.reference) if path is not None]
        target = self.out or self.run_directory / "loss.png"
        plot_loss(curves[0], target, *curves[1:])
        print(target)


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = Run(path).metrics()
    if not lines:
        raise ValueError(f"{path} holds no metrics.jsonl of a run; name a directory that `liquidnet train` wrote")
    return lines


def plot_loss(metrics: Sequence[dict[str, Any]], target: Path, reference: Sequence[dict[str, Any]] = ()) -> None:
    """Draw training loss (one colour a backend), validation loss and hand-overs against the step, into a PNG.

    Args:
        metrics: lines of metrics.jsonl.
        target: the PNG.
        reference: those of another run, to be drawn behind.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in metrics if "loss" in line]
    evaluations = [line for line in metrics if "val_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    behind = [(line["step"], line["loss"]) for line in reference if "loss" in line]
    if behind:
        axes.plot(*zip(*behind, strict=True), color="lightgrey", linewidth=3.0, label="training, another run")
    for backend, colour in COLOURS.items():
        loss = [line["loss"] if line["backend"] == backend else float("nan") for line in train]
        if any(line["backend"] == backend for line in train):
            axes.plot([line["step"] for line in train], loss, color=colour, linewidth=0.8, label=f"training, {backend}")
    if evaluations:
        axes.plot(
            [line["step"] for line in evaluations], [line["val_loss"] for line in evaluations], "ko-", markersize=3,
            linewidth=1.0, label="validation",
        )  # fmt: skip
    for before, after in pairwise(train):
        if _where(before) != _where(after):
            axes.axvline(before["step"], color="grey", linestyle="--", linewidth=1.0)
            axes.annotate(
                f"{_where(before)} → {_where(after)}", (before["step"], 0.97), xycoords=("data", "axes fraction"),
                xytext=(4, 0), textcoords="offset points", va="top", fontsize=9,
            )  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.25)
    if train or evaluations:
        axes.legend(frameon=False)
    with new_file(target) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _where(line: dict[str, Any]) -> str:
    # Lines of runs that were started before there could be several processes do not say how many.
    processes = line.get("processes", 1)
    return line["backend"] if processes == 1 else f"{line['backend']} x {processes}"
