"""Train steps of both backends on a processor, beside a GPT-2 of equal size and beside their matrix products alone."""

from __future__ import annotations

from functools import partial
from typing import Any

from spec.config import TrainingConfig
from spec.parameters import num_parameters
from tools.bench.matmul import step_products
from tools.bench.sizes import Sizes, Training
from tools.bench.timer import Call, Clock, Row, guarded
from tools.bench.training import random_batch
from tools.cli import backends

EAGER, COMPILED = "torch eager", "torch compiled"
JAX, GPT2 = "jax", "GPT-2, "
TRANSFORMERS = "transformers GPT-2"


def train_steps(clock: Clock, sizes: Sizes) -> list[Row]:
    """Each configuration's candidates in turns, float32, optimizer included, and their matrix products alone."""
    rows: list[Row] = []
    for training in sizes.training:
        rows += _configuration(clock, sizes, training)
    if sizes.peers and sizes.mamba and "torch" in backends.installed():
        rows += _beside_mamba(clock, sizes.mamba)
    return rows


def _configuration(clock: Clock, sizes: Sizes, training: Training) -> list[Row]:
    tokens = training.rows * training.length
    made: list[tuple[Row, Any]] = []
    for backend in backends.installed():
        for compiled in sizes.compiled if backend == "torch" else (True,):
            name = JAX if backend == "jax" else COMPILED if compiled else EAGER
            made.append(({"name": name, "parameters": num_parameters(training.config)},
                         partial(_ours, backend, training, compiled)))  # fmt: skip
    if "torch" in backends.installed():
        for compiled in sizes.compiled:
            row: Row = {"name": GPT2 + (COMPILED if compiled else EAGER), "peer": True}
            made.append((row, partial(_gpt2, row, training, compiled)))
        if sizes.peers:
            row = {"name": TRANSFORMERS, "peer": True}
            made.append((row, partial(_transformers, row, training)))
    made += [({"name": name, "products": True}, make) for name, make in step_products(training).items()]
    calls: list[tuple[Row, Call]] = []
    for row, make in made:
        row |= {"what": training.name, "tokens": tokens}
        call = guarded(row, make)
        calls += [(row, call)] if call else []
    clock.steps(calls)
    rows = [row for row, _ in made]
    for row in (row for row in rows if "milliseconds" in row and "products" not in row):
        row["tokens_per_second"] = 1e3 * tokens / row["milliseconds"]
    return rows


def _ours(backend: str, training: Training, compiled: bool) -> Call:
    recipe = TrainingConfig(batch_size=training.rows, seq_len=training.length)
    engine = backends.load(backend, "training.engine").Engine(training.config, recipe, compile=compiled)
    batch = random_batch(training.config, training.rows, training.length)
    return lambda: engine.train_step(batch, recipe.peak_lr)


def _gpt2(row: Row, training: Training, compiled: bool) -> Call:
    from tools.bench import gpt2 as bench_gpt2

    model = bench_gpt2.GPT2(bench_gpt2.equal_to(training.config, training.length))
    row["parameters"] = model.num_parameters()
    return bench_gpt2.train_step(model, _text(training), compiled)


def _text(training: Training) -> Any:
    import numpy as np

    batch = random_batch(training.config, training.rows, training.length)
    return np.concatenate([batch.tokens, batch.labels[:, -1:]], axis=1)


def _transformers(row: Row, training: Training) -> Call:
    from tools.bench import peers

    recipe = TrainingConfig(batch_size=training.rows, seq_len=training.length)
    step, row["parameters"] = peers.gpt2(training.config, recipe, "cpu", compiled=False)
    return step


def _beside_mamba(clock: Clock, training: Training) -> list[Row]:
    """Forward and backward alone: the scan of transformers' Mamba is a Python loop without mamba-ssm's kernels."""
    tokens = training.rows * training.length
    ours: Row = {"name": EAGER, "parameters": num_parameters(training.config)}
    theirs: Row = {"name": "transformers Mamba, its reference path", "peer": True}

    def mamba() -> Call:
        from tools.bench import peers

        call, theirs["parameters"] = peers.mamba_gradients(training.config, training.length)
        return call

    calls: list[tuple[Row, Call]] = []
    for row, make in ((ours, partial(_gradients, training)), (theirs, mamba)):
        row |= {"what": training.name, "tokens": tokens}
        call = guarded(row, make)
        calls += [(row, call)] if call else []
    clock.steps(calls)
    for row in (row for row in (ours, theirs) if "milliseconds" in row):
        row["tokens_per_second"] = 1e3 * tokens / row["milliseconds"]
    return [ours, theirs]


def _gradients(training: Training) -> Call:
    from torch_impl.model import build
    from torch_impl.training.data import to_device

    model = build(training.config)
    batch = random_batch(training.config, training.rows, training.length)
    given = to_device(batch, model.embedding.weight.device, model.config)

    def both() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(**given)[0].backward()

    return both
