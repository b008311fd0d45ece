"""What the tests of `liquidnet ui` share: a model whose text wanders, what it writes alone, a server of their own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from parity.proof.problems.cases import perturbed_parameters
from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.presets import PRESETS
from spec.sampling import Sampling
from tools.cli.backends import Backend
from tools.generation.session import open_model
from tools.tokenizer import build_tokenizer

CONFIG = replace(PRESETS["nano"], vocab_size=257, d_model=24, d_ff=32, n_layers=3, max_seq_len=16)
GREEDY = Sampling(temperature=0.0)


def wandering(state: dict | None = None) -> Checkpoint:
    """A model of letters and spaces that neither ends its text nor, at temperature 0, soon repeats itself.

    So a text depends on every letter of its prompt: states of two browsers that were mixed would be seen.
    """
    parameters = {path: array.copy() for path, array in perturbed_parameters(CONFIG, 30, scale=0.6).items()}
    letters = {ord(" "), *range(ord("a"), ord("z") + 1)}
    parameters["embedding.weight"][[token for token in range(257) if token not in letters]] *= 0.02
    for path, array in parameters.items():
        if path.endswith("output.weight"):
            array *= 10.0
    state = {"step": 0, "samples_consumed": 0, "tokens": 0, "seed": 0, **(state or {})}
    return Checkpoint(CONFIG, parameters, state=state, tokenizer=build_tokenizer("byte").to_json())


def write_run(run: Path) -> Path:
    """A run of three checkpoints, the second of them the best, handed over from torch to jax after step 20."""
    for step in (10, 20, 30):
        state = {"step": step, "best": {"step": 20, "val_loss": 1.0}}
        write_checkpoint(run / "checkpoints" / f"step_{step:08d}", wandering(state))
    lines: list[dict] = [
        {"step": step, "loss": 5.0 - step / 10, "backend": "torch" if step <= 20 else "jax"} for step in range(1, 31)
    ]
    lines.append({"step": 30, "val_loss": 2.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def alone(path: Path, prompt: str, tokens: int, backend: Backend | None = None, sampling: Sampling = GREEDY) -> str:
    """The prompt and what `liquidnet generate` writes after it."""
    session = open_model(path, backend).session()
    session.append(prompt)
    return prompt + "".join(session.write(sampling, tokens))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def served(*flags: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`liquidnet ui` in a process of its own, where Gradio's warnings are no errors; yields it and its first line."""
    # Whatever started the tests may have them ignore Ctrl-C.
    program = """import os, signal, sys, tyro
os.environ |= dict(pair.split("=", 1) for pair in sys.argv.pop(1).split())
from tools.ui.command import Ui
signal.signal(signal.SIGINT, signal.default_int_handler)
tyro.cli(Ui).run()"""
    pairs = " ".join(f"{name}={value}" for name, value in environment.items())
    command = [sys.executable, "-c", program, pairs, *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()
