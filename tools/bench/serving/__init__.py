"""`liquidnet serve` over HTTP against the steps alone, at as many rows; and against the server of `transformers`."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import models

from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.config import ModelConfig
from spec.init import initial_parameters
from spec.presets import PRESETS
from spec.sampling import Step
from tools.bench.serving.clients import Server, first_token_seconds, started, tokens_per_second
from tools.bench.serving.peer import peer
from tools.bench.timer import guarded
from tools.cli.json_file import Json
from tools.generation.session import OpenModel, open_model
from tools.tokenizer.gpt2 import byte_level, byte_symbols

STEPS, OURS, PEER = "steps alone", "liquidnet serve", "transformers serve, GPT-2"
#: For which the threads of a server go on spinning once they have nothing to do.
QUIET_SECONDS = 0.5
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        model: that is served, in float32 on a processor, by torch.
        clients: that ask at once.
        tokens: that each asks for.
        prompt: tokens of a long one.
        positions: of the GPT-2.
    """

    model: ModelConfig = PRESETS["small"]
    clients: tuple[int, ...] = (1, 4, 16)
    tokens: int = 64
    prompt: int = 4096
    positions: int = 1024


def compare(rounds: int, sizes: Sizes, report: Callable[[str], None] = lambda line: None) -> Json:
    """Medians of rounds in which the steps alone and the servers take turns, and their ratios.

    Tokens are drawn at temperature 0.8 and top-p 0.95; the steps draw nothing.
    """
    tokenizer = _tokenizer(sizes.model)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "model"
        write_checkpoint(checkpoint, Checkpoint(sizes.model, initial_parameters(sizes.model, 0), tokenizer=tokenizer))
        model = open_model(checkpoint, "torch")
        command = [sys.executable, "-m", "tools.cli", "serve", "--checkpoint", str(checkpoint), "--backend", "torch"]
        slots, most = ["--slots", str(max(sizes.clients))], str(sizes.tokens)
        with contextlib.ExitStack() as stack:
            servers = {OURS: stack.enter_context(started([*command, *slots, "--max-tokens", most], checkpoint.name))}
            row: Json = {}
            found = guarded(
                row, lambda: stack.enter_context(peer(Path(directory) / "gpt2", sizes.model, tokenizer, 1024))
            )
            servers |= {} if found is None else {PEER: found}
            throughput = [_throughput(model.step, servers, count, rounds, sizes, report) for count in sizes.clients]
            report(f"a prompt of {sizes.prompt:,} tokens")
            first = _first_token(model, servers[OURS], sizes, rounds)
    return {"throughput": throughput, "first_token": first, "peer": row}


def _tokenizer(config: ModelConfig) -> str:
    """A vocabulary of bytes and made-up tokens, as large as the model's."""
    names = [*byte_symbols(), *(f"token{index}" for index in range(256, config.vocab_size - 1)), END_OF_TEXT]
    made = byte_level(models.BPE({name: index for index, name in enumerate(names)}, []), use_regex=False)
    made.add_special_tokens([END_OF_TEXT])
    return made.to_str()


def _throughput(
    step: Step, servers: Mapping[str, Server], clients: int, rounds: int, sizes: Sizes, report: Callable[[str], None]
) -> Json:
    taken: dict[str, list[float]] = {STEPS: [], **{name: [] for name in servers}}
    for server in servers.values():
        tokens_per_second(server, clients, 4)
    for k in range(rounds):
        report(f"{clients} clients, round {k + 1} of {rounds}")
        taken[STEPS].append(_steps_per_second(step, clients, sizes.tokens) * clients)
        for name, server in servers.items():
            time.sleep(QUIET_SECONDS)
            taken[name].append(tokens_per_second(server, clients, sizes.tokens))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {
        name: statistics.median(served / other for served, other in zip(taken[OURS], taken[name], strict=True))
        for name in taken
        if name != OURS
    }
    return {"clients": clients, "tokens_per_second": medians, "ratios": ratios}


def _steps_per_second(step: Step, rows: int, count: int) -> float:
    time.sleep(QUIET_SECONDS)
    tokens_bt = np.arange(rows)[:, None]
    _, states = step(tokens_bt, None)
    began = time.perf_counter()
    for _ in range(count):
        _, states = step(tokens_bt, states)
    return count / (time.perf_counter() - began)


def _first_token(model: OpenModel, server: Server, sizes: Sizes, rounds: int) -> Json:
    """Seconds to the first token of a long prompt: new, known whole, and known but for its last tokens."""
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"new": [], "known": [], "known but for 16 tokens": [], "step": []}
    for _ in range(rounds):
        prompt = random.integers(256, size=sizes.prompt).tolist()
        seconds["new"].append(first_token_seconds(server, prompt))
        seconds["known"].append(first_token_seconds(server, prompt))
        other = random.integers(256, size=16).tolist()
        seconds["known but for 16 tokens"].append(first_token_seconds(server, [*prompt[:-16], *other]))
        seconds["step"].append(1.0 / _steps_per_second(model.step, 1, 20))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "steps": {name: value / medians["step"] for name, value in medians.items()}}


def show(result: Json, sizes: Sizes) -> None:
    """Tables."""
    console = Console(highlight=False, soft_wrap=True)
    rows = result["throughput"]
    names = [*rows[0]["tokens_per_second"]]
    table = Table(title="tokens a second; ours over theirs")
    for name in ("clients", *names, *(f"/ {name}" for name in rows[0]["ratios"])):
        table.add_column(name, justify="right")
    for row in rows:
        speeds = (f"{row['tokens_per_second'][name]:,.0f}" for name in names)
        table.add_row(str(row["clients"]), *speeds, *(f"{ratio:.2f}" for ratio in row["ratios"].values()))
    console.print(table)
    if reason := result["peer"].get("not_run") or result["peer"].get("error"):
        console.print(f"{PEER}: not run: {reason}")
    first = result["first_token"]
    table = Table(title=f"time to the first token, of a prompt of {sizes.prompt:,} tokens")
    for name in ("prompt", "milliseconds", "steps of one row"):
        table.add_column(name, justify="left" if name == "prompt" else "right")
    for name, seconds in first["seconds"].items():
        table.add_row(name, f"{1e3 * seconds:.1f}", f"{first['steps'][name]:.1f}")
    console.print(table)
