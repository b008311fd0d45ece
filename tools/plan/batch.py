"""The largest batch that fits a TPU slice: a line through two compiled steps, and what the compiler says of its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tools.cli.json_file import Json
from tools.plan.compile_step import CompiledStep, DoesNotFit, StepSpec

MOST = 1024
"""Times the rows known to fit: in small micro-batches memory hardly grows, and the line would meet it nowhere near."""


class BatchSearch:
    """Steps compiled with several numbers of rows a device: the peak of each that fits, and those that do not.

    Args:
        spec: the run; its batch is replaced.
        parts: devices that have different rows.
        compile: `compiled_step`, which may report its progress.
    """

    def __init__(self, spec: StepSpec, parts: int, compile: Callable[[StepSpec], CompiledStep]):
        self.spec, self.parts, self.compile = spec, parts, compile
        self.peaks: dict[int, float] = {}
        self.refused: set[int] = set()

    def fits(self, rows: int) -> bool:
        """Whether so many rows a device compile; each number is tried once."""
        if rows not in self.peaks and rows not in self.refused:
            training = replace(self.spec.training, batch_size=rows * self.parts)
            try:
                self.peaks[rows] = self.compile(replace(self.spec, training=training)).memory["peak"]
            except DoesNotFit:
                self.refused.add(rows)
        return rows in self.peaks

    def rows_at_capacity(self, capacity: float) -> int:
        """Rows at which the line through the smallest and the largest that fit meets the capacity."""
        low, high = min(self.peaks), max(self.peaks)
        slope = (self.peaks[high] - self.peaks[low]) / max(1, high - low)
        guess = high + int((capacity - self.peaks[high]) // slope) if slope > 0 else MOST * high
        return max(high, min(guess, MOST * high, min(self.refused, default=guess + 1) - 1))


def largest_batch(trials: BatchSearch, bisect: bool) -> Json:
    """The largest global batch that was found to fit, and how sure it is that no larger one does.

    Memory is linear in the rows but for what the compiler makes of it: where the line through two compiles meets the
    capacity, one more says whether that fits, and half the way back where it does not. `bisect` searches to the row.
    """
    training, chips = trials.spec.training, trials.spec.topology.chips
    rows = training.batch_size // trials.parts
    while rows and not trials.fits(rows):
        rows //= 2
    if not rows:
        return {"batch_size": 0, "tokens_per_chip": 0, "peak": 0.0, "how": "not one row a device fits"}
    trials.fits(rows // 2 or 2)
    most = MOST * max(trials.peaks)
    guess = trials.rows_at_capacity(trials.spec.topology.peaks.memory)
    while not trials.fits(guess):
        guess = (guess + max(trials.peaks)) // 2
    if bisect:
        while not trials.refused and max(trials.peaks) < most:
            trials.fits(min(most, max(trials.peaks) + max(1, max(trials.peaks) // 8)))
        while trials.refused and min(trials.refused) - max(trials.peaks) > 1:
            trials.fits((min(trials.refused) + max(trials.peaks)) // 2)
    best = max(trials.peaks)
    how = "compiled, fits; a line through two others says that it is about the last"
    if best + 1 in trials.refused:
        how = "compiled, fits; one row more a device does not"
    elif best == most:
        how = "compiled, fits; memory hardly grows with the batch, so more may"
    return {
        "batch_size": best * trials.parts,
        "tokens_per_chip": best * trials.parts * training.seq_len // chips,
        "peak": trials.peaks[best],
        "how": how,
    }
