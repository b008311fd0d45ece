"""`liquidnet compare`: two checkpoints, or one in both backends, to the first tensor outside its bound."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import tyro

from parity.proof.layer_diff.diff import first_outside, locate
from parity.proof.layer_diff.weights import differences
from spec.checkpoint.files import read_utf8, require_file
from spec.checkpoint.format import Checkpoint
from spec.config import require_known
from spec.mixers import family
from tools import convert
from tools.cli import backends
from tools.cli.destination import require_new_or_file
from tools.cli.json_file import write_json
from tools.cli.progress import working
from tools.compare.report import ComparedModel, Comparison, as_json, show
from tools.tokenizer import Tokenizer, parse_tokenizer

TEXT = (
    "Once upon a time, a little fox lived beside a river. One day she found a red ball in the grass, "
    'and she asked her friends: "Who has lost it?"'
)
SHAPE = ("vocab_size", "d_model", "d_ff", "n_layers")
MOST_TOKENS = 4096
CHARACTERS_A_TOKEN = 64
_PREFIX = re.compile(r"(\w+):(.+)", re.DOTALL)


@dataclass(frozen=True)
class Compare:
    """Compare two checkpoints, or one checkpoint in both backends, layer by layer on one text.

    Both run in float32 and are held against the float64 reference with the weights of A. An error is told in units of
    its bound, an estimate of what rounding may do. Exit code 0: every tensor is within its bound; 1: one is not.
    """

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """A run (its newest checkpoint), a checkpoint directory, a .pt or .msgpack file; after torch: or jax: to choose."""
    b: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[B]")] = None
    """The same, for the other side; by default A in the other backend."""
    text: str | None = None
    """Text to run on; by default two sentences."""
    text_file: Path | None = None
    """UTF-8 file to take the text from."""
    max_tokens: int = 256
    """Tokens of it to use at most."""
    all: bool = False
    """Show every tensor, not only those around the first one outside its bound."""
    json: Path | None = None
    """Write everything to this file too."""

    def run(self) -> None:
        sources = [parse_source(source)[1] for source in (self.a, self.b) if source is not None]
        require_new_or_file(self.json, "--json", sources if self.text_file is None else [*sources, self.text_file])
        text = self._text()
        a, b = open_models(self.a, self.b)
        constants = compare_configurations(a, b)
        tokenizer = shared_tokenizer(a, b)
        tokens = encode(text, tokenizer, a.checkpoint.config.vocab_size, self.max_tokens)
        for model in (a, b):
            backends.load(model.backend, "model")
        config, parameters = a.checkpoint.config, a.checkpoint.parameters
        with working("running both models") as report:
            activations = [activations_of(model, tokens) for model in (a, b)]
            weights = differences(config, parameters, b.checkpoint.parameters)
            report("running the float64 reference")
            rows = locate(float32(a.checkpoint), config, tokens, activations)
        comparison = Comparison((a, b), constants, weights, tokenizer, tokens, rows)
        show(comparison, self.all)
        if self.json is not None:
            write_json(self.json, as_json(comparison))
        if first_outside(rows) is not None:
            sys.exit(1)

    def _text(self) -> str:
        if not 1 <= self.max_tokens <= MOST_TOKENS:
            raise ValueError(f"--max-tokens must be in [1, {MOST_TOKENS}], got {self.max_tokens}")
        if self.text is not None and self.text_file is not None:
            raise ValueError("give either --text or --text-file, not both")
        if self.text_file is not None:
            # A device would be read for ever.
            require_file(self.text_file)
        text = read_utf8(self.text_file) if self.text_file is not None else TEXT if self.text is None else self.text
        if not text:
            raise ValueError("the text is empty; give at least one character with --text or --text-file")
        return text[: CHARACTERS_A_TOKEN * self.max_tokens]


def open_models(a: str, b: str | None) -> tuple[ComparedModel, ComparedModel]:
    """Both checkpoints, each with its backend, that named before its path.

    Where none is named, A takes the first one installed, and B that of A; one path for both is run in both backends.
    """
    backend_a, path_a = parse_source(a)
    backend_b, path_b = (None, path_a) if b is None else parse_source(b)
    same = path_a.resolve() == path_b.resolve()
    if backend_a is None:
        backend_a = other(backend_b) if same and backend_b is not None else backends.default()
    if backend_b is None:
        backend_b = other(backend_a) if same else backend_a
    checkpoint = convert.read(path_a)
    other_checkpoint = checkpoint if same else convert.read(path_b)
    return ComparedModel("A", backend_a, path_a, checkpoint), ComparedModel("B", backend_b, path_b, other_checkpoint)


def parse_source(source: str) -> tuple[backends.Backend | None, Path]:
    """Backend, where one is named, and path of PATH, `torch:PATH` or `jax:PATH`."""
    prefixed = _PREFIX.fullmatch(source)
    if prefixed is None or Path(source).exists():
        return None, Path(source)
    require_known("backend", prefixed[1], backends.BACKENDS)
    return cast(backends.Backend, prefixed[1]), Path(prefixed[2])


def other(backend: backends.Backend) -> backends.Backend:
    """The backend that this one is not."""
    return next(name for name in backends.BACKENDS if name != backend)


def compare_configurations(a: ComparedModel, b: ComparedModel) -> dict[str, tuple[object, object]]:
    """The constants of both models where they differ, by name; raises ValueError where their families or shapes do."""
    families = [model.checkpoint.config.family for model in (a, b)]
    if families[0] != families[1]:
        raise ValueError(
            f"{a.path} and {b.path} are models of different families: {' and '.join(families)}; take two alike"
        )
    first, second = asdict(a.checkpoint.config), asdict(b.checkpoint.config)
    unequal = {name: (value, second[name]) for name, value in first.items() if value != second[name]}
    shape = (*SHAPE, *family(a.checkpoint.config).shape_fields)
    shapes = [f"{name} {unequal[name][0]} and {unequal[name][1]}" for name in shape if name in unequal]
    if shapes:
        raise ValueError(f"{a.path} and {b.path} are models of different shapes: {', '.join(shapes)}; take two alike")
    return unequal


def shared_tokenizer(a: ComparedModel, b: ComparedModel) -> Tokenizer | None:
    """The tokenizer that the checkpoints hold, or None; raises ValueError where they hold different ones."""
    held = [model.checkpoint.tokenizer for model in (a, b) if model.checkpoint.tokenizer is not None]
    if len(set(held)) > 1:
        raise ValueError(
            f"{a.path} and {b.path} have different tokenizers: one text is other tokens to each; take two alike"
        )
    return parse_tokenizer(held[0]) if held else None


def encode(text: str, tokenizer: Tokenizer | None, vocab_size: int, max_tokens: int) -> np.ndarray:
    """Token ids [1, t] of the text; without a tokenizer its bytes modulo the vocabulary."""
    try:
        if tokenizer is None:
            ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64) % vocab_size
        else:
            ids = np.asarray(tokenizer.encode(text), np.int64)
    except (UnicodeEncodeError, TypeError) as error:
        raise ValueError("the text is not UTF-8; give text with --text or --text-file") from error
    if len(ids) == 0:
        raise ValueError("the tokenizer makes no token of this text; give another with --text or --text-file")
    ids = ids[:max_tokens]
    if ids.max() >= vocab_size:
        raise ValueError(
            f"the tokenizer gives token {ids.max()}, the model has a vocabulary of {vocab_size}; take another model"
        )
    return ids[None]


def float32(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The parameters as a model holds them."""
    return {path: array.astype(np.float32) for path, array in checkpoint.parameters.items()}


def activations_of(model: ComparedModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What each module of the model gives on the tokens, by the module's path."""
    recorder = importlib.import_module(f"parity.proof.layer_diff.activations_{model.backend}")
    return recorder.activations(recorder.load(model.checkpoint.config, model.checkpoint.parameters), tokens)
