"""A GPT-2 of equal size behind `transformers serve`, where that is installed: pip install 'transformers[serving]'."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spec.config import ModelConfig
from tools.bench.serving.clients import Server, started
from tools.bench.timer import NotRun


@contextmanager
def peer(directory: Path, config: ModelConfig, tokenizer: str, positions: int) -> Iterator[Server]:
    """The server while the block runs.

    Args:
        directory: where the model is written to.
        config: of the model that it is to equal in width, depth and vocabulary.
        tokenizer: content of a tokenizer.json.
        positions: that it has.

    Raises:
        NotRun: it is not installed, or does not start.
    """
    for package in ("transformers", "fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(package) is None:
            raise NotRun(f"{package} is not installed")
    _write(directory, config, tokenizer, positions)
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(directory)]
    try:
        with started([*command, "--device", "cpu", "--dtype", "float32"], str(directory)) as server:
            yield server
    except RuntimeError as error:
        raise NotRun(str(error)) from error


def _write(directory: Path, config: ModelConfig, tokenizer: str, positions: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from tools.bench import peers  # it needs torch

    shape = peers.equal_to(config, positions)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size, n_positions=positions, n_embd=shape.d_model, n_layer=shape.n_layers,
            n_head=shape.n_heads, bos_token_id=shape.vocab_size - 1, eos_token_id=shape.vocab_size - 1,
        )
    ).save_pretrained(directory)  # fmt: skip
    (directory / "tokenizer.json").write_text(tokenizer)
    PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json")).save_pretrained(directory)
