"""The loss curve over all legs of a run, with every hand-over between backends marked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from spec.files import new_file

COLOURS = {"torch": "#ee4c2c", "jax": "#1a73e8"}


def plot_loss(metrics: Sequence[dict[str, Any]], target: Path) -> None:
    """Draw training loss (one colour a backend), validation loss and hand-overs against the step, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [line for line in metrics if "loss" in line]
    evaluations = [line for line in metrics if "val_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
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
        if before["backend"] != after["backend"]:
            axes.axvline(before["step"], color="grey", linestyle="--", linewidth=1.0)
            axes.annotate(
                f"{before['backend']} → {after['backend']}", (before["step"], 0.97), xycoords=("data", "axes fraction"),
                xytext=(4, 0), textcoords="offset points", va="top", fontsize=9,
            )  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.25)
    if train or evaluations:
        axes.legend(frameon=False)
    with new_file(target) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
