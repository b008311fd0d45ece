"""The processes of a run. Twin: torch_impl/parallel.py. Truth: spec/data.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from spec.data import WHOLE, Share

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes that train one model together. In JAX there is a single one so far.

    Args:
        rank: number of this process.
        size: how many there are.
        share: this process's part of every global batch.
        sharded: each process keeps a part of the parameters instead of a copy.
    """

    rank: int = 0
    size: int = 1
    share: Share = WHOLE
    sharded: bool = False

    def agree(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag

    def tell(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process, in every process; its errors too."""
        return make()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside in one process fails in all of them; the first one says why.

        Raises:
            ValueError: another process failed; else, in the first one, its own error.
        """
        yield

    def leave_it_to_the_first(self, code: int) -> None:
        """In every process but the first: exit with the code, once the first one has ended."""

    def lost(self, error: BaseException) -> bool:
        """Whether the error says that another process is gone."""
        return False

    def total(self, number: float) -> float:
        """The sum over all processes."""
        return number

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of ranks."""
        return [value]


def join(parallel: str = "ddp", context_parallel: int = 1, timeout: float = 600.0) -> World:
    """Join the processes that were started together.

    Args:
        parallel: `ddp`, each process has a copy of the parameters, or `fsdp`, a part of them.
        context_parallel: processes that cut each row in time between them.
        timeout: seconds to wait for another process before it counts as lost.

    Raises:
        ValueError: anything but one process with all of the model and all of the time.
    """
    if parallel != "ddp" or context_parallel != 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("JAX trains in one process so far; leave torchrun and its flags out, or use torch")
    return World()
