"""The largest batch that fits a TPU slice: a line through two compiled steps, and what the compiler says of its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tools.plan.compile_step import Asked, Compiled, DoesNotFit

MOST = 1024
"""Times the rows known to fit: in small micro-batches memory hardly grows, and the line would meet it nowhere near."""


class Tried:
    """Steps compiled with several numbers of rows a device: the peak of each that fits, and those that do not.

    Args:
        asked: the run; its batch is replaced.
        parts: devices that have different rows.
        compile: `compiled_step`, which may tell of its progress.
    """

    def __init__(self, asked: Asked, parts: int, compile: Callable[[Asked], Compiled]):
        self.asked, self.parts, self.compile = asked, parts, compile
        self.peaks: dict[int, float] = {}
        self.refused: set[int] = set()

    def fits(self, rows: int) -> bool:
        """Whether so many rows a device compile; each number is tried once."""
        if rows not in self.peaks and rows not in self.refused:
            training = replace(self.asked.training, batch_size=rows * self.parts)
            try:
                self.peaks[rows] = self.compile(replace(self.asked, training=training)).memory["peak"]
            except DoesNotFit:
                self.refused.add(rows)
        return rows in self.peaks

    def where_full(self, capacity: float) -> int:
        """Rows at which the line through the smallest and the largest that fit meets the capacity."""
        low, high = min(self.peaks), max(self.peaks)
        slope = (self.peaks[high] - self.peaks[low]) / max(1, high - low)
        guess = high + int((capacity - self.peaks[high]) // slope) if slope > 0 else MOST * high
        return max(high, min(guess, MOST * high, min(self.refused, default=guess + 1) - 1))


def largest_batch(tried: Tried, search: bool) -> dict[str, Any]:
    """The largest global batch that was found to fit, and how sure it is that no larger one does.

    Memory is linear in the rows but for what the compiler makes of it: where the line through two compiles meets the
    capacity, one more says whether that fits, and half the way back where it does not. `search` bisects to the row.
    """
    training, chips = tried.asked.training, tried.asked.topology.chips
    rows = training.batch_size // tried.parts
    while rows and not tried.fits(rows):
        rows //= 2
    if not rows:
        return {"batch_size": 0, "tokens_per_chip": 0, "peak": 0.0, "how": "not one row a device fits"}
    tried.fits(rows // 2 or 2)
    most = MOST * max(tried.peaks)
    guess = tried.where_full(tried.asked.topology.peaks.memory)
    while not tried.fits(guess):
        guess = (guess + max(tried.peaks)) // 2
    if search:
        while not tried.refused and max(tried.peaks) < most:
            tried.fits(min(most, max(tried.peaks) + max(1, max(tried.peaks) // 8)))
        while tried.refused and min(tried.refused) - max(tried.peaks) > 1:
            tried.fits((min(tried.refused) + max(tried.peaks)) // 2)
    best = max(tried.peaks)
    how = "compiled, fits; a line through two others says that it is about the last"
    if best + 1 in tried.refused:
        how = "compiled, fits; one row more a device does not"
    elif best == most:
        how = "compiled, fits; memory hardly grows with the batch, so more may"
    return {
        "batch_size": best * tried.parts,
        "tokens_per_chip": best * tried.parts * training.seq_len // chips,
        "peak": tried.peaks[best],
        "how": how,
    }
