"""How the cost of training grows with the length of a row: time at equal tokens a step, memory of one row."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from spec.config import TrainingConfig
from tools.bench.sizes import Sizes
from tools.bench.timer import Call, Clock, Row, guarded
from tools.bench.training import random_batch
from tools.cli import backends


def growth(clock: Clock, sizes: Sizes) -> list[Row]:
    """A train step at each length, as many rows as give the same tokens; of torch also the memory of a single row.

    `bytes_a_token` is the peak above the start of forward + backward, by torch's allocator, over the tokens;
    `units` the same a layer, in d float32 numbers: what a token costs in each layer, all temporary arrays included.
    """
    rows: list[Row] = []
    for backend in [name for name in backends.installed() if name in sizes.growth_of] or backends.installed():
        made: list[tuple[Row, Call]] = []
        for length in sizes.lengths:
            row: Row = {"name": f"{backend}, T {length:,}", "backend": backend, "length": length}
            row["tokens"] = sizes.tokens
            rows.append(row)
            if backend == "torch":
                row |= guarded(row, partial(_memory, sizes, length)) or {}
            call = guarded(row, partial(_step, backend, sizes, length))
            made += [(row, call)] if call else []
        clock.steps(made)
    for row in rows:
        start = next(one for one in rows if one["backend"] == row["backend"])
        if "milliseconds" in row and "milliseconds" in start:
            row["microseconds_a_token"] = 1e3 * row["milliseconds"] / row["tokens"]
            row["times_first"] = row["milliseconds"] / start["milliseconds"]
    return rows


def _step(backend: str, sizes: Sizes, length: int) -> Call:
    recipe = TrainingConfig(batch_size=max(1, sizes.tokens // length), seq_len=length)
    engine = backends.load(backend, "training.engine").Engine(sizes.growing, recipe)
    batch = random_batch(sizes.growing, recipe.batch_size, length)
    return lambda: engine.train_step(batch, recipe.peak_lr)


def _memory(sizes: Sizes, length: int) -> dict[str, Any]:
    """Peak of forward + backward of one row above what was there, parameters and gradients not counted."""
    from torch_impl.model import build
    from torch_impl.training.data import to_device

    model = build(sizes.growing)
    batch = to_device(random_batch(sizes.growing, 1, length), model.embedding.weight.device, model.config)

    def both() -> None:
        loss, _ = model.loss(**batch)
        loss.backward()

    # The first time the gradients themselves are made.
    both()
    peak = peak_bytes(both)
    each = peak / length
    return {
        "peak_bytes": peak,
        "bytes_a_token": each,
        "units": each / (4 * sizes.growing.n_layers * sizes.growing.d_model),
    }


def peak_bytes(call: Call) -> int:
    """The most bytes that torch's allocator of the processor has given out and not got back during a call."""
    # What starts and stops is told on stderr otherwise.
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
