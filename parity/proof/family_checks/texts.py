"""That the state of a backend is that of the reference: a text in pieces, row by row, token by token, reset, padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from parity.proof import adapters
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from parity.proof.family_checks.assertions import require_same
from parity.proof.family_checks.backend import module_of
from parity.proof.family_checks.problem import STEPS
from parity.proof.operations.base import UNITS, Arrays
from parity.proof.problems.cases import perturbed_parameters
from spec.config import ModelConfig
from spec.mixers import families, state_shape
from spec.reference import forward


class Text(NamedTuple):
    """Rows of tokens for a whole model, with what stands before and among them."""

    tokens: np.ndarray
    states: np.ndarray
    resets: np.ndarray
    padding: np.ndarray

    def of_rows(self, rows: Sequence[int]) -> Text:
        return Text(self.tokens[rows], self.states[:, rows], self.resets[rows], self.padding[rows])

    def of_steps(self, first: int, last: int, states: np.ndarray) -> Text:
        steps = slice(first, last)
        return Text(self.tokens[:, steps], states, self.resets[:, steps], self.padding[:, steps])


class Result(NamedTuple):
    """What a model gives of a text, logits [b, t, v] and last states [l, b, n]; or a bound on the error of each."""

    logits: np.ndarray
    last: np.ndarray

    def of_rows(self, rows: Sequence[int]) -> Result:
        return Result(self.logits[rows], self.last[:, rows])

    def of_steps(self, steps: Sequence[int] | np.ndarray, last: np.ndarray) -> Result:
        return Result(self.logits[:, steps], last)


def backend_texts(name: str, backend: str) -> None:
    """What holds of the reference's state holds of the twin's, within the bound on the rounding of a text in float32.

    The text as it is; a row alone; rows in another order; in two pieces; token by token; another last token; other
    padded tokens; a state that a reset clears. Each against the float64 reference of the whole text; for the bound see
    parity/proof/bounds/monte_carlo_arithmetic.py.
    """
    config = families()[name].small_config()
    params, text = perturbed_parameters(config, 3), _text(config)
    other = (text.tokens + 1) % config.vocab_size
    remedy = f"as the reference does; compare {module_of(name, backend)} with it"

    def run(text: Text) -> Result:
        return Result(*adapters.load(backend).model(params, config, *text))

    def compare(what: str, found: Result, truth: Result, bound: Result) -> None:
        for key, *arrays in zip(Result._fields, found, truth, bound, strict=True):
            require_same(f"{backend}: {what}: {key}", *arrays, remedy)

    truth, bound = _model_truth(params, config, text)
    compare("the text", run(text), truth, bound)
    for what, rows in (("row 1 alone", [1]), ("the rows in reverse", [1, 0])):
        compare(what, run(text.of_rows(rows)), truth.of_rows(rows), bound.of_rows(rows))
    compare("the text in two pieces", _in_pieces(run, text, STEPS // 2), truth, bound)
    compare("the text token by token", _in_pieces(run, text, 1), truth, bound)
    changed = run(text._replace(tokens=np.where(np.arange(STEPS) == STEPS - 1, other, text.tokens)))
    before = range(STEPS - 1)  # the state after the last token is another one
    arrays = (
        changed.of_steps(before, truth.last),
        truth.of_steps(before, truth.last),
        bound.of_steps(before, bound.last),
    )
    compare("before another last token", *arrays)
    kept = np.flatnonzero(~text.padding[0])
    found = run(text._replace(tokens=np.where(text.padding, other, text.tokens)))
    compare("with other padded tokens", *(x.of_steps(kept, x.last) for x in (found, truth, bound)))
    fresh = _model_truth(params, config, text._replace(states=np.zeros_like(text.states)))
    cleared = text._replace(resets=text.resets | (np.arange(STEPS) == 0))
    compare("after a reset of another state", run(cleared), *fresh)


def _text(config: ModelConfig) -> Text:
    """Two rows from a state that is not zero; a reset in one of them, and a padded token in both."""
    draw, shape = np.random.default_rng(9), (2, STEPS)
    tokens = draw.integers(0, config.vocab_size, shape).astype(np.int32)
    states = draw.standard_normal(state_shape(config, 2)).astype(np.float32)
    resets, padding = np.zeros((2, *shape), bool)
    resets[1, 4] = padding[:, 2] = True
    return Text(tokens, states, resets, padding)


def _in_pieces(run: Callable[[Text], Result], text: Text, size: int) -> Result:
    """Piece after piece, each from the state that the one before has left."""
    state, logits = text.states, []
    for first in range(0, STEPS, size):
        found = run(text.of_steps(first, first + size, state))
        logits.append(found.logits)
        state = found.last
    return Result(np.concatenate(logits, axis=1), state)


def _model_truth(params: Arrays, config: ModelConfig, text: Text) -> tuple[Result, Result]:
    """What the reference gives, and how far float32 may lie from it."""

    def compute(lift: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        lifted = {path: lift(x) for path, x in params.items()}
        found = forward(lifted, config, text.tokens, lift(text.states), text.resets, text.padding)
        return dict(zip(Result._fields, found, strict=True))

    truth = compute(lambda x: np.asarray(x, np.float64))
    return Result(**truth), Result(**estimate(compute, truth, UNITS["float32"]))
