"""Every flag of `train` reaches what it sets: settings, engine, schedule, checkpoints, evaluations and traces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity.suite.support.flags import Own, Row, Typed, require_seen, run
from spec.checkpoint.format import Checkpoint, list_checkpoints, write_checkpoint
from spec.init import initial_parameters
from spec.inputs import IGNORED_LABEL
from spec.optimizer import moment_paths
from spec.presets import PRESETS, RECIPES
from spec.runtime.parallel import ParallelContext
from spec.schedule import learning_rate
from tools.cli import backends
from tools.training import train, trainer

HERE = backends.installed()
pytestmark = pytest.mark.skipif(not HERE, reason="needs a backend")
BACKEND = HERE[0] if HERE else "torch"
SMALL = {"--d-model": ("8",), "--d-ff": ("12",), "--n-layers": ("1",), "--batch-size": ("3",), "--seq-len": ("10",),
         "--steps": ("4",), "--warmup-steps": ("0",), "--eval-windows": ("2",)}  # fmt: skip
Found = dict[str, Any]


class StubEngine:
    """An engine that computes nothing, and writes down what it is asked for."""

    name, method = BACKEND, "chunked"
    context = ParallelContext()

    def __init__(self, found: Found, config: Any, training: Any, *how: Any):
        self.config, self.training, self.found = config, training, found
        found |= {f"model.{name}": value for name, value in asdict(config).items()}
        found |= {f"training.{name}": value for name, value in asdict(training).items()}
        found |= dict(zip(("method", "remat", "compile", "micro_batch", "context"), how, strict=True))
        found |= {"rates": [], "tokens": [], "rows": [], "profiled": [], "loaded": None, "in parts": False}
        found["evaluated labels"] = 0
        self.nats = 9.0

    def train_step(self, batch: Any, lr: float) -> tuple[float, float]:
        self.found["rates"].append(lr)
        self.found["tokens"].append(batch.tokens)
        return 1.0, 1.0

    def evaluate(self, batch: Any, states: Any = None) -> tuple[float, Any]:
        self.found["rows"].append(len(batch.tokens))
        self.found["evaluated labels"] += int((batch.labels != IGNORED_LABEL).sum())
        # Never better than before, so that no checkpoint is kept for being the best.
        self.nats += 1.0
        return self.nats, states

    def load(self, parameters: Any, moments: Any, step: int) -> None:
        self.found["loaded"] = float(parameters["embedding.weight"][0, 0])

    def dump(self) -> tuple[Any, Any]:
        parameters = initial_parameters(self.config, 0)
        paths = moment_paths(self.config, self.training)
        return parameters, {
            name: {path: np.zeros_like(parameters[path]) for path in own} for name, own in paths.items()
        }

    def save_shards(self, directory: Path) -> Any:
        self.found["in parts"] = True
        return SimpleNamespace(done=lambda: True, result=lambda: None)

    def sampler(self) -> Any:
        return lambda tokens, states: (np.ones((1, self.config.vocab_size), np.float32), np.zeros((1, 1, 1)))

    @contextmanager
    def profile(self, directory: Path) -> Iterator[None]:
        self.found["profiled"].append(directory.name)
        yield

    def layout(self) -> str:
        return "nowhere"

    def environment(self) -> dict[str, Any]:
        return {}

    def extra_state(self) -> dict[str, Any]:
        return {}

    dump_states = load_states = load_extra_state = lambda *_: None


@pytest.fixture
def trained(monkeypatch, small_data, tmp_path):
    """Runs `train` with an engine that computes nothing; what arrived where."""
    found: Found = {}

    def engine(name: str, *given: Any) -> StubEngine:
        found["backend"] = name
        return StubEngine(found, *given)

    monkeypatch.setattr(trainer, "plot_loss", lambda *_: None)
    monkeypatch.setattr(train, "trusted_method", lambda backend, method, *_: method)
    for name in HERE:
        engines, parallel = (backends.load(name, f"training.{each}") for each in ("engine", "distributed"))
        monkeypatch.setattr(engines, "Engine", partial(engine, name))

        def initialize(kind: str, columns: int, timeout: float, mesh: str | None) -> ParallelContext:
            found.update(parallel=kind, columns=columns, timeout=timeout, mesh=mesh)
            return ParallelContext()

        monkeypatch.setattr(parallel, "initialize", initialize)
    opened = train.open_data

    def open_data(path: Path) -> Any:
        found["data"] = path.name
        return opened(small_data)

    monkeypatch.setattr(train, "open_data", open_data)
    runs = iter(range(100))

    def seen(typed: Mapping[str, Any]) -> Found:
        """None in place of words leaves out a flag that is given otherwise."""
        found.clear()
        out = tmp_path / (typed.get("--out") or (f"run{next(runs)}",))[0]
        given: dict[str, Any] = {"backend": (BACKEND,), "--data": ("data",), **SMALL, **typed, "--out": (str(out),)}
        run("train", {flag: after for flag, after in given.items() if after is not None})
        found["out"] = out.name
        found["kept"] = [int(path.name[-8:]) for path in list_checkpoints(out)]
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found["evaluated"] = [line["step"] for line in lines if "val_loss" in line]
        found["events"] = (out / "tensorboard").is_dir()
        written = json.loads((out / "config.json").read_text())
        found["asked to compile"], found["init_from"] = written["execution"]["compile"], written["init_from"]
        found["decay_from"] = written["decay_from"]
        found["steps"] = len(found["rates"])
        found["length"] = found["tokens"][0].shape if found["tokens"] else None
        return dict(found)

    return seen


def test_it_goes_on_from_the_newest_checkpoint(trained):
    first = trained({"--out": ("one",), "--stop-at": ("3",)})
    then = trained({"--out": ("one",), "--resume": ()})
    assert (first["steps"], then["steps"]) == (3, 1) and then["loaded"] is not None
    whole = trained({})
    assert first["rates"] + then["rates"] == whole["rates"]
    np.testing.assert_array_equal(first["tokens"] + then["tokens"], whole["tokens"])


def test_a_trace_is_of_some_steps_after_the_start_of_the_segment(trained):
    """Those after a resume: its first ones compile again."""
    long = {"--steps": ("30",), "--out": ("one",)}
    assert trained({**long, "--stop-at": ("5",), "--profile": ()})["profiled"] == []
    assert trained({**long, "--stop-at": ("29",), "--resume": ()})["profiled"] == []
    assert trained({**long, "--out": ("two",), "--stop-at": ("7",)})["steps"] == 7
    again = trained({**long, "--out": ("two",), "--resume": (), "--profile": ()})
    assert again["profiled"] == [f"step_{step:08d}" for step in (18, 19, 20)]


def test_windows_are_as_many_tokens_of_a_stream(trained):
    flags = {"--eval-windows": ("3",), "--seq-len": ("10",)}
    for more in ({}, {"--stream": ()}):
        assert trained({**flags, **more})["evaluated labels"] == 30


def test_weights_are_taken_from_elsewhere(trained, tmp_path, monkeypatch):
    config = replace(PRESETS["nano"], vocab_size=257, d_model=8, d_ff=12, n_layers=1, max_seq_len=99)
    parameters = {path: array + np.float32(0.5) for path, array in initial_parameters(config, 1).items()}
    state = {"step": 4, "samples_consumed": 0, "tokens": 0, "seed": 0}
    write_checkpoint(tmp_path / "weights", Checkpoint(config, parameters, state=state))
    found = trained({"--init-from": (str(tmp_path / "weights"),)})
    assert found["loaded"] == parameters["embedding.weight"][0, 0] and found["steps"] == 4
    # The run says where they were, wherever it goes on.
    monkeypatch.chdir(tmp_path)
    found = trained({"--init-from": ("weights",)})
    assert found["loaded"] is not None and found["init_from"] == str(tmp_path / "weights")
    assert trained({})["loaded"] is None


def test_a_decay_goes_on_from_a_checkpoint(trained, tmp_path):
    stable = trained({"--out": ("one",), "--schedule": ("wsd",), "--steps": ("40",), "--stop-at": ("3",)})
    found = trained(
        {"--out": ("two",), "--steps": None, "--decay-from": (str(tmp_path / "one"),), "--decay-steps": ("2",)}
    )
    assert found["loaded"] is not None and found["decay_from"] == str(list_checkpoints(tmp_path / "one")[-1])
    whole = trained({"--schedule": ("wsd",), "--steps": ("5",), "--decay-steps": ("2",)})
    assert stable["rates"] + found["rates"] == whole["rates"]
    np.testing.assert_array_equal(stable["tokens"] + found["tokens"], whole["tokens"])
    assert found["kept"] == [3, 5]


@pytest.mark.skipif("torch" not in HERE, reason="JAX always compiles")
def test_what_is_asked_for_outweighs_what_the_device_would_have(trained, monkeypatch):
    devices = backends.load("torch", "ops.devices")
    torch = {"backend": ("torch",)}
    assert not trained(torch)["compile"] and trained({**torch, "--compile": ()})["compile"]
    monkeypatch.setattr(devices, "default_device", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(devices, "HAS_TRITON", True)
    assert trained(torch)["compile"] and not trained({**torch, "--no-compile": ()})["compile"]
    assert trained({**torch, "--no-compile": ()})["asked to compile"] is False


WSD = replace(RECIPES["nano"], warmup_steps=0, steps=4, schedule="wsd")
ROWS: list[Row | Own] = [
    Row("backend", (HERE[-1] if len(HERE) > 1 else "jax",), "backend", "jax"),
    Row("--data", ("others",), "data", "others"),
    Row("--out", ("there",), "out", "there"),
    Row("--preset", ("small",), "training.peak_lr", RECIPES["small"].peak_lr),
    Row("--d-model", ("16",), "model.d_model", 16),
    Row("--d-ff", ("24",), "model.d_ff", 24),
    Row("--n-layers", ("3",), "model.n_layers", 3),
    Row("--steps", ("5",), "steps", 5),
    Row("--total-tokens", ("190",), "training.steps", 6),
    Row("--stop-at", ("2",), "kept", [2]),
    Row("--batch-size", ("5",), "length", (5, 10)),
    Row("--seq-len", ("7",), "length", (3, 7)),
    Row("--seq-len", ("7",), "model.max_seq_len", 7),
    Row("--stream", (), "training.stream", True),
    Row("--lr", ("0.02",), "training.peak_lr", 0.02),
    Row("--peak-lr", ("0.03",), "training.peak_lr", 0.03),
    Row("--lr", ("0.02",), "first rate", learning_rate(0, replace(RECIPES["nano"], warmup_steps=0, peak_lr=0.02))),
    Row("--warmup-steps", ("2",), "first rate", learning_rate(0, replace(RECIPES["nano"], warmup_steps=2))),
    Row("--optimizer", ("muon",), "training.optimizer", "muon"),
    Row("--momentum", ("0.9",), "training.momentum", 0.9),
    Row("--newton-schulz-dtype", ("bfloat16",), "training.newton_schulz_dtype", "bfloat16"),
    Row("--schedule", ("wsd",), "rates", [learning_rate(step, WSD) for step in range(4)]),
    Row("--decay-steps", ("3",), "training.decay_steps", 3),
    Row("--decay-shape", ("sqrt",), "training.decay_shape", "sqrt"),
    Row("--weight-decay", ("0.37",), "training.weight_decay", 0.37),
    Row("--grad-clip", ("0.05",), "training.grad_clip", 0.05),
    Row("--seed", ("5",), "training.seed", 5),
    Row("--dtype", ("bfloat16",), "training.compute_dtype", "bfloat16"),
    Row("--method", ("sequential",), "method", "sequential"),
    Row("--remat", ("True",), "remat", True),
    Own("--compile", test_what_is_asked_for_outweighs_what_the_device_would_have),
    Own("--no-compile", test_what_is_asked_for_outweighs_what_the_device_would_have),
    Row("--micro-batch-size", ("2",), "micro_batch", 2),
    Row("--micro-batch-size", ("1",), "rows", [1, 1]),
    Row("--parallel", ("fsdp",), "parallel", "fsdp"),
    Row("--context-parallel", ("4",), "columns", 4),
    Row("--mesh", ("data=1",), "mesh", "data=1"),
    Row("--rank-timeout", ("33",), "timeout", 33.0),
    Row("--checkpoint-format", ({"torch": "dcp", "jax": "orbax"}[BACKEND],), "in parts", True),
    Row("--checkpoint-every", ("2",), "kept", [2, 4]),
    Row("--keep", ("2",), "kept", [3, 4]),
    Row("--eval-every", ("2",), "evaluated", [2, 4]),
    Row("--eval-windows", ("1",), "rows", [1]),
    Own("--eval-windows", test_windows_are_as_many_tokens_of_a_stream),
    Own("--init-from", test_weights_are_taken_from_elsewhere),
    Own("--decay-from", test_a_decay_goes_on_from_a_checkpoint),
    Own("--profile", test_a_trace_is_of_some_steps_after_the_start_of_the_segment),
    Row("--tensorboard", (), "events", True),
    Own("--resume", test_it_goes_on_from_the_newest_checkpoint),
]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if isinstance(row, Row)], ids=lambda row: f"{row.flag} {row.where}"
)
def test_train(row, trained):
    def seen(typed: Typed) -> Found:
        found = trained(typed)
        return {**found, "first rate": found["rates"][0]}

    wsd = {"--schedule": ("wsd",)}
    given = {
        # Both would give the length of the schedule.
        "--total-tokens": {"--steps": None, "--stop-at": ("2",)},
        # Of few checkpoints all are kept.
        "--keep": {"--checkpoint-every": ("1",)},
        "--decay-steps": wsd,
        "--decay-shape": wsd,
        "--momentum": {"--optimizer": ("muon",)},
        "--newton-schulz-dtype": {"--optimizer": ("muon",)},
    }
    require_seen(row, given.get(row.flag, {}), seen)
