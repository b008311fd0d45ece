"""Both backends behind one adapter: NumPy in, NumPy out. Imported without either, and without pytest.

    backend = adapters.load("jax")  # adapters/torch.py or adapters/jax.py: the same functions
    states, last = backend.scan(decay, drive, method="chunked")

Scans and gates compute in the dtype of their arrays, models in `compute_dtype`. JAX computes in float64 only in a
process that was started for it: such calls go to one persistent worker.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import numpy as np

FRAMEWORKS = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}
SCAN_RESULTS = ("states", "last", "decay gradient", "drive gradient", "state gradient")
LOSS_RESULTS = ("nats", "hidden gradient", "embedding gradient")


def missing(name: str) -> str | None:
    """Why a backend cannot be loaded here, or None."""
    absent = [package for package in FRAMEWORKS[name] if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


def load(name: str) -> Any:
    """The adapter of a backend, a module."""
    return importlib.import_module(f"parity.proof.adapters.{name}")


def load_module(name: str, module: str) -> Any:
    """A module of the backend itself: `load_module("torch", "ops.cross_entropy")` is torch_impl.ops.cross_entropy."""
    return importlib.import_module(f"{name}_impl.{module}")


@cache
def refusal(name: str, method: str) -> str | None:
    """Why a scan method does not run on this machine: the words of its NotImplementedError; None where it runs."""
    one = np.ones((1, 1, 1), np.float32)
    try:
        load(name).scan(one, one, method=method)
    except NotImplementedError as error:
        return str(error)
    return None


def real(array: np.ndarray | None, compute_dtype: str) -> np.ndarray | None:
    """The array in the dtype that a model's states have."""
    return None if array is None else array.astype(np.float64 if compute_dtype == "float64" else np.float32)


@contextmanager
def chunk_logits(loss_module: Any, size: int | None) -> Iterator[None]:
    """Few logits a chunk, so that a small model's loss takes several chunks; None leaves the usual number."""
    usual = loss_module.CHUNK_LOGITS
    loss_module.CHUNK_LOGITS = size or usual
    try:
        yield
    finally:
        loss_module.CHUNK_LOGITS = usual


def float64_elsewhere(function: Any) -> Any:
    """Sends a call of adapters/jax.py that is in float64 to the worker, unless this process computes in float64."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        doubles = any(isinstance(x, np.ndarray) and x.dtype == np.float64 for x in args)
        if (doubles or kwargs.get("compute_dtype") == "float64") and not _computes_in_float64():
            worker = _worker()  # before the block: what multiprocessing starts with it unblocks the signal
            with _deaf_to_ctrl_c():
                result = worker.submit(_call, function.__name__, args, kwargs)
            return result.result()
        return function(*args, **kwargs)

    return call


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process that is started here is ended by this one, not by the Ctrl-C that a terminal sends to both."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_worker() -> None:
    """End the float64 process, if there is one."""
    if _worker.cache_info().currsize:
        _worker().shutdown(cancel_futures=True)
        _worker.cache_clear()


def _computes_in_float64() -> bool:
    import jax

    return jax.config.jax_enable_x64


@cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker)


def _start_worker() -> None:
    """Runs first in the worker; its code need not be fast, and is compiled without optimisation in half the time."""
    os.environ["JAX_ENABLE_X64"] = "1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed closes no queue: the worker would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return getattr(load("jax"), name)(*args, **kwargs)
