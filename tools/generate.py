"""Text from a checkpoint, streamed, in constant memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spec.sampling import Sampling, Step, generate
from tools import backends, convert
from tools.tokenizer import Tokenizer, parse_tokenizer


@dataclass(frozen=True)
class Generate:
    """Continue a prompt. One seed writes the same text on either backend, near-ties aside."""

    checkpoint: Path
    """A run (its newest checkpoint), a checkpoint directory, a .pt or a .msgpack file."""
    prompt: str = "Once upon a time"
    """Text to continue."""
    backend: backends.Backend | None = None
    """Backend to compute with; by default the first one installed."""
    max_tokens: int = 400
    """Tokens to write at most; an end-of-text token ends earlier."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Keep only the k most likely tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the smallest set of most likely tokens that holds this probability."""
    seed: int = 0
    """Seed of the sampling."""

    def run(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"--max-tokens must be at least 1, got {self.max_tokens}")
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.seed)
        step, tokenizer = open_model(self.checkpoint, self.backend or backends.default())
        prompt = encode_prompt(tokenizer, self.prompt)
        sys.stdout.write(self.prompt)
        for piece in stream_text(step, tokenizer, prompt, sampling, self.max_tokens):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


def open_model(path: Path, backend: str) -> tuple[Step, Tokenizer]:
    """A checkpoint as a step of generation, and its tokenizer; ValueError where it holds none."""
    checkpoint = convert.read(path)
    if checkpoint.tokenizer is None:
        raise ValueError(f"{path} holds no tokenizer; generate from a checkpoint that `liquidnet train` wrote")
    model = backends.load(backend, "model").build(checkpoint.config)
    if backend == "torch":  # JAX places arrays itself
        model.to(backends.load(backend, "devices").default_device())
    backends.load(backend, "checkpoint").load_parameters(model, checkpoint.parameters)
    return backends.load(backend, "generate").make_step(model), parse_tokenizer(checkpoint.tokenizer)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Token ids [1, t] of a prompt; ValueError where it is empty."""
    try:
        ids = tokenizer.encode(prompt)
    except (UnicodeEncodeError, TypeError) as error:
        raise ValueError("the prompt is not UTF-8; give text with --prompt") from error
    if len(ids) == 0:
        raise ValueError("the prompt is empty; give at least one character with --prompt")
    return np.asarray(ids, np.int64)[None]


def stream_text(
    step: Step, tokenizer: Tokenizer, prompt: np.ndarray, sampling: Sampling, max_tokens: int
) -> Iterator[str]:
    """Pieces of the text that follows the prompt, up to an end-of-text token or `max_tokens` tokens."""
    decoder = tokenizer.stream_decoder()
    for _, tokens_b in zip(range(max_tokens), generate(step, prompt, sampling), strict=False):
        if tokens_b[0] == tokenizer.end_of_text_id:
            break
        yield decoder.push(int(tokens_b[0]))
    yield decoder.flush()
