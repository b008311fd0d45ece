"""The metrics of a run as TensorBoard's event files, on request: the numbers of metrics.jsonl, at the same steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCALARS = ("loss", "lr", "grad_norm", "tokens_per_second", "val_loss", "val_bpb")
FLUSH_SECONDS = 10


def require_tensorboard() -> None:
    """Raises ValueError, naming the command that installs it, where tensorboardX is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "--tensorboard needs tensorboardX, which is not installed; pip install 'liquidnet-dual[tensorboard]'"
        )


@contextmanager
def event_writer(directory: Path, step: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes one line of metrics.jsonl as events.

    Args:
        directory: of the event files.
        step: that this leg goes on from; TensorBoard forgets what an earlier leg wrote after it.
    """
    from tensorboardX import SummaryWriter

    # Two legs may start within a second, which is all that the name of a file tells otherwise.
    suffix = f".{step:08d}"
    writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=FLUSH_SECONDS, filename_suffix=suffix)

    def write(line: Mapping[str, Any]) -> None:
        for name in SCALARS:
            if name in line:
                writer.add_scalar(name, line[name], line["step"])
        if "sample" in line:
            # Text is read as Markdown there; indented, it stays as it is.
            writer.add_text("sample", "".join(f"    {row}\n" for row in line["sample"].splitlines()), line["step"])

    try:
        yield write
    finally:
        writer.close()
