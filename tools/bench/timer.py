"""Timing on any device: rounds in which all candidates take turns, medians, and what did not run with its reason."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tools.cli.errors import is_lack_of_memory
from tools.cli.json_file import Json

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Call = Callable[[], object]
Shape = tuple[int, ...]

ENOUGH_SECONDS = 1.5
"""A candidate that has been measured for so long, and three times, sits out the remaining rounds."""
KERNEL_ROUNDS = 4
"""Times the rounds that a kernel gets on a processor: what is measured in a moment wants more of them."""
FLUSHES = 4

Row = Json
"""One line of a table, as the JSON has it: what was timed, and `milliseconds`, or `not_run` or `error` with why not."""
Candidate = tuple[Row, Callable[[Row], Call]]
"""A row, and what makes the call that is timed; making it may add to the row."""


class NotRun(Exception):
    """A candidate that cannot be measured here, which is no fault: a peer that is missing, a method that refuses."""


def guarded(row: Row, make: Callable[[], T]) -> T | None:
    """What `make` returns, or None after noting in `row` why it was not run (`not_run`) or how it failed (`error`)."""
    try:
        return make()
    except (ImportError, NotImplementedError, NotRun) as reason:
        row["not_run"] = one_line(reason)
    # A failure of one candidate, whatever it is, costs its own row and no other; the exit code tells of it.
    except Exception as reason:
        if is_lack_of_memory(reason):
            row["not_run"] = f"out of memory: {one_line(reason)}"
        else:
            row["error"] = f"{type(reason).__name__}: {one_line(reason)}"
    return None


def one_line(reason: object) -> str:
    """The first 300 characters, without line breaks."""
    return " ".join(str(reason).split())[:300]


def ran(rows: Iterable[Row]) -> list[Row]:
    """The rows that were measured."""
    return [row for row in rows if "milliseconds" in row]


class Timer:
    """Seconds of calls on a device: CUDA events behind a cold cache, or the processor's clock.

    Args:
        device: `cpu`, which needs no torch, or `cuda`.
        rounds: rounds to take medians over.
        flush_bytes: read FLUSHES times between two calls: nothing of the next one's inputs is left in the L2 cache, and
            the processor queues the call meanwhile, about a millisecond, so that its own overhead is not measured.
    """

    def __init__(self, device: str, rounds: int, flush_bytes: int = 2**30):
        self.device, self.rounds = device, rounds
        self.cuda = device == "cuda"
        self.flush: torch.Tensor | None = None
        if self.cuda:
            import torch

            # Read, not written: lines that the cache must write back would be charged to the call measured.
            self.flush = torch.zeros(flush_bytes // 4, device=device)

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.cuda:
            import torch

            torch.cuda.synchronize(self.device)

    def kernels(self, calls: Sequence[tuple[Row, Call]]) -> None:
        """Put the median milliseconds of each call into its row: time on the device, inputs not in its cache."""
        if self.cuda:
            self._measure(calls, self._events, self.rounds)
        else:
            self._measure(calls, self._wall, KERNEL_ROUNDS * self.rounds)

    def steps(self, calls: Sequence[tuple[Row, Call]]) -> None:
        """Put the median milliseconds of each call into its row: time that a user waits, launches included."""
        self._measure(calls, self._wall, self.rounds)

    def candidates(self, candidates: Sequence[Candidate]) -> list[Row]:
        """The rows of `steps` that are made first; one that cannot be made says so, and the others are timed."""
        calls: list[tuple[Row, Call]] = []
        for row, make in candidates:
            call = guarded(row, partial(make, row))
            calls += [(row, call)] if call else []
        self.steps(calls)
        return [row for row, _ in candidates]

    def _measure(self, calls: Sequence[tuple[Row, Call]], seconds_of: Callable[[Call], float], rounds: int) -> None:
        times: list[list[float]] = [[] for _ in calls]
        first: dict[int, float | None] = {}
        # Two calls that compile and warm up, unmeasured; of what takes long, one.
        for measured in range(-2, rounds):
            for index, (row, call) in enumerate(calls):
                taken = times[index]
                if "error" in row or "not_run" in row or (len(taken) >= 3 and sum(taken) > ENOUGH_SECONDS):
                    continue
                if measured == -1 and (first[index] or 0.0) > ENOUGH_SECONDS:
                    continue
                seconds = guarded(row, partial(seconds_of, call))
                if measured >= 0 and seconds is not None:
                    taken.append(seconds)
                elif measured == -2:
                    first[index] = seconds
        for (row, _), taken in zip(calls, times, strict=True):
            if "error" not in row and "not_run" not in row:
                row["milliseconds"] = 1e3 * statistics.median(taken)
                row["rounds"] = len(taken)

    def _events(self, call: Call) -> float:
        import torch

        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        assert self.flush is not None
        for _ in range(FLUSHES):
            self.flush.sum()
        started.record()
        call()
        ended.record()
        self.wait()
        return 1e-3 * started.elapsed_time(ended)

    def _wall(self, call: Call) -> float:
        self.wait()
        started = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - started


def add_gb_per_s(rows: Iterable[Row]) -> None:
    """Add GB/s to every row that was measured and says how many bytes it moves."""
    for row in ran(rows):
        if "bytes" in row:
            row["gb_per_s"] = row["bytes"] / row["milliseconds"] / 1e6


def bandwidth(rows: Iterable[Row], copy: Row) -> None:
    """Add GB/s of the bytes that a job must move, and that as a fraction of the measured copy, to rows with both."""
    rows = [copy, *rows]
    add_gb_per_s(rows)
    for row in rows:
        if "gb_per_s" in row and "gb_per_s" in copy:
            row["of_copy"] = row["gb_per_s"] / copy["gb_per_s"]
