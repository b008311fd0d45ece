"""The processes of a run: which part each computes, how values travel between them, how they fail together.

A backend's `ParallelContext` adds its process groups or its mesh and says how values travel (`all_gather`); the rest
follows from that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn, TypeVar, cast

from spec.data import WHOLE, BatchShard

Value = TypeVar("Value")

MAX_TIMEOUT = 1e6


@dataclass(frozen=True)
class ParallelContext:
    """The processes that train one model together.

    Args:
        rank: number of this process.
        size: how many there are.
        shard: this process's part of every global batch.
        sharded: the parameters are sharded (FSDP) instead of replicated.
    """

    rank: int = 0
    size: int = 1
    shard: BatchShard = WHOLE
    sharded: bool = False

    @property
    def local_row_shards(self) -> int:
        """Into how many parts this process cuts its rows, computed side by side by its devices."""
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
        made: Value | None = None
        with self.raise_together():
            if self.rank == 0:
                made = make()
        return cast(Value, self.all_gather(made)[0])

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
        messages = self.all_gather(None if error is None else str(error) or type(error).__name__)
        failed = [f"process {rank} of {self.size}: {text}" for rank, text in enumerate(messages) if text is not None]
        if failed:
            self.exit_unless_first(2)
            raise ValueError(failed[0]) if error is None else error

    def exit_unless_first(self, code: int) -> None:
        """In every process but the first: exit with the code, once the first one has ended.

        A launcher ends whoever is left as soon as one process has gone; the first one has something to say before.
        """
        if self.rank > 0:
            with suppress(RuntimeError):  # of the connection, which ends with the first process
                self.all_gather(None)
            sys.exit(code)

    def is_peer_loss(self, error: BaseException) -> bool:
        """Whether the error says that another process is gone."""
        return False


def require_timeout(seconds: float) -> None:
    """Raises ValueError for a time to wait for another process that no library takes."""
    if not 1.0 <= seconds <= MAX_TIMEOUT:
        raise ValueError(f"--rank-timeout must be from 1 to {MAX_TIMEOUT:g} seconds, got {seconds:g}")


def exit_process(code: int) -> NoReturn:
    """End this process at once, its output written, without taking the interpreter down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
