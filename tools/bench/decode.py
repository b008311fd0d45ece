"""Tokens a second of the decode step: after short and long contexts, against reading the weights once a token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from spec.checkpoint.quantization import WEIGHTS
from spec.config import ModelConfig
from spec.parameters import parameter_table
from spec.sampling import Sampler, Sampling, generate
from tools.bench.machine import READING, read_ways
from tools.bench.sizes import Decoding, Sizes
from tools.bench.timer import Call, Candidate, Row, Timer, add_gb_per_s
from tools.cli import backends

if TYPE_CHECKING:
    import jax
    import torch

    import jax_impl.model
    import torch_impl.model

    Model = torch_impl.model.LanguageModel | jax_impl.model.LanguageModel
    State = np.ndarray | torch.Tensor | jax.Array
    Step = Callable[[np.ndarray, State | None], tuple[np.ndarray, State]]

GPT2 = "GPT-2, KV cache"
DRAWN = ", tokens drawn"
"""Of rows that draw each token, as `liquidnet generate` does by default, from logits that are as flat as they come."""
SAMPLING = Sampling(temperature=0.8, top_p=0.95)
PIECE = 4096
"""Tokens of a context that are taken at a time: their logits are never made, their states are carried."""


def decoding(timer: Timer, sizes: Sizes) -> list[Row]:
    """Every method, all streams together, logits to NumPy included; on a processor in turns with reading an array."""
    rows: list[Row] = []
    for model in sizes.decoding:
        candidates = _candidates(timer, sizes, model)
        if sizes.gpu:
            rows += _speeds(timer.candidates(candidates), model)
            continue
        readings: list[Candidate] = [
            ({"what": model.name, "name": f"{READING}, {way}", "bytes": sizes.large}, lambda _, call=call: call)
            for way, call in read_ways(sizes.large).items()
        ]
        own = timer.candidates([*readings, *(({"what": model.name, **row}, make) for row, make in candidates)])
        read, written = own[: len(readings)], _speeds(own[len(readings) :], model)
        add_gb_per_s(read)
        most = max(row["gb_per_s"] for row in read if "gb_per_s" in row)
        for row in written:
            if "milliseconds" in row and "bytes" in row:
                row["gb_per_s"] = row["bytes"] / (row["milliseconds"] / model.tokens) / 1e6
                row["of_reading"] = row["gb_per_s"] / most
        rows += own
    return rows


def _speeds(rows: list[Row], model: Decoding) -> list[Row]:
    for row in rows:
        if "milliseconds" in row and "batch" in row:
            row["tokens_per_second"] = 1e3 * row["batch"] * model.tokens / row["milliseconds"]
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


def _candidates(timer: Timer, sizes: Sizes, model: Decoding) -> list[Candidate]:
    """Every method of every backend, and on a processor a GPT-2 of equal size."""
    candidates: list[Candidate] = []
    states: dict[int, np.ndarray | None] = {}
    for backend in sizes.backends:
        decode, sampler = backends.load(backend, "ops.decode"), backends.load(backend, "ops.sampling").sample
        network = backends.load(backend, "model").build(model.config, compute_dtype=model.compute_dtype)
        if backend == "torch":
            network = network.to(timer.device).eval()
        # The same numbers for all: the state is [l, b, n] in NumPy, whoever has made it.
        states = states or states_after(decode.make_step(network), model.contexts)
        chosen = decode.choose_method(network)
        for method in decode.METHODS:
            for context, batch in ((c, b) for b in model.batches for c in model.contexts):
                row: Row = {"name": f"{backend} {method}", "method": method, "backend": backend, "context": context}
                row |= {"batch": batch, "bytes": weight_bytes(model.config, method), "auto": method == chosen}
                if sizes.gpu:
                    row = {"name": method, "batch": batch, "tokens": batch * model.tokens}
                stream = partial(_stream, decode.make_step, network, method, batch, model.tokens, states[context])
                candidates.append((row, stream))
                if batch == 1 and context == model.contexts[0] and not sizes.gpu and method != "eager":
                    drawn = {**row, "name": row["name"] + DRAWN, "auto": False}
                    draw = partial(_drawn, decode.make_step, sampler, network, method, model.tokens)
                    candidates.append((drawn, draw))
    if "torch" in sizes.backends:
        for context in model.peer_contexts:
            row = {"name": GPT2, "peer": True, "context": context, "batch": 1}
            candidates.append((row, partial(_gpt2, model, context)))
            # What Mamba keeps does not grow, and its prompt goes through a Python loop.
            for peer in ("GPT-2", "Mamba")[: 2 if context == model.peer_contexts[0] else 1] if sizes.peers else ():
                row = {"name": f"transformers {peer}", "peer": True, "context": context, "batch": 1}
                candidates.append((row, partial(_transformers, peer, model, context)))
    return candidates


def _stream(
    make_step: Callable[..., Step],
    model: Model,
    method: str,
    batch: int,
    tokens: int,
    states: np.ndarray | None,
    row: Row,
) -> Call:
    """A call that carries `batch` streams on by `tokens` tokens, from `states` [l, 1, n] or from nothing."""
    step = make_step(model, method=method)
    tokens_bt = np.arange(batch)[:, None] % model.config.vocab_size
    _, carried = step(tokens_bt, None if states is None else np.repeat(states, batch, axis=1))

    def call() -> None:
        nonlocal carried
        for _ in range(tokens):
            _, carried = step(tokens_bt, carried)

    return call


def _drawn(make_step: Callable[..., Step], sampler: Sampler, model: Model, method: str, tokens: int, row: Row) -> Call:
    """A call that writes so many tokens more, each drawn from the logits of the one before."""
    text = generate(make_step(model, method=method), np.zeros((1, 1), np.int64), SAMPLING, sampler=sampler)
    next(text)

    def call() -> None:
        for _ in range(tokens):
            next(text)

    return call


def states_after(step: Step, contexts: tuple[int, ...]) -> dict[int, np.ndarray | None]:
    """The states [l, 1, n] after each number of tokens of one random text, read in pieces; None after none."""
    random, states, length = np.random.default_rng(0), None, 0
    found: dict[int, np.ndarray | None] = {0: None}
    for context in sorted(contexts):
        while length < context:
            piece = min(PIECE, context - length)
            # All vocabularies have these.
            _, states = step(random.integers(16, size=(1, piece)), states)
            length += piece
        found[context] = None if states is None else np.asarray(states, np.float32).copy()
    return found


def _gpt2(model: Decoding, context: int, row: Row) -> Call:
    from tools.bench import peers

    decoder = peers.Decoder(peers.GPT2(peers.equal_to(model.config, context + model.tokens)))
    decoder(np.random.default_rng(0).integers(16, size=(1, context)))
    row["bytes"] = decoder.bytes_a_step()
    return peers.decoding(decoder, model.tokens)


def _transformers(peer: str, model: Decoding, context: int, row: Row) -> Call:
    from tools.bench import peers

    return peers.DECODERS[peer](model.config, context, model.tokens)
