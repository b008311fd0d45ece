"""What `liquidnet compare` found, for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from parity.proof.layer_diff.activations import family_at
from parity.proof.layer_diff.diff import Error, Row, first_outside
from parity.proof.layer_diff.weights import tensor_of
from spec.checkpoint.format import Checkpoint
from spec.config import ModelConfig
from tools.cli.backends import Backend
from tools.cli.json_file import Json
from tools.tokenizer import Tokenizer

ROWS_BEFORE, ROWS_AFTER, WEIGHTS, LAYERS = 3, 5, 5, 4
FORMULAS = {
    "embedding": "E[tokens]",
    "mixer_norm": "RMSNorm(x)",
    "mixer.state": "h after the last token",
    "mlp_norm": "RMSNorm(x + s y)",
    "mlp.input": "gate | up = W r",
    "mlp.product": "silu(gate) * up",
    "mlp.output": "u = W (silu(gate) * up)",
    "": "x + s y + s u",
    "final_norm": "RMSNorm(x)",
    "logits": "RMSNorm(x) E^T",
}


@dataclass(frozen=True)
class ComparedModel:
    """One of the two models.

    Args:
        letter: A or B.
        backend: what it computes with.
        path: where the checkpoint came from.
        checkpoint: its configuration and weights.
    """

    letter: str
    backend: Backend
    path: Path
    checkpoint: Checkpoint

    def __str__(self) -> str:
        return f"{self.letter} ({self.backend})"


@dataclass(frozen=True)
class Comparison:
    """Everything that was found.

    Args:
        models: A and B.
        constants: of the configuration, where they differ, by name.
        weights: parameters that differ, by path, and how B's came from A's.
        tokenizer: of the text, None for bytes.
        tokens: [1, t].
        rows: every tensor in the order of the forward pass.
    """

    models: tuple[ComparedModel, ComparedModel]
    constants: dict[str, tuple[object, object]]
    weights: dict[str, str]
    tokenizer: Tokenizer | None
    tokens: np.ndarray
    rows: Sequence[Row]

    @property
    def config(self) -> ModelConfig:
        """A's, whose family and shape are B's too."""
        return self.models[0].checkpoint.config


def show(found: Comparison, everything: bool) -> None:
    """Print what differs beforehand, the table and the verdict."""
    console = Console(highlight=False)
    for line in _before(found):
        console.print(line, markup=False, soft_wrap=True)
    console.print(_table(found, everything))
    for line in _verdict(found):
        console.print(line, markup=False, soft_wrap=True)


def as_json(found: Comparison) -> Json:
    """Everything, for a file; a number that is not finite becomes null."""
    first = first_outside(found.rows)
    return {
        "within": first is None,
        "first": first and {"tensor": first.tensor, "sides": [found.models[i].letter for i in first.outside]},
        "sides": {
            model.letter: {"backend": model.backend, "path": str(model.path), "step": model.checkpoint.state["step"]}
            for model in found.models
        },
        "configuration": {name: dict(zip("AB", values, strict=True)) for name, values in found.constants.items()},
        "weights": found.weights,
        "tokens": found.tokens[0].tolist(),
        "rows": [
            {
                "tensor": row.tensor,
                "difference": _finite(row.difference),
                "so_far": {model.letter: _json(row.whole[i]) for i, model in enumerate(found.models)},
                "layer": {model.letter: _json(row.alone[i]) for i, model in enumerate(found.models)},
            }
            for row in found.rows
        ],
    }


def _before(found: Comparison) -> list[str]:
    lines = [f"{s}: {s.path}, step {s.checkpoint.state['step']}" for s in found.models]
    lines += [f"configuration: {name} is {a} in A and {b} in B" for name, (a, b) in found.constants.items()]
    if found.weights:
        lines.append(f"weights: {len(found.weights)} of {len(found.models[0].checkpoint.parameters)} tensors differ")
        lines += [f"  {path} of B {words}" for path, words in list(found.weights.items())[:WEIGHTS]]
        lines += [f"  and {len(found.weights) - WEIGHTS} more"] * (len(found.weights) > WEIGHTS)
    if found.tokenizer is None:
        lines.append("text: no tokenizer is stored; the tokens are its bytes modulo the vocabulary")
    return [*lines, "so far: the error since the tokens; layer: of this layer alone, on what its own model gave it"]


def _table(found: Comparison, everything: bool) -> Table:
    table = Table(
        title=f"largest errors on {found.tokens.shape[1]} tokens, in units of the bound", title_justify="left"
    )
    table.add_column("tensor", no_wrap=True)
    for heading in (*(f"{model.letter} {part}" for model in found.models for part in ("so far", "layer")), "A - B"):
        table.add_column(heading, justify="right")
    first = first_outside(found.rows)
    position = -1
    for i, row in _shown(found.rows, first, everything):
        if first is not None and i != position + 1:
            table.add_row("...")
        position = i
        errors = [error for pair in zip(row.whole, row.alone, strict=True) for error in pair]
        cells = [_marked(error) for error in errors]
        table.add_row(row.tensor, *cells, f"{row.difference:.1e}", style="bold" if row is first else None)
    return table


def _shown(rows: Sequence[Row], first: Row | None, everything: bool) -> list[tuple[int, Row]]:
    """The rows around the first one outside its bound; where there is none, what each block gives."""
    numbered = list(enumerate(rows))
    if everything:
        return numbered
    if first is None:
        return [(i, row) for i, row in numbered if row.tensor.count(".") < 2 and not row.tensor.endswith("final_norm")]
    at = rows.index(first)
    return [(i, row) for i, row in numbered if at - ROWS_BEFORE <= i <= at + ROWS_AFTER or row.tensor == "logits"]


def _marked(error: Error) -> str:
    return f"[red]{error.units:.2g}[/red]" if error.units > 1.0 else f"{error.units:.2g}"


def _verdict(found: Comparison) -> list[str]:
    first = first_outside(found.rows)
    if first is None:
        worst, tensor, model = max(
            (row.worst(i).units, row.tensor, str(model)) for row in found.rows for i, model in enumerate(found.models)
        )
        lines = [f"every tensor is within its bound; the largest error is {worst:.2g} of it, {tensor} of {model}"]
        differs = bool(found.weights or found.constants)
        return lines + ["what differs between them changes nothing on this text beyond rounding"] * differs
    names = " and ".join(str(found.models[i]) for i in first.outside)
    worst = max((first.worst(i) for i in first.outside), key=lambda error: error.units)
    before = "" if first is found.rows[0] else "; every tensor before it is within its bound"
    return [
        f"{first.tensor} of {names} is the first tensor outside its bound: off by {worst.units:.3g} bounds",
        f"  {_place(found, first, worst)}: got {worst.got:.9g}, expected {worst.expected:.9g}, bound {worst.bound:.2g}",
        f"  {first.tensor}: {_formula(found, first.tensor)}{before}",
        f"  {_cause(found, first)}",
        *_others(found, first),
    ]


def _place(found: Comparison, row: Row, error: Error) -> str:
    """Where the worst entry of a tensor is, in words."""
    batch, *position, channel = error.at
    tokens = found.tokens[batch]
    at = position[0] if position else len(tokens) - 1
    entry = f"entry {channel} ({_piece(found, channel)})" if row.tensor == "logits" else f"channel {channel}"
    return f"row {batch}, position {at} ({_piece(found, int(tokens[at]))}), {entry}"


def _piece(found: Comparison, token: int) -> str:
    if found.tokenizer is None or token >= found.tokenizer.vocab_size:
        return f"token {token}"
    return repr(found.tokenizer.decode([token]))


def _formula(found: Comparison, tensor: str) -> str:
    formulas = {**FORMULAS, **family_at(found.config, tensor).formulas}
    return formulas[tensor] if tensor in formulas else formulas[".".join(tensor.split(".")[2:])]


def _cause(found: Comparison, first: Row) -> str:
    """What is known of the reason that the tensor is off."""
    weights = [path for path in found.weights if tensor_of(found.config, path) == first.tensor]
    weights += ["embedding.weight"] * (first.tensor == "logits" and "embedding.weight" in found.weights)
    if weights and 1 in first.outside:
        return f"{weights[0]} of B {found.weights[weights[0]]}"
    if all(error.units <= 1.0 for error in first.alone):
        return "no layer up to it is off on its own inputs: small errors add up to more than the estimate allows"
    own = family_at(found.config, first.tensor)
    recurrent = f"mixer.{own.recurrence}", "mixer.state"
    for name, parts in {"norm_eps": ("norm",), **dict.fromkeys(own.constants, recurrent)}.items():
        if name in found.constants and 1 in first.outside and first.tensor.endswith(parts):
            return f"{name} is {found.constants[name][0]} in A and {found.constants[name][1]} in B"
    if len(first.outside) > 1:
        return "both are off, by weights and configuration of A: the reference, or what both sides share, is wrong"
    model = found.models[first.outside[0]]
    return f"A and B have the same weights and constants here: the fault is in what {model.backend} computes"


def _others(found: Comparison, first: Row) -> list[str]:
    """The other layers that are off on their own inputs: not consequences."""
    others = [
        f"{row.tensor} of {found.models[i]}"
        for row in found.rows
        for i, error in enumerate(row.alone)
        if error.units > 1.0 and row is not first
    ]
    if not others:
        return ["  every later layer is right about what it gets: the rest follows from this"]
    more = f" and {len(others) - LAYERS} more" if len(others) > LAYERS else ""
    return [f"  off on their own inputs too: {', '.join(others[:LAYERS])}{more}"]


def _json(error: Error) -> Json:
    numbers = {name: _finite(getattr(error, name)) for name in ("units", "got", "expected", "bound")}
    return {**numbers, "at": list(error.at)}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
