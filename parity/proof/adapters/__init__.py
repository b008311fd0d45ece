"""Both backends behind one adapter: NumPy in, NumPy out. Imported without either, and without pytest.

    backend = adapters.load("jax")  # the module adapters/torch.py or adapters/jax.py, twins
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, wraps
from types import ModuleType
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import numpy as np

from spec.mixers import families, unusable

FRAMEWORKS = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}
SCAN_RESULTS = ("states", "last", "decay gradient", "drive gradient", "state gradient")
GATES_RESULTS = ("decay", "drive", "gate", "pre gradient", "bias gradient")
MIXER_RESULTS = ("gated", "last", "pre gradient", "bias gradient", "state gradient")
LOSS_RESULTS = ("nats", "hidden gradient", "embedding gradient")
RESULTS: dict[str, tuple[str, ...]] = {
    "scan": SCAN_RESULTS,
    "gates": GATES_RESULTS,
    "mixer": MIXER_RESULTS,
    "loss": LOSS_RESULTS,
}
"""What an adapter's `vjp` gives of an operation: its outputs, then the gradients of its inputs."""

P = ParamSpec("P")
R = TypeVar("R")


def missing(name: str) -> str | None:
    """Why a backend cannot be loaded here, or None."""
    absent = [package for package in FRAMEWORKS[name] if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


def load(name: str) -> ModuleType:
    """The adapter of a backend; what its functions do stands in adapters/torch.py."""
    return importlib.import_module(f"parity.proof.adapters.{name}")


def load_module(name: str, module: str) -> ModuleType:
    """A module of the backend itself: `load_module("torch", "ops.cross_entropy")` is torch_impl.ops.cross_entropy."""
    return importlib.import_module(f"{name}_impl.{module}")


def tables(name: str) -> tuple[dict[str, tuple[str, ...]], dict[str, Callable], dict[str, Callable]]:
    """METHODS, LAYERS and OPERATIONS of a backend: what the modules of both have by the same names."""
    scan, losses, decode = (load_module(name, f"ops.{one}") for one in ("scan", "cross_entropy", "decode"))
    gated_scan, unfused = (load_module(name, f"ops.{one}") for one in ("gated_scan", "gated_scan.unfused"))
    mixers, layers, models = (load_module(name, one) for one in ("mixers", "layers", "model"))
    methods = {"scan": tuple(scan.METHODS), "loss": tuple(losses.METHODS), "decode": tuple(decode.METHODS)}
    # One from outside that cannot be imported must not stop the others: what is asked of it by name says why.
    broken = unusable(f"{name}_impl")
    usable = {key: one for key, one in families().items() if key not in broken}
    methods |= {one.operation: tuple(mixers.mixer_module(key).METHODS) for key, one in usable.items()}
    by_name = {
        "rms_norm": lambda config, dtype, _: layers.RMSNorm(config.d_model, config.norm_eps, dtype),
        "swiglu": lambda config, dtype, _: layers.SwiGLU(config, dtype),
        "mixer": lambda config, dtype, method: mixers.mixer_module(config).Mixer(config, dtype, method),
        "block": lambda config, dtype, method: models.Block(config, dtype, method),
    }
    operations = {
        "scan": lambda decay, drive, state, resets, padding, method: scan.scan(
            decay, drive, state, method, resets, padding
        ),
        "gates": unfused.gates,
        "mixer": lambda pre, bias, state, resets, padding, delta_min, method: gated_scan.gated_scan(
            pre, bias, delta_min, state, resets, padding, method
        ),
        "loss": lambda hidden, embedding, labels, method="auto": losses.cross_entropy(
            hidden, embedding, labels, embedding.dtype, method
        )[:1],
    }
    return methods, by_name, operations


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
def chunk_logits(loss_module: ModuleType, size: int | None) -> Iterator[None]:
    """Few logits a chunk, so that a small model's loss takes several chunks; None leaves the usual number."""
    with mock.patch.object(loss_module, "CHUNK_LOGITS", size or loss_module.CHUNK_LOGITS):
        yield


def float64_elsewhere(function: Callable[P, R]) -> Callable[P, R]:
    """Sends a call of adapters/jax.py that is in float64 to the worker, unless this process computes in float64."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if (_float64(args) or kwargs.get("compute_dtype") == "float64") and not _computes_in_float64():
            worker = _worker()  # before the block: what multiprocessing starts with it unblocks the signal
            with _without_sigint():
                result = worker.submit(_call, function.__name__, args, kwargs)
            return result.result()
        return function(*args, **kwargs)

    return call


def _float64(values: Sequence[object]) -> bool:
    """Whether there is a float64 array among the values or in a tuple of them."""
    return any(
        _float64(x) if isinstance(x, tuple) else isinstance(x, np.ndarray) and x.dtype == np.float64 for x in values
    )


@contextmanager
def _without_sigint() -> Iterator[None]:
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

    return bool(jax.config.read("jax_enable_x64"))


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


def _call(name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Any:
    return getattr(load("jax"), name)(*args, **kwargs)
