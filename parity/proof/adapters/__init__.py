"""Both backends behind one adapter: NumPy in, NumPy out. Imported without either, and without pytest.

    backend = adapters.load("jax")  # adapters/torch.py or adapters/jax.py: an `Adapter` each
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
from typing import Any, ParamSpec, Protocol, TypeVar, cast
from unittest import mock

import numpy as np

from spec.config import ModelConfig, TrainingConfig

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
"""What `Adapter.vjp` gives of an operation: its outputs, then the gradients of its inputs."""

Array = np.ndarray
Arrays = Mapping[str, np.ndarray]
P = ParamSpec("P")
R = TypeVar("R")


class Adapter(Protocol):
    """What a backend can be asked: adapters/torch.py and adapters/jax.py are one each.

    METHODS holds the methods of each operation that has several, ELEMENTARY the names of the library functions, and
    OPERATIONS the operations that `vjp` differentiates.
    """

    NAME: str
    METHODS: dict[str, tuple[str, ...]]
    ELEMENTARY: Mapping[str, Callable[..., object]]
    LAYERS: Mapping[str, Callable[..., object]]
    OPERATIONS: Mapping[str, Callable[..., object]]

    @staticmethod
    def scan(
        decay: Array,
        drive: Array,
        state: Array | None = None,
        method: str = "auto",
        resets: Array | None = None,
        padding: Array | None = None,
    ) -> tuple[Array, Array]:
        """(states, last state); None is passed on as None."""
        ...

    @staticmethod
    def vjp(
        operation: str,
        inputs: Sequence[Array],
        constants: Sequence[Array | None],
        output_gradients: Sequence[Array],
        chunk: int | None = None,
        **options: str | float,
    ) -> dict[str, Array]:
        """RESULTS of one of OPERATIONS: its outputs, and the gradients of its inputs.

        Args:
            operation: `scan`, `gates`, `mixer` or `loss`.
            inputs: what it is differentiated by.
            constants: its other arrays; None is passed on as None.
            output_gradients: of its outputs.
            chunk: the most logits a chunk of the loss.
            options: its other arguments.
        """
        ...

    @staticmethod
    def decay_gates(p: Array, delta_min: float) -> tuple[Array, Array]:
        """(decay, 1 - decay) in the dtype of p."""
        ...

    @staticmethod
    def elementary(name: str, x: Array) -> Array:
        """A function of the framework's library, one of ELEMENTARY."""
        ...

    @staticmethod
    def function_vjp(
        function: Callable[..., object],
        static: tuple[Any, ...],
        constants: Sequence[Array | None],
        output_gradients: Sequence[Array],
        *inputs: Array,
    ) -> tuple[Array, ...]:
        """The outputs of `function(backend, static, constants, *inputs)`, and the gradients of its inputs.

        Args:
            function: of a module, over the backend's arrays; its first argument is the backend's name.
            static: hashable values that a program is compiled for.
            constants: arrays that are not differentiated.
            output_gradients: of its outputs.
            inputs: what it is differentiated by.
        """
        ...

    @staticmethod
    def layer_vjp(
        name: str,
        config: ModelConfig,
        weights: Arrays,
        inputs: Sequence[Array],
        masks: Sequence[Array | None],
        gradients: Sequence[Array],
        method: str = "auto",
        compute_dtype: str = "float32",
    ) -> tuple[Sequence[Array], Sequence[Array], dict[str, Array]]:
        """(outputs, gradients of the inputs, gradients of the weights by path) of one of LAYERS."""
        ...

    @staticmethod
    def model(
        params: Arrays,
        config: ModelConfig,
        tokens: Array,
        states: Array | None = None,
        resets: Array | None = None,
        padding: Array | None = None,
        compute_dtype: str = "float32",
        side: Arrays | None = None,
        **options: str,
    ) -> tuple[Array, Array]:
        """(logits, final states); `side` is what the mixer reads besides, `options` those of the model's `build`."""
        ...

    @staticmethod
    def loss_and_gradients(
        params: Arrays,
        config: ModelConfig,
        tokens: Array,
        labels: Array,
        states: Array,
        resets: Array | None = None,
        padding: Array | None = None,
        final_state_gradient: Array | None = None,
        compute_dtype: str = "float32",
        chunk: int | None = None,
        side: Arrays | None = None,
        **options: str | bool,
    ) -> tuple[float, dict[str, Array], Array, Array]:
        """(loss, gradients by path, gradient of the initial states, final states).

        The gradients are those of loss + sum(final_state_gradient * final states). `chunk` is the most logits a chunk.
        """
        ...

    @staticmethod
    def adamw_steps(
        config: ModelConfig,
        training: TrainingConfig,
        parameters: Arrays,
        moments: Mapping[str, Arrays],
        steps_taken: int,
        gradients: Sequence[Arrays],
        rates: Sequence[float],
    ) -> tuple[dict[str, Array], dict[str, dict[str, Array]], list[float]]:
        """(parameters, moments, norms) after a clipped step of AdamW for each set of gradients and learning rate."""
        ...

    @staticmethod
    def initialize(config: ModelConfig, seed: int = 0) -> tuple[dict[str, Array], int]:
        """(parameters, num_parameters) of a new model."""
        ...

    @staticmethod
    def generate(params: Arrays, config: ModelConfig, prompt: Array, max_length: int, **sampling: float) -> Array:
        """The prompt and what follows it, by `LanguageModel.generate`."""
        ...

    @staticmethod
    def make_step(params: Arrays, config: ModelConfig, method: str = "auto") -> Callable[..., tuple[Array, Any]]:
        """The model as a step of generation."""
        ...


def missing(name: str) -> str | None:
    """Why a backend cannot be loaded here, or None."""
    absent = [package for package in FRAMEWORKS[name] if importlib.util.find_spec(package) is None]
    return f"{', '.join(absent)} is not installed" if absent else None


def load(name: str) -> Adapter:
    """The adapter of a backend, a module."""
    return cast(Adapter, importlib.import_module(f"parity.proof.adapters.{name}"))


def load_module(name: str, module: str) -> ModuleType:
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
