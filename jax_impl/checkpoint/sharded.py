"""Checkpoints of which every process writes and reads its part. Twin: torch_impl. Truth: spec/checkpoint/sharded.py.

Orbax writes them, into the directory `orbax` of a checkpoint, and reads them, onto whatever devices there are.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jax_impl.training.distributed import ParallelContext
from spec.checkpoint.files import require_utf8
from spec.checkpoint.sharded import ORBAX

try:
    import orbax.checkpoint as ocp
except ImportError:
    ocp: Any = None
else:
    # Orbax would log what it does, and of every error the traceback, among the lines of progress.
    logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


def _without_late_answers(found: sys.UnraisableHookArgs) -> None:
    # After a first error Orbax waits for nothing else, and TensorStore would print that nobody waits for its answers.
    if found.exc_traceback is None or found.exc_traceback.tb_frame.f_code.co_name != "call_soon_threadsafe":
        _usual_hook(found)


_usual_hook, sys.unraisablehook = sys.unraisablehook, _without_late_answers

# Less than `ParallelContext` waits for another process by default: the error is to be reported, not the silence.
TIMEOUT_SECONDS = 500
_LONGEST_REASON = 300


class AsyncSave:
    """Shards that are being written while training goes on.

    Args:
        tensors: by name, in JAX on any devices or in NumPy; copied to the host at once.
        directory: of the checkpoint; the same for every process.
        context: the processes of the run.

    Raises:
        NotImplementedError: Orbax is not installed.
        OSError: the disk is full or not writable.
    """

    def __init__(self, tensors: Mapping[str, Array | np.ndarray], directory: Path, context: ParallelContext):
        require_orbax(directory)
        assert context.size == jax.process_count(), "Orbax waits for every process that JAX knows"
        self._context, self._barriers, self._failed_alone = context, _Barriers(), False
        options = ocp.options.AsyncOptions(timeout_secs=TIMEOUT_SECONDS, barrier_sync_fn=self._barriers)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)
        try:
            self._checkpointer.save(directory.absolute() / ORBAX, args=ocp.args.PyTreeSave(dict(tensors)))
        except Exception as error:  # TensorStore raises ValueError for a full disk, and Orbax whatever comes up
            raise OSError(f"a part of the checkpoint was not written: {_reason(error)}") from error
        # Orbax says when it has finished only to those who wait.
        waiting = ThreadPoolExecutor(1, "checkpoint")
        self._future: Future[None] = waiting.submit(self._wait)
        waiting.shutdown(wait=False)

    def done(self) -> bool:
        """Whether all processes have written their parts."""
        return self._future.done()

    def result(self) -> None:
        # Asking each other, they notice one that is gone; Orbax's barriers would only after a long time.
        while self._context.any(not self._done_within(0.05)):
            pass
        error = self._future.exception()
        reasons = self._context.all_gather(None if error is None else (not self._failed_alone, _reason(error)))
        if failed := sorted(reason for reason in reasons if reason is not None):
            # What the others then fail with only follows from it.
            raise OSError(f"a part of the checkpoint was not written: {failed[0][1]}") from error

    def _done_within(self, seconds: float) -> bool:
        wait([self._future], seconds)
        return self._future.done()

    def _wait(self) -> None:
        try:
            self._checkpointer.wait_until_finished()
        finally:
            self._failed_alone = self._barriers.pass_all()
            self._checkpointer.close()


class _Barriers:
    """Where processes that write together wait for each other, twice: for all parts, and for what the first one makes.

    A process that fails goes through them nevertheless: else the others would wait until their time is over.
    """

    NUMBER = 2

    def __init__(self) -> None:
        self._wait, self._passed = ocp.multihost.get_barrier_sync_fn(), 0

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        self._passed += 1
        self._wait(key=f"checkpoint_{self._passed}", timeout_ms=timeout_ms)

    def pass_all(self) -> bool:
        """Pass every barrier that is left; whether that is all of them."""
        first = self._passed == 0
        while self._passed < self.NUMBER:
            with suppress(RuntimeError):  # the others did not come either
                self(key="", timeout_ms=1000 * TIMEOUT_SECONDS)
        return first


def read_shards(
    like: Mapping[str, jax.ShapeDtypeStruct], directory: Path, context: ParallelContext
) -> dict[str, Array]:
    """Each tensor, or this process's part of it, from the shards of any number of processes.

    Args:
        like: shape, dtype and sharding of each tensor by name; they need not be what was written.
        directory: of the checkpoint.
        context: the processes of the run, all of which read.

    Raises:
        ValueError: a tensor is missing, misshapen, too much or not finite.
        NotImplementedError: Orbax is not installed.
    """
    require_orbax(directory)
    assert context.size == jax.process_count()
    with _reading(directory):
        _require_same(like, _stored(directory))
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        kinds = {
            name: ocp.ArrayRestoreArgs(sharding=wanted.sharding or place, global_shape=wanted.shape, dtype=wanted.dtype)
            for name, wanted in like.items()
        }
        arrays = _restore(directory, kinds)
        _require_finite(arrays)
    return arrays


def read_whole(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor by name in NumPy, with the dtype it has in the checkpoint.

    Raises:
        ValueError: it cannot be read, or is larger than this machine's memory.
        NotImplementedError: Orbax is not installed.
    """
    require_orbax(directory)
    with _reading(directory):
        stored = _stored(directory)
        size = sum(math.prod(found.shape) * np.dtype(found.dtype).itemsize for found in stored.values())
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise ValueError(f"its tensors have {size:,} bytes, more than this machine has memory")
        return _restore(directory, {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored})


def require_orbax(directory: Path | None = None) -> None:
    """Raises NotImplementedError where Orbax is not installed, ValueError for a directory that it cannot open."""
    if ocp is None:
        raise NotImplementedError(
            "sharded checkpoints of JAX need orbax-checkpoint, which is not installed; pip install orbax-checkpoint"
        )
    if directory is not None:
        require_utf8(directory, "Orbax")


def _stored(directory: Path) -> dict[str, Any]:
    """Shape and dtype of each tensor by name."""
    return dict(ocp.PyTreeCheckpointHandler().metadata(directory.absolute() / ORBAX).tree)


def _restore(directory: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    # Not by a Checkpointer: where one process fails to read, the others would wait for it.
    args = ocp.args.PyTreeRestore(item=dict.fromkeys(kinds, 0), restore_args=kinds)
    return ocp.PyTreeCheckpointHandler().restore(directory.absolute() / ORBAX, args=args)


def _require_same(like: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, Any]) -> None:
    for name, wanted in like.items():
        if name not in stored:
            raise ValueError(f"tensor {name} is missing")
        if tuple(stored[name].shape) != wanted.shape:
            raise ValueError(f"tensor {name} has shape {tuple(stored[name].shape)}, not {wanted.shape}")
    if more := stored.keys() - like.keys():
        raise ValueError(f"tensor {min(more)} is not part of the model and its moments")


def _require_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        # Here, and not over all processes: those that failed to read would be waited for.
        if not all(np.isfinite(shard.data).all() for shard in array.addressable_shards):
            raise ValueError(f"tensor {name} holds a value that is not finite")


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # nothing narrower is promised for bytes that are not what Orbax wrote
        raise ValueError(f"checkpoint {directory}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of a message, without TensorStore's details in brackets."""
    text = f"the entry {error} is missing" if isinstance(error, KeyError) else str(error)
    line = re.sub(r" \[\w+='.*", "", text.strip().partition("\n")[0]) or type(error).__name__
    return line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON // 3]} ... {line[-_LONGEST_REASON:]}"
