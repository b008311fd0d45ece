"""What this machine does, as ratios measured side by side in one run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from spec.config import LiquidNetConfig, TrainingConfig
from spec.data import Batch
from spec.files import new_file
from tools import backends

SHAPE = (8, 512, 384)
NANO = LiquidNetConfig(vocab_size=257, d_model=128, d_ff=344, n_layers=4, max_seq_len=64)


@dataclass(frozen=True)
class Bench:
    """Time the scans against one pass over memory, and the train step of nano on every backend installed.

    All candidates are timed in turn, round after round, and each is reported by its median: a busy moment of
    the machine hits all of them. Only the ratios mean something on another machine.
    """

    rounds: int = 15
    """Rounds to take medians over."""
    json: Path | None = None
    """Write the result to this file too."""

    def run(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}")
        scans, steps = {"one memory pass": _memory_pass()}, {}
        for name in backends.installed():
            scans |= _SCANS[name]()
            steps[f"{name} train step"] = _train_step(name)
        scan_seconds, step_seconds = _medians(scans, self.rounds), _medians(steps, self.rounds)
        tokens = TrainingConfig().batch_size * TrainingConfig().seq_len
        result = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))},
            "scan": {
                name: {
                    "milliseconds": 1e3 * seconds,
                    "times_one_memory_pass": seconds / scan_seconds["one memory pass"],
                }
                for name, seconds in scan_seconds.items()
            },
            "train": {
                name: {"milliseconds": 1e3 * seconds, "tokens_per_second": tokens / seconds}
                for name, seconds in step_seconds.items()
            },
        }
        _show(result)
        if self.json is not None:
            with new_file(self.json) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n")


def _medians(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate, interleaved, after two calls that compile and warm up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for measured in range(-2, rounds):
        for name, call in candidates.items():
            started = time.perf_counter()
            call()
            if measured >= 0:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _memory_pass() -> Callable[[], None]:
    """Two arrays read and one written, in NumPy: what any scan must move at least."""
    decay, drive, out = *_inputs(), np.empty(SHAPE, np.float32)

    def call() -> None:
        np.add(decay, drive, out=out)

    return call


def _inputs() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.random(SHAPE, np.float32), generator.standard_normal(SHAPE, np.float32)


def _torch_scans() -> dict[str, Callable[[], None]]:
    """Every torch method, forward alone and forward with backward."""
    import torch

    from torch_impl.scan import METHODS, scan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    decay, drive = (torch.from_numpy(array).to(device).requires_grad_() for array in _inputs())
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward(method: str) -> None:
        with torch.no_grad():
            scan(decay, drive, method=method)
        wait()

    def both(method: str) -> None:
        torch.autograd.grad(scan(decay, drive, method=method)[0].sum(), (decay, drive))
        wait()

    return _named("torch", METHODS, forward, both)


def _jax_scans() -> dict[str, Callable[[], None]]:
    """Every JAX method, forward alone and forward with backward."""
    import jax

    from jax_impl.scan import METHODS, scan

    decay, drive = (jax.device_put(array) for array in _inputs())
    forward = jax.jit(lambda decay, drive, method: scan(decay, drive, method=method)[0], static_argnums=2)
    both = jax.jit(
        jax.grad(lambda decay, drive, method: scan(decay, drive, method=method)[0].sum(), (0, 1)), static_argnums=2
    )
    return _named(
        "jax",
        METHODS,
        lambda method: jax.block_until_ready(forward(decay, drive, method)),
        lambda method: jax.block_until_ready(both(decay, drive, method)),
    )


_SCANS = {"torch": _torch_scans, "jax": _jax_scans}


def _named(backend: str, methods: Iterable[str], forward: Any, both: Any) -> dict[str, Callable[[], None]]:
    calls = {f"{backend} {method} forward": partial(forward, method) for method in methods}
    return calls | {f"{backend} {method} forward + backward": partial(both, method) for method in methods}


def _train_step(backend: str) -> Callable[[], None]:
    """A step of nano at its recipe's batch, optimizer included."""
    training = TrainingConfig()
    engine = backends.load(backend, "train").Engine(NANO, training)
    text = np.random.default_rng(0).integers(256, size=(training.batch_size, training.seq_len + 1), dtype=np.int32)
    batch = Batch(text[:, :-1].copy(), text[:, 1:].copy(), np.zeros((training.batch_size, training.seq_len), bool))

    def call() -> None:
        engine.train_step(batch, training.peak_lr)

    return call


def _show(result: dict[str, Any]) -> None:
    b, t, d = SHAPE
    scans = Table("scan", "ms", "memory passes", title=f"scan, b {b}, t {t}, d {d}, float32")
    for name, row in result["scan"].items():
        scans.add_row(name, f"{row['milliseconds']:.2f}", f"{row['times_one_memory_pass']:.1f}")
    steps = Table("train step", "ms", "tokens/s", title="nano, 12 x 64 tokens, float32")
    for name, row in result["train"].items():
        steps.add_row(name, f"{row['milliseconds']:.1f}", f"{row['tokens_per_second']:,.0f}")
    console = Console()
    console.print(scans)
    console.print(steps)
