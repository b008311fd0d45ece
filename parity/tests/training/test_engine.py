"""Both backends implement the typed seams of spec/runtime: the engine, its pending checkpoint, its processes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from parity.proof.adapters import missing
from spec import LiquidNetConfig
from spec.config import TrainingConfig
from spec.runtime.engine import Engine, PendingSave
from spec.runtime.parallel import ParallelContext

CONFIG = LiquidNetConfig(vocab_size=11, d_model=8, d_ff=12, n_layers=1, max_seq_len=8)
# What a backend may call in its own words: its arrays, its class, and a generator that contextlib wraps.
OWN_TYPES = {
    "torch": {"States": "Tensor", "PendingSave": "AsyncSave"},
    "jax": {"States": "Array", "PendingSave": "AsyncSave"},
}


@pytest.fixture(params=["torch", "jax"])
def backend(request) -> str:
    if reason := missing(request.param):
        pytest.skip(reason)
    return request.param


def module(backend: str, name: str) -> ModuleType:
    return importlib.import_module(f"{backend}_impl.{name}")


def methods(cls: type) -> Iterator[str]:
    yield from (name for name, value in vars(cls).items() if not name.startswith("_") and inspect.isfunction(value))


def differences(expected: type, found: type, own_types: dict[str, str]) -> list[str]:
    """Methods of `expected` that `found` does not define itself, or with other parameters, defaults or types."""
    wrong = []
    for name in methods(expected):
        if name not in vars(found):
            wrong.append(f"{name} is missing")
            continue
        want, have = str(inspect.signature(getattr(expected, name))), str(inspect.signature(getattr(found, name)))
        for general, special in own_types.items():
            want = want.replace(general, special)
        if hasattr(getattr(found, name), "__wrapped__"):
            have = have.replace("Iterator[", "AbstractContextManager[")
        if want != have:
            wrong.append(f"{name}{have}, not {want}")
    return wrong


def test_an_engine_implements_the_protocol(backend):
    cls = module(backend, "training.engine").Engine
    assert {"train_step", "evaluate", "load", "dump", "save_shards", "profile"} <= {*methods(Engine)}
    assert differences(Engine, cls, OWN_TYPES[backend]) == []
    engine = cls(CONFIG, TrainingConfig(batch_size=2, seq_len=4))
    assert isinstance(engine, Engine)
    assert engine.name == backend and engine.method != "auto" and isinstance(engine.context, ParallelContext)


def test_a_sharded_checkpoint_is_a_pending_save(backend):
    try:
        saves = module(backend, "checkpoint.sharded").AsyncSave
    except ImportError as error:
        pytest.skip(str(error))
    assert issubclass(saves, PendingSave) and differences(PendingSave, saves, {}) == []


def test_a_parallel_context_keeps_the_signatures_of_its_base(backend):
    cls = module(backend, "training.distributed").ParallelContext
    assert issubclass(cls, ParallelContext)
    inherited = [name for name in methods(ParallelContext) if name in vars(cls)]
    assert {"all_gather", "total", "is_peer_loss"} <= {*inherited}
    assert [one for one in differences(ParallelContext, cls, {}) if "missing" not in one] == []


class Kept:
    def train_step(self, batch: int, lr: float = 1.0) -> None: ...

    def profile(self, directory: Path) -> Iterator[None]: ...


class Renamed(Kept):
    def train_step(self, batch: int, rate: float = 1.0) -> None: ...

    @contextmanager
    def profile(self, directory: Path) -> Iterator[None]:
        yield


class Retyped(Kept):
    def train_step(self, batch: int, lr: int = 1.0) -> None: ...


def test_a_planted_difference_is_found():
    assert differences(Kept, Kept, {}) == []
    assert [one.partition("(")[0] for one in differences(Kept, Renamed, {})] == ["train_step", "profile"]
    assert [one.partition("(")[0] for one in differences(Kept, Retyped, {})] == ["train_step", "profile is missing"]


def test_threads_are_those_that_the_process_may_use(backend: str, monkeypatch: pytest.MonkeyPatch):
    """Not those of the machine: a run that goes on with others is told that its bits may differ."""
    engine = module(backend, "training.engine").Engine(CONFIG, TrainingConfig(batch_size=1, seq_len=8))
    if backend == "torch":
        monkeypatch.setattr(module(backend, "training.engine").torch, "get_num_threads", lambda: 57)
    else:
        monkeypatch.setattr("os.sched_getaffinity", lambda process: {*range(57)})
    assert engine.environment()["threads"] == 57
