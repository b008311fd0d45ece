"""Pictures of a run (losses and learning rates, half-lives, how far back it looks) and of what `bench` measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from spec.checkpoint.format import Checkpoint
from spec.data import Dataset, open_data
from tools import convert
from tools.cli.destination import require_new_or_file
from tools.plot.bench import plot_history, plot_scaling
from tools.plot.figure import require_picture
from tools.plot.half_lives import plot_half_lives
from tools.plot.loss import MetricsLine, plot_loss
from tools.plot.reach import WINDOWS, plot_reach
from tools.training.evaluate import require_same_tokenizer
from tools.training.run_dir import RunDir

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
        require_new_or_file(target, "--out", [self.source])
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
        return self.source / name if is_run else self.source.with_name(f"{self.source.stem}-{name}")

    def _opened(self) -> tuple[Checkpoint, Dataset | None]:
        checkpoint, data = convert.read(self.source), self.data and open_data(self.data)
        if data is not None:
            require_same_tokenizer(checkpoint, data, self.source)
        return checkpoint, data


def _metrics(path: Path) -> Sequence[MetricsLine]:
    lines = RunDir(path).metrics()
    if not lines:
        raise ValueError(f"{path} holds no metrics.jsonl of a run; name a directory that `liquidnet train` wrote")
    return lines
