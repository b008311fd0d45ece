"""Progress of long work: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """Progress in plain lines, one every half a minute."""

    def __init__(self, title: str, total: float, done: float) -> None:
        self._title, self._total, self._done, self._begun = title, total, done, done
        self._start = self._last_line = time.monotonic()

    def advance(self, amount: float) -> None:
        """This much more is done."""
        self._done += amount
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES and self._begun < self._done <= self._total:
            self._last_line = now
            left = (now - self._start) * (self._total - self._done) / (self._done - self._begun)
            print(f"{self._title}: {self._done / self._total:.0%}, {left:,.0f} s left", file=sys.stderr)

    def expect(self, total: float) -> None:
        """All of the work is this much."""
        self._total = total


class _TerminalBar(Bar):
    """The same on a terminal."""

    def __init__(self, title: str, total: float, done: float, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(title), total=total, completed=int(done))

    def advance(self, amount: float) -> None:
        self._progress.advance(self._task, amount)

    def expect(self, total: float) -> None:
        self._progress.update(self._task, total=total)


@contextmanager
def progress(title: str, total: float, done: float = 0) -> Iterator[Bar]:
    """Show how far the work of the block is.

    Args:
        title: what is being done.
        total: all of it, in any unit.
        done: what was done before.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{title} ...", file=sys.stderr)
        yield Bar(title, total, done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        yield _TerminalBar(title, total, done, shown)


def track(items: Sequence[T], title: str) -> Iterator[T]:
    """The items, each of which is about as much work as any other, and how far their reader is."""
    with progress(title, len(items)) as bar:
        for item in items:
            yield item
            bar.advance(1)


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what the block is doing, and for how long, where nobody knows how much there is to do.

    Args:
        text: what is being done; the function that the block gets changes it.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(escape(text), total=None)
        yield lambda now: shown.update(task, description=escape(now))
