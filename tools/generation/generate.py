"""Text from a checkpoint, streamed, in constant memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from spec.checkpoint.quantization import Weights
from spec.sampling import Sampling
from tools.cli import backends
from tools.generation.session import open_model


@dataclass(frozen=True)
class Generate:
    """Continue a prompt. One seed writes the same text on either backend, near-ties aside."""

    checkpoint: Path
    """A run (its newest checkpoint), a checkpoint directory, a .pt or a .msgpack file."""
    prompt: str = "Once upon a time"
    """Text to continue."""
    backend: backends.Backend | None = None
    """Backend to compute with; by default the first one installed."""
    weights: Weights = "float32"
    """Round the matrices to bfloat16, or to int8 with a scale a row, and write with these: less to read a token."""
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
        session = open_model(self.checkpoint, self.backend, self.weights).session()
        session.append(self.prompt)
        if session.is_empty:
            raise ValueError("the prompt is empty; give at least one character with --prompt")
        sys.stdout.write(self.prompt)
        try:
            for piece in session.write(sampling, self.max_tokens):
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            # What is said of a Ctrl-C has a line of its own.
            sys.stdout.write("\n")
