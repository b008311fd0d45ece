"""The metrics of a run as TensorBoard's event files, on request: the numbers of metrics.jsonl, at the same steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.training.records import MetricsLine

SCALARS = ("loss", "lr", "grad_norm", "tokens_per_second", "val_loss", "val_bpb")
FLUSH_SECONDS = 10


def require_tensorboard() -> None:
    """Raises ValueError, naming the command that installs it, where tensorboardX is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "--tensorboard needs tensorboardX, which is not installed; pip install 'liquidnet-dual[tensorboard]'"
        )


@contextmanager
def event_writer(directory: Path, step: int) -> Iterator[Callable[[MetricsLine], None]]:
    """A function that writes one line of metrics.jsonl as events.

    Args:
        directory: of the event files.
        step: that this segment of the run goes on from; TensorBoard drops what an earlier one wrote after it.
    """
    from tensorboardX import SummaryWriter

    # Two segments may start within a second, which is all that the name of a file tells otherwise.
    suffix = f".{step:08d}"
    writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=FLUSH_SECONDS, filename_suffix=suffix)

    def write(line: MetricsLine) -> None:
        for name, value in line.items():
            if name in SCALARS:
                writer.add_scalar(name, value, line["step"])
        if (sample := line.get("sample")) is not None:
            # Text is read as Markdown there; indented, it stays as it is.
            writer.add_text("sample", "".join(f"    {row}\n" for row in sample.splitlines()), line["step"])

    try:
        yield write
    finally:
        writer.close()
