"""Train steps of both backends beside a GPT-2 of equal size and beside their products alone, and over the length."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.data import Batch
from spec.parameters import num_parameters
from tools.bench import roofline
from tools.bench.machine import step_products
from tools.bench.sizes import Sizes, TrainStep
from tools.bench.timer import Call, Candidate, NotRun, Row, Timer, guarded
from tools.cli import backends

if TYPE_CHECKING:
    from torch_impl.model import LanguageModel

EAGER, COMPILED = "torch eager", "torch compiled"
JAX, GPT2 = "jax", "GPT-2, "
TRANSFORMERS = "transformers GPT-2"


def train_steps(timer: Timer, sizes: Sizes) -> list[Row]:
    """Each configuration's candidates in turns, optimizer included: tokens a second; on a GPU FLOP/s too."""
    rows = [row for step in sizes.training for row in _configuration(timer, sizes, step)]
    if sizes.peers and sizes.mamba and not sizes.gpu and "torch" in sizes.backends:
        rows += _beside_mamba(timer, sizes, sizes.mamba)
    return rows


def _configuration(timer: Timer, sizes: Sizes, step: TrainStep) -> list[Row]:
    candidates: list[Candidate] = []
    for backend in sizes.backends:
        # JAX always compiles.
        for compiled in sizes.compiled if backend == "torch" else (True,):
            name = JAX if backend == "jax" else COMPILED if compiled else EAGER
            name = f"liquidnet, {_way(compiled)}" if sizes.gpu else name
            row: Row = {"name": name, "parameters": num_parameters(step.config)}
            candidates.append((row, partial(_ours, timer, sizes, step, backend, compiled)))
    if "torch" in sizes.backends:
        if not sizes.gpu:
            for compiled in sizes.compiled:
                row = {"name": GPT2 + (COMPILED if compiled else EAGER), "peer": True}
                candidates.append((row, partial(_gpt2, step, compiled)))
        if sizes.peers:
            for compiled in sizes.compiled if sizes.gpu else (False,):
                name = f"{TRANSFORMERS}, {_way(compiled)}" if sizes.gpu else TRANSFORMERS
                row = {"name": name, "peer": True}
                candidates.append((row, partial(_transformers, timer, sizes, step, compiled)))
    if not sizes.gpu:
        for name, make in step_products(step).items():
            candidates.append(({"name": name, "products": True}, lambda _, make=make: make()))
    return _timed(timer, sizes, step, candidates)


def _way(compiled: bool) -> str:
    return "torch.compile" if compiled else "eager"


def _timed(timer: Timer, sizes: Sizes, step: TrainStep, candidates: list[Candidate]) -> list[Row]:
    for row, _ in candidates:
        if not sizes.gpu:
            row["what"] = step.name
        row["tokens"] = step.tokens
    rows = timer.candidates(candidates)
    for row in rows:
        if "milliseconds" in row and "products" not in row:
            row["tokens_per_second"] = 1e3 * step.tokens / row["milliseconds"]
            if "flops" in row:
                row["tflops"] = row["flops"] / row["milliseconds"] / 1e9
    return rows


def _ours(timer: Timer, sizes: Sizes, step: TrainStep, backend: str, compiled: bool, row: Row) -> Call:
    engine = backends.load(backend, "training.engine").Engine(step.config, step.recipe, compile=compiled)
    if sizes.gpu:
        if engine.device.type != timer.device:
            raise NotRun(f"the engine trains on {engine.device.type}, {timer.device} was asked for")
        row["flops"] = roofline.step_flops(step.config, step.tokens)
        row["method"] = engine.method
    batch = random_batch(step.config, step.recipe.batch_size, step.recipe.seq_len)
    return lambda: engine.train_step(batch, step.recipe.peak_lr)


def random_batch(config: ModelConfig, rows: int, length: int) -> Batch:
    """Uniform tokens, each the label of the one before it, no document boundaries."""
    text = np.random.default_rng(0).integers(config.vocab_size, size=(rows, length + 1), dtype=np.int32)
    return Batch(text[:, :-1].copy(), text[:, 1:].copy(), np.zeros((rows, length), bool))


def _gpt2(step: TrainStep, compiled: bool, row: Row) -> Call:
    from tools.bench import peers

    model = peers.GPT2(peers.equal_to(step.config, step.recipe.seq_len))
    row["parameters"] = model.num_parameters()
    batch = random_batch(step.config, step.recipe.batch_size, step.recipe.seq_len)
    return peers.train_step(model, np.concatenate([batch.tokens, batch.labels[:, -1:]], axis=1), compiled)


def _transformers(timer: Timer, sizes: Sizes, step: TrainStep, compiled: bool, row: Row) -> Call:
    from tools.bench import peers

    call, row["parameters"] = peers.transformers_train_step(step.config, step.recipe, timer.device, compiled)
    if sizes.gpu:
        # Its position table takes part in no product.
        c, length = step.config, step.recipe.seq_len
        products = row["parameters"] - length * c.d_model
        attention = roofline.attention_flops(c.d_model, c.n_layers, step.tokens, length)
        row["flops"] = 6.0 * step.tokens * products + attention
    return call


def _beside_mamba(timer: Timer, sizes: Sizes, step: TrainStep) -> list[Row]:
    """Forward and backward alone: the scan of transformers' Mamba is a Python loop without mamba-ssm's kernels."""

    def ours(row: Row) -> Call:
        model, both = _forward_backward(step.config, step.recipe.batch_size, step.recipe.seq_len)

        def call() -> None:
            model.zero_grad(set_to_none=True)
            both()

        return call

    def mamba(row: Row) -> Call:
        from tools.bench import peers

        call, row["parameters"] = peers.mamba_gradients(step.config, step.recipe.seq_len)
        return call

    candidates: list[Candidate] = [
        ({"name": EAGER, "parameters": num_parameters(step.config)}, ours),
        ({"name": "transformers Mamba, its reference path", "peer": True}, mamba),
    ]
    return _timed(timer, sizes, step, candidates)


def _forward_backward(config: ModelConfig, rows: int, length: int) -> tuple[LanguageModel, Call]:
    """The model of torch_impl, and a call that adds the gradients of one batch to its own."""
    from torch_impl.model import build
    from torch_impl.training.data import to_device

    model = build(config)
    batch = to_device(random_batch(config, rows, length), model.embedding.weight.device, model.config)
    return model, lambda: model.loss(**batch)[0].backward()


def scaling(timer: Timer, sizes: Sizes) -> list[Row]:
    """A train step at each length, as many rows as give the same tokens; of torch also the memory of a single row.

    `bytes_a_token` is the peak above the start of forward + backward, by torch's allocator, over the tokens;
    `units` the same a layer, in d float32 numbers: what a token costs in each layer, all temporary arrays included.
    """
    rows: list[Row] = []
    for backend in [name for name in backends.installed() if name in sizes.scaling_backends] or backends.installed():
        candidates: list[Candidate] = []
        for length in sizes.lengths:
            row: Row = {"name": f"{backend}, T {length:,}", "backend": backend, "length": length}
            row["tokens"] = sizes.tokens
            if backend == "torch":
                row |= guarded(row, partial(_memory, sizes.scaling, length)) or {}
            recipe = TrainingConfig(batch_size=max(1, sizes.tokens // length), seq_len=length)
            step = TrainStep("", sizes.scaling, recipe)
            candidates.append((row, partial(_ours, timer, sizes, step, backend, backend == "jax")))
        own = timer.candidates(candidates)
        for row in own:
            if "milliseconds" in row:
                row["microseconds_a_token"] = 1e3 * row["milliseconds"] / sizes.tokens
                if "milliseconds" in own[0]:
                    row["times_first"] = row["milliseconds"] / own[0]["milliseconds"]
        rows += own
    return rows


def _memory(config: ModelConfig, length: int) -> Row:
    """Peak of forward + backward of one row above what was there, parameters and gradients not counted."""
    _, both = _forward_backward(config, 1, length)
    # The first time the gradients themselves are made.
    both()
    peak = peak_bytes(both)
    each = peak / length
    return {"peak_bytes": peak, "bytes_a_token": each, "units": each / (4 * config.n_layers * config.d_model)}


def peak_bytes(call: Call) -> int:
    """The most bytes that torch's allocator of the processor has given out and not got back during a call."""
    # It reports starting and stopping on stderr otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    given = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate(size for _, size in given), default=0)
