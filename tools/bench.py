"""What this machine does, as ratios measured side by side in one run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from parity.interpreted import is_slow
from spec.config import LiquidNetConfig, TrainingConfig, require_integer
from spec.files import new_file
from spec.presets import RECIPES, preset
from tools import backends, bench_gpu, bench_model, bench_states
from tools.bench_clock import medians
from tools.bench_sections import Sizes
from tools.bench_training import random_batch
from tools.refusals import require_new_or_file

SHAPE = (8, 512, 384)
STATES = bench_states.Sizes()
NANO = LiquidNetConfig(vocab_size=257, d_model=128, d_ff=344, n_layers=4, max_seq_len=64)


@dataclass(frozen=True)
class Bench:
    """Time the scans against one pass over memory, and the train step of nano on every backend installed.

    All candidates are timed in turn, round after round, and each is reported by its median: a busy moment of
    the machine hits all of them. Only the ratios mean something on another machine.

    With --liquid-ssm: the two methods for the states of a Liquid SSM, over the length of a row. With --device cuda:
    everything there is on one GPU, in GB/s against a measured copy and in tokens a second, beside
    the peers that are installed; exit code 1 where something failed. With --model: nothing is timed; the least time a
    train step can take on known devices, from counted bytes and FLOPs.
    """

    rounds: int = 15
    """Rounds to take medians over."""
    json: Path | None = None
    """Write the result to this file too."""
    device: str = "cpu"
    """cpu: the quick comparison of backends; cuda: everything on the GPU."""
    model: bool = False
    """Print the modelled step time and where each number comes from; needs no backend and no GPU."""
    liquid_ssm: bool = False
    """Compare the methods for the states of a Liquid SSM instead: minutes."""
    preset: str | None = None
    """Of the model that --model or --device cuda is about; small by default."""
    batch_size: int | None = None
    """Sequences a step there; the preset's by default."""
    seq_len: int | None = None
    """Tokens a sequence there; the preset's by default."""

    def run(self) -> None:
        require_new_or_file(self.json, "--json")
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}")
        if self.model and self.device != "cpu":
            raise ValueError("--model times nothing: leave out --device, or --model")
        if self.liquid_ssm and (self.model or self.device != "cpu"):
            raise ValueError("--liquid-ssm is a comparison of its own: leave out --model and --device")
        if not self.model:
            bench_gpu.require_device(self.device)
        name, config, training = self._recipe()
        if self.model:
            result = bench_model.modelled(name, config, training.batch_size, training.seq_len)
            bench_model.show(result)
        elif self.liquid_ssm:
            result = bench_states.compare(self.rounds, STATES, lambda line: print(line, file=sys.stderr))
            bench_states.show(result, STATES)
        elif self.device == "cuda":
            sizes = Sizes(config, replace(training, compute_dtype="bfloat16"))
            result = bench_gpu.measured("cuda", self.rounds, sizes, lambda section: print(section, file=sys.stderr))
            bench_gpu.show(result)
        else:
            result = self._compare()
            _show(result)
        if self.json is not None:
            with new_file(self.json) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n")
        if result.get("errors"):
            sys.exit(1)

    def _recipe(self) -> tuple[str, LiquidNetConfig, TrainingConfig]:
        """The preset, and its recipe with the batch that was asked for."""
        asked = {"batch_size": self.batch_size, "seq_len": self.seq_len}
        given = {name: value for name, value in asked.items() if value is not None}
        if not self.model and self.device == "cpu" and (given or self.preset is not None):
            raise ValueError("--preset, --batch-size and --seq-len go with --model or --device cuda")
        name = "small" if self.preset is None else self.preset
        config = preset(name)
        if not isinstance(config, LiquidNetConfig):
            raise ValueError(f"preset {name} is a Liquid SSM, of which --liquid-ssm tells; choose one of a LiquidNet")
        for flag, value in given.items():
            require_integer(flag, value, 1)
        return name, config, replace(RECIPES[name], **given)

    def _compare(self) -> dict[str, Any]:
        """The backends installed, side by side."""
        scans, steps = {"one memory pass": _memory_pass()}, {}
        for name in backends.installed():
            scans |= _SCANS[name]()
            steps[f"{name} train step"] = _train_step(name)
        scans, refused = _running(scans)
        scan_seconds = medians(scans, self.rounds, "timing scans")
        step_seconds = medians(steps, self.rounds, "timing train steps")
        tokens = TrainingConfig().batch_size * TrainingConfig().seq_len
        return {
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
            "not_run": refused,
        }


def _running(candidates: dict[str, Callable[[], None]]) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """The candidates that run on this machine, and why the others do not, in their own words."""
    refused: dict[str, str] = {}
    for name, call in candidates.items():
        try:
            call()
        except NotImplementedError as reason:
            refused[name] = str(reason)
    return {name: call for name, call in candidates.items() if name not in refused}, refused


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

    def run(program: Any, method: str) -> None:
        if is_slow("jax", method):
            raise NotImplementedError("interpreted here, which says nothing of a TPU")
        jax.block_until_ready(program(decay, drive, method))

    return _named("jax", METHODS, partial(run, forward), partial(run, both))


_SCANS = {"torch": _torch_scans, "jax": _jax_scans}


def _named(backend: str, methods: Iterable[str], forward: Any, both: Any) -> dict[str, Callable[[], None]]:
    calls = {f"{backend} {method} forward": partial(forward, method) for method in methods}
    return calls | {f"{backend} {method} forward + backward": partial(both, method) for method in methods}


def _train_step(backend: str) -> Callable[[], None]:
    """A step of nano at its recipe's batch, optimizer included."""
    training = TrainingConfig()
    engine = backends.load(backend, "train").Engine(NANO, training)
    batch = random_batch(NANO, training.batch_size, training.seq_len)

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
    for name, reason in result["not_run"].items():
        console.print(f"  {name}: not run: {reason}", style="dim", markup=False, soft_wrap=True)
    console.print(steps)
