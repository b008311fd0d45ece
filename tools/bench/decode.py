"""Decoding on a processor: tokens a second after short and long contexts, against reading the weights once a token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from spec.checkpoint.quantization import WEIGHTS
from spec.config import ModelConfig
from spec.parameters import parameter_table
from tools.bench.machine import READING, read_ways
from tools.bench.sizes import Decoding, Sizes
from tools.bench.timer import Call, Clock, Row, guarded
from tools.bench.training import stream
from tools.cli import backends

GPT2 = "GPT-2, KV cache"
PIECE = 4096
"""Tokens of a context that are taken at a time: their logits are never made, their states are carried."""


def decoding(clock: Clock, sizes: Sizes) -> list[Row]:
    """Every method of both backends, in turns with reading an array as large as no cache."""
    rows: list[Row] = []
    for model in sizes.decoding:
        rows += _of_model(clock, sizes, model)
    return rows


def weight_bytes(config: ModelConfig, method: str) -> int:
    """Bytes of all weights as a decode method stores them, which the next token of any number of rows reads once.

    A method that ends in one of `WEIGHTS` has its matrices in that, with a float32 scale a row of int8.
    """
    weights = next((name for name in WEIGHTS if method.endswith(name)), "float32")
    total = 0
    for row in parameter_table(config):
        count = int(np.prod(row.shape))
        each = {"bfloat16": 2, "int8": 1}.get(weights, 4) if len(row.shape) == 2 else 4
        total += each * count + (4 * row.shape[0] if each == 1 else 0)
    return total


def _of_model(clock: Clock, sizes: Sizes, model: Decoding) -> list[Row]:
    made: list[tuple[Row, Callable[[], Call]]] = []
    contexts: dict[int, np.ndarray] = {}
    for backend in backends.installed():
        generate = backends.load(backend, "generation")
        network = backends.load(backend, "model").build(model.config)
        if backend == "torch":
            network.eval()
        # The same numbers for all: the state is [l, b, n] in NumPy, whoever has made it.
        contexts = contexts or states_after(generate.make_step(network), model.contexts)
        chosen = generate.choose_method(network)
        for method in generate.METHODS:
            for context, batch in ((c, b) for b in model.streams for c in model.contexts):
                row: Row = {"name": f"{backend} {method}", "method": method, "backend": backend, "context": context}
                row |= {"batch": batch, "bytes": weight_bytes(model.config, method), "auto": method == chosen}
                states = np.repeat(contexts[context], batch, axis=1)
                made.append((row, partial(stream, generate.make_step, network, batch, model.tokens,
                                          {"method": method}, states)))  # fmt: skip
    if "torch" in backends.installed():
        for context in model.peer_contexts:
            row = {"name": GPT2, "peer": True, "context": context, "batch": 1}
            made.append((row, partial(_gpt2, row, model, context)))
            # What Mamba keeps does not grow, and its prompt goes through a Python loop.
            for peer in ("GPT-2", "Mamba")[: 2 if context == model.peer_contexts[0] else 1] if sizes.peers else ():
                row = {"name": f"transformers {peer}", "peer": True, "context": context, "batch": 1}
                made.append((row, partial(_transformers, peer, model, context)))
    return _timed(clock, sizes, model, made)


def _timed(clock: Clock, sizes: Sizes, model: Decoding, made: list[tuple[Row, Callable[[], Call]]]) -> list[Row]:
    calls: list[tuple[Row, Call]] = [
        ({"name": f"{READING}, {way}", "bytes": sizes.large}, call) for way, call in read_ways(sizes.large).items()
    ]
    readings = [row for row, _ in calls]
    for row, make in made:
        call = guarded(row, make)
        calls += [(row, call)] if call else []
    clock.steps(calls)
    for row in readings:
        row["gb_per_s"] = row["bytes"] / row["milliseconds"] / 1e6
    most = max(row["gb_per_s"] for row in readings)
    rows = [row for row, _ in made]
    for row in (row for row in rows if "milliseconds" in row):
        each = row["milliseconds"] / model.tokens
        row["tokens_per_second"] = 1e3 * row["batch"] / each
        if "bytes" in row:
            row["gb_per_s"] = row["bytes"] / each / 1e6
            row["of_reading"] = row["gb_per_s"] / most
    return [{"what": model.name, **row} for row in readings + rows]


def states_after(step: Callable[..., Any], contexts: tuple[int, ...]) -> dict[int, np.ndarray]:
    """The states [l, 1, n] after each number of tokens of one random text, read in pieces."""
    random, states, length = np.random.default_rng(0), None, 0
    found: dict[int, np.ndarray] = {}
    for context in sorted(contexts):
        while length < context:
            piece = min(PIECE, context - length)
            # All vocabularies have these.
            _, states = step(random.integers(16, size=(1, piece)), states)
            length += piece
        found[context] = np.asarray(states, np.float32).copy()
    return found


def _gpt2(row: Row, model: Decoding, context: int) -> Call:
    from tools.bench import gpt2 as bench_gpt2

    positions = context + model.tokens
    decoder = bench_gpt2.Decoder(bench_gpt2.GPT2(bench_gpt2.equal_to(model.config, positions)))
    decoder(np.random.default_rng(0).integers(16, size=(1, context)))
    row["bytes"] = decoder.bytes_a_step()
    return bench_gpt2.decoding(decoder, model.tokens)


def _transformers(peer: str, model: Decoding, context: int) -> Call:
    from tools.bench import peers

    return peers.DECODERS[peer](model.config, context, model.tokens)
