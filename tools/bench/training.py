"""What is measured of whole models: the train step beside a GPT-2 of the same size, and decoding."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import numpy as np

from spec.config import ModelConfig
from spec.data import Batch
from spec.parameters import num_parameters
from tools.bench import peers, roofline
from tools.bench.sections import Sizes
from tools.bench.timer import Call, Clock, NotRun, Row, guarded


def train_steps(clock: Clock, sizes: Sizes) -> list[Row]:
    """Train steps at the recipe's batch, optimizer included, ours and GPT-2's, in turns: tokens a second and FLOP/s."""
    config, training = sizes.config, sizes.training
    tokens = training.batch_size * training.seq_len
    attention = roofline.attention_flops(config.d_model, config.n_layers, tokens, training.seq_len)
    calls: list[tuple[Row, Call]] = []
    rows: list[Row] = []
    for compiled in sizes.compiled:
        way = "torch.compile" if compiled else "eager"
        row: Row = {"name": f"liquidnet, {way}", "parameters": num_parameters(config), "tokens": tokens}
        row["flops"] = roofline.step_flops(config, tokens)
        rows.append(row)
        step = guarded(row, partial(_liquidnet, row, sizes, clock.device, compiled))
        calls += [(row, step)] if step else []
        other: Row = {"name": f"transformers GPT-2, {way}", "peer": True, "tokens": tokens}
        rows.append(other)
        made = guarded(other, partial(peers.gpt2, config, training, clock.device, compiled))
        if made:
            step, other["parameters"] = made
            # Its position table takes part in no product.
            products = other["parameters"] - training.seq_len * config.d_model
            other["flops"] = 6.0 * tokens * products + attention
            calls.append((other, step))
    clock.steps(calls)
    for row in rows:
        if "milliseconds" in row:
            row["tokens_per_second"] = 1e3 * tokens / row["milliseconds"]
            row["tflops"] = row["flops"] / row["milliseconds"] / 1e9
    return rows


def _liquidnet(row: Row, sizes: Sizes, device: Any, compiled: bool) -> Call:
    from torch_impl.training.engine import Engine

    known = inspect.signature(Engine).parameters
    if compiled and "compile" not in known:
        raise NotRun("this Engine has no compiled step")
    chosen: dict[str, Any] = {"compile": compiled} if "compile" in known else {}
    engine = Engine(sizes.config, sizes.training, **chosen)
    if engine.device.type != device.type:
        raise NotRun(f"the engine trains on {engine.device.type}, {device.type} was asked for")
    row["method"] = engine.method
    batch = random_batch(sizes.config, sizes.training.batch_size, sizes.training.seq_len)
    return lambda: engine.train_step(batch, sizes.training.peak_lr)


def random_batch(config: ModelConfig, rows: int, length: int) -> Batch:
    """Uniform tokens, each the label of the one before it, no document boundaries."""
    text = np.random.default_rng(0).integers(config.vocab_size, size=(rows, length + 1), dtype=np.int32)
    return Batch(text[:, :-1].copy(), text[:, 1:].copy(), np.zeros((rows, length), bool))


def decoding(clock: Clock, sizes: Sizes) -> list[Row]:
    """Tokens a second of the decode step, all streams together, every method and batch; logits to NumPy included."""
    from torch_impl import generation
    from torch_impl.model import build

    model = build(sizes.config, compute_dtype=sizes.training.compute_dtype).to(clock.device).eval()
    methods = [name for name in getattr(generation, "METHODS", {"eager": None}) if name != "auto"]
    selectable = "method" in inspect.signature(generation.make_step).parameters
    calls: list[tuple[Row, Call]] = []
    rows: list[Row] = []
    for batch in sizes.decoded:
        for method in methods:
            row: Row = {"name": method, "batch": batch, "tokens": batch * sizes.steps}
            rows.append(row)
            chosen = {"method": method} if selectable else {}
            call = guarded(row, partial(stream, generation.make_step, model, batch, sizes.steps, chosen))
            calls += [(row, call)] if call else []
    clock.steps(calls)
    for row in rows:
        if "milliseconds" in row:
            row["tokens_per_second"] = 1e3 * row["tokens"] / row["milliseconds"]
    return rows


def stream(
    make_step: Any, model: Any, batch: int, steps: int, chosen: dict[str, str], states: np.ndarray | None = None
) -> Call:
    """A call that carries `batch` streams on by `steps` tokens, from `states` [l, b, n] or from nothing."""
    step = make_step(model, **chosen)
    tokens_bt = np.arange(batch)[:, None] % model.config.vocab_size
    _, states = step(tokens_bt, states)

    def call() -> None:
        nonlocal states
        for _ in range(steps):
            _, states = step(tokens_bt, states)

    return call
