"""The processes of a run: how they agree, wait for each other and fail together.

A backend's `ParallelContext` says who they are and how values travel between them (`all_gather`); the rest follows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from spec.data import WHOLE, BatchShard

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together.

    Args:
        rank: number of this process.
        size: how many there are.
        share: this process's part of every global batch.
        sharded: the parameters are cut in parts instead of copied.
    """

    rank: int = 0
    size: int = 1
    shard: BatchShard = WHOLE
    sharded: bool = False

    @property
    def parts_of_rows(self) -> int:
        """Into how many parts this process cuts its rows, computed side by side."""
        return 1

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of ranks: allgather of MPI, for any value that can be pickled."""
        assert self.size == 1, "a backend's ParallelContext says how values travel"
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag if self.size == 1 else self.total(float(flag)) > 0.0

    def total(self, number: float) -> float:
        """The sum over all processes."""
        # In one order: all must decide alike.
        return sum(self.all_gather(number))

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process, in every process; its errors too."""
        if self.size == 1:
            return make()
        told: Any = None
        with self.raise_together():
            if self.rank == 0:
                told = make()
        return self.all_gather(told)[0]

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """What fails inside in one process fails in all of them; the first one says why.

        Raises:
            ValueError: another process failed; else, in the first one, its own error.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # whatever it is: the others must not wait for this process for ever
            error = caught
        told = self.all_gather(None if error is None else str(error) or type(error).__name__)
        failed = [f"process {rank} of {self.size}: {told[rank]}" for rank in range(self.size) if told[rank] is not None]
        if failed:
            self.leave_it_to_the_first(2)
            raise ValueError(failed[0]) if error is None else error

    def leave_it_to_the_first(self, code: int) -> None:
        """In every process but the first: exit with the code, once the first one has ended.

        What started them ends whoever is left as soon as one process has gone; the first one has something to say
        before.
        """
        if self.rank > 0:
            with suppress(RuntimeError):  # of the connection, which ends with the first process
                self.all_gather(None)
            sys.exit(code)

    def lost(self, error: BaseException) -> bool:
        """Whether the error says that another process is gone."""
        return False
