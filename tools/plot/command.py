"""Pictures of a run (losses and learning rates, half-lives, how far back it looks) and of what `bench` measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from spec.checkpoint.format import Checkpoint
from spec.data import Dataset, open_data
from tools import convert
from tools.plot.bench import plot_history, plot_scaling
from tools.plot.figure import new_figure, require_picture, write_picture
from tools.plot.half_lives import plot_half_lives
from tools.plot.reach import WINDOWS, plot_reach
from tools.training.evaluate import require_same_tokenizer
from tools.training.run_dir import RunDir

COLOURS = {"torch": "#ee4c2c", "jax": "#1a73e8"}
FLAGS = {
    "loss": ("reference",),
    "half-lives": ("data",),
    "reach": ("data", "windows", "seq_len"),
    "bench": (),
    "scaling": (),
}


@dataclass(frozen=True)
class Plot:
    """Draw a run: its loss with every hand-over, the half-lives of its channels, or how far back a token matters.

    Or draw what `liquidnet bench` measured: its ratios over time, or how cost grows with length and context.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """The run; for half-lives and reach it may also be a checkpoint directory, a .pt or a .msgpack file. For bench a
    directory of `liquidnet bench --history`, for scaling a JSON of `liquidnet bench`."""
    what: Literal["loss", "half-lives", "reach", "bench", "scaling"] = "loss"
    """loss: with the learning rate, over all legs. half-lives: of each layer's channels, at the start and now.
    reach: the gradient of the loss with respect to each token before, against its distance, at the start and now.
    bench: every ratio with its limit over time, by machine. scaling: time and memory over length and context."""
    data: Path | None = None
    """Prepared data, whose validation part is read: reach needs it, half-lives shows besides what they are on it."""
    windows: int | None = None
    """Windows of text that reach takes its quartiles over (default: 32)."""
    seq_len: int | None = None
    """Tokens of a window of reach (default: 1024, or as many as there are)."""
    reference: Path | None = None
    """Another run, whose loss is drawn in grey behind."""
    out: Path | None = None
    """PNG or SVG to write, by its suffix (default: loss.png, half-lives.png, reach.png, bench.png in the directory)."""

    def run(self) -> None:
        for name in {name for names in FLAGS.values() for name in names} - set(FLAGS[self.what]):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} does nothing for --what {self.what}; leave it out")
        target = self.out or self._default_target()
        require_picture(target)
        if self.what == "loss":
            curves = [_metrics(path) for path in (self.source, self.reference) if path is not None]
            plot_loss(curves[0], target, *curves[1:])
        elif self.what == "bench":
            plot_history(self.source, target)
        elif self.what == "scaling":
            plot_scaling(self.source, target)
        elif self.what == "half-lives":
            checkpoint, data = self._opened()
            plot_half_lives(checkpoint, target, data)
        else:
            if self.data is None:
                raise ValueError("reach is measured on text; name prepared data with --data")
            checkpoint, data = self._opened()
            assert data is not None
            plot_reach(checkpoint, target, data, WINDOWS if self.windows is None else self.windows, self.seq_len)
        print(target)

    def _default_target(self) -> Path:
        name = f"{self.what}.png"
        is_run = self.what in ("loss", "bench") or (self.source / "checkpoints").is_dir()
        # A checkpoint directory holds what its checksums name, and nothing else.
        return self.source / name if is_run else self.source.with_name(f"{self.source.stem}-{name}")

    def _opened(self) -> tuple[Checkpoint, Dataset | None]:
        checkpoint, data = convert.read(self.source), self.data and open_data(self.data)
        if data is not None:
            require_same_tokenizer(checkpoint, data, self.source)
        return checkpoint, data


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = RunDir(path).metrics()
    if not lines:
        raise ValueError(f"{path} holds no metrics.jsonl of a run; name a directory that `liquidnet train` wrote")
    return lines


def plot_loss(metrics: Sequence[dict[str, Any]], target: Path, reference: Sequence[dict[str, Any]] = ()) -> None:
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
        for backend, colour in COLOURS.items():
            own = [line if line["backend"] == backend else {**line, name: float("nan")} for line in train]
            label = f"training, {backend}" if any(line["backend"] == backend for line in train) else None
            axes.plot(*_curve(own, name), color=colour, linewidth=0.8 if name == "loss" else 1.6, label=label)
    if evaluations:
        loss_axes.plot(*_curve(evaluations, "val_loss"), "ko-", markersize=3, linewidth=1.0, label="validation")
    for before, after in pairwise(train):
        if _where(before) != _where(after):
            _mark(loss_axes, rate_axes, before["step"], f"{_where(before)} → {_where(after)}")
    loss_axes.set(ylabel="loss (nats a token)")
    rate_axes.set(xlabel="optimizer step", ylabel="learning rate", ylim=(0, None))
    rate_axes.locator_params(axis="y", nbins=4)
    if train or evaluations:
        loss_axes.legend(frameon=False)
    write_picture(figure, target)


def _curve(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[name] for line in lines]


def _mark(loss_axes: Any, rate_axes: Any, step: int, text: str) -> None:
    for axes in (loss_axes, rate_axes):
        axes.axvline(step, color="grey", linestyle="--", linewidth=1.0)
    loss_axes.annotate(
        text, (step, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", va="top",
        fontsize=9,
    )  # fmt: skip


def _where(line: dict[str, Any]) -> str:
    # Lines of runs that were started before there could be several processes do not say how many.
    processes = line.get("processes", 1)
    return line["backend"] if processes == 1 else f"{line['backend']} x {processes}"
