"""Sampling, shared by both backends so that one seed writes one text on either."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from spec.data import document_resets
from spec.init import stream
from spec.inputs import INTEGER, check_masks, check_token_values, require_dtype
from spec.sampling.draw import adjusted, logprobs, not_finite, sample
from spec.sampling.parameters import Sampling

__all__ = [
    "PROMPT_PIECE",
    "Sampler",
    "Sampling",
    "Step",
    "StepInput",
    "StepOutput",
    "adjusted",
    "check_end_of_text",
    "check_tokens",
    "complete",
    "draw_tokens",
    "generate",
    "logprobs",
    "not_finite",
    "piece_starts",
    "sample",
    "uniforms",
]

StepOutput = tuple[np.ndarray, Any]
"""Logits of the last position [b, v], and the states after it."""
Step = Callable[[np.ndarray, Any], StepOutput]
Sampler = Callable[[np.ndarray, Sampling, np.ndarray], np.ndarray]
"""`sample`, or what computes the same faster where logits are."""
#: Tokens of a prompt that `generate` absorbs at a time: what a prompt needs of memory does not grow with it.
PROMPT_PIECE = 4096


class StepInput(NamedTuple):
    """What a step is asked to absorb.

    Args:
        tokens_bt: at least one token a row.
        states: those that earlier tokens have left; None where there are none.
    """

    tokens_bt: np.ndarray
    states: Any


def uniforms(seed: int, position: int, rows: int) -> np.ndarray:
    """One uniform of [0, 1) a row for the token at `position`: a pure function of its arguments.

    Source: Philox, a counter-based generator: Salmon et al. 2011.
    """
    return stream(seed, f"sampling, position {position}").random(rows)


def piece_starts(length: int, piece: int) -> list[int]:
    """Where the pieces begin in which a prompt is absorbed: every `piece` tokens, and the last token of a longer one.

    So they are a function of the prompt: what two texts begin with alike is absorbed alike, to the bit, and the states
    in between can be kept for the next one. The last token of a prompt of several pieces is a step like any that is
    drawn; one of a single piece is read at once, which takes no longer than a step more would.

    Args:
        length: of the prompt, at least 1.
        piece: tokens absorbed at a time, at most.
    """
    return [0] if length <= piece else sorted({*range(0, length, piece), length - 1})


def draw_tokens(
    prompt_bt: np.ndarray,
    sampling: Sampling,
    states: Any = None,
    position: int = 0,
    resets_bt: np.ndarray | None = None,
    end_of_text_id: int | None = None,
    starts: Iterable[int] | None = None,
    sampler: Sampler = sample,
) -> Generator[StepInput | np.ndarray, StepOutput | None, None]:
    """The loop of generation as a coroutine: whoever runs it takes the steps, of one text or of many at once.

    It yields StepInput and is sent what the step gives, and yields each tokens [b] that are drawn, without end.

    Args:
        prompt_bt, sampling, states, position, resets_bt, end_of_text_id: see `generate`.
        starts: where the pieces begin in which the prompt is absorbed, 0 among them; None is every PROMPT_PIECE tokens.
        sampler: draws a token a row.
    """
    if prompt_bt.ndim != 2 or 0 in prompt_bt.shape:
        raise ValueError(f"the prompt [b, t] needs at least one token, got shape {prompt_bt.shape}")
    check_masks(prompt_bt.shape, resets_bt)
    resets_bt = np.zeros(prompt_bt.shape, bool) if resets_bt is None else resets_bt
    resets_bt = resets_bt | document_resets(prompt_bt, end_of_text_id)
    length = prompt_bt.shape[1]
    cuts = {*(range(0, length, PROMPT_PIECE) if starts is None else starts)}
    cuts |= {*np.flatnonzero(resets_bt.any(axis=0)).tolist()}
    logits_bv = np.empty((0, 0))
    for start, stop in itertools.pairwise([*sorted(cuts), length]):
        output = yield StepInput(prompt_bt[:, start:stop], _cleared(states, resets_bt[:, start]))
        assert output is not None
        logits_bv, states = output
    position += length
    before_b = prompt_bt[:, -1]
    drawn: list[Counter[int]] = [Counter() for _ in prompt_bt]
    while True:
        if sampling.adjusts_logits:
            rows = [adjusted(logits_v, sampling, counts) for logits_v, counts in zip(logits_bv, drawn, strict=True)]
            logits_bv = np.stack(rows)
        tokens_b = sampler(logits_bv, sampling, uniforms(sampling.seed, position, len(logits_bv)))
        yield tokens_b
        for counts, token in zip(drawn, tokens_b.tolist(), strict=True):
            counts[token] += 1
        resets_b = document_resets(np.stack([before_b, tokens_b], axis=1), end_of_text_id)[:, 1]
        output = yield StepInput(tokens_b[:, None], _cleared(states, resets_b))
        assert output is not None
        logits_bv, states = output
        position, before_b = position + 1, tokens_b


def generate(
    step: Step,
    prompt_bt: np.ndarray,
    sampling: Sampling,
    states: Any = None,
    position: int = 0,
    resets_bt: np.ndarray | None = None,
    end_of_text_id: int | None = None,
    sampler: Sampler = sample,
) -> Iterator[np.ndarray]:
    """Yield the tokens [b] that follow the prompt, without end: memory is one state, whatever the length.

    Args:
        step: (tokens [b, t], states or None) -> (logits of the last position [b, v], states).
        prompt_bt: at least one token a row.
        sampling: how each token is drawn.
        states: those that earlier tokens have left, if any.
        position: how many tokens those were.
        resets_bt: true clears the state before that token of the prompt is absorbed, [b, t]; None is nowhere.
        end_of_text_id: as `resets_bt` after each such token, of the prompt or drawn: a new document, as in training.
        sampler: draws a token a row.

    Raises:
        ValueError: the prompt is empty, or the resets have another shape or are not bool.
    """
    loop = draw_tokens(prompt_bt, sampling, states, position, resets_bt, end_of_text_id, sampler=sampler)
    event = next(loop)
    while True:
        if isinstance(event, StepInput):
            event = loop.send(step(*event))
        else:
            yield event
            event = next(loop)


def _cleared(states: Any, resets_b: np.ndarray) -> Any:
    """The states of the rows that are reset become zero; they leave as NumPy where there are any."""
    if states is None or not resets_b.any():
        return states
    states = np.asarray(getattr(states, "cpu", lambda: states)()).copy()
    states[:, resets_b] = 0
    return states


def complete(
    step: Step,
    prompt_bt: np.ndarray,
    max_length: int,
    sampling: Sampling,
    resets_bt: np.ndarray | None = None,
    end_of_text_id: int | None = None,
    sampler: Sampler = sample,
) -> np.ndarray:
    """The prompt and what follows it, [b, max_length], see `generate`.

    Raises:
        ValueError: the prompt is already longer, or what `generate` refuses.
    """
    if isinstance(max_length, bool) or not isinstance(max_length, Integral):
        raise ValueError(f"max_length must be an integer, got {max_length!r}")
    require_dtype("tokens", prompt_bt, INTEGER)
    if prompt_bt.ndim != 2 or 0 in prompt_bt.shape:
        raise ValueError(f"the prompt [b, t] needs at least one token, got shape {prompt_bt.shape}")
    missing = max_length - prompt_bt.shape[1]
    if missing < 0:
        raise ValueError(f"max_length {max_length} counts the prompt, which alone has {prompt_bt.shape[1]} tokens")
    drawn = generate(step, prompt_bt, sampling, resets_bt=resets_bt, end_of_text_id=end_of_text_id, sampler=sampler)
    return np.concatenate([prompt_bt, *(tokens_b[:, None] for tokens_b in itertools.islice(drawn, missing))], axis=1)


def check_end_of_text(end_of_text_id: Any, vocab_size: int) -> None:
    """Raises ValueError where an end of text is neither None nor a token id of the vocabulary."""
    if end_of_text_id is None:
        return
    if isinstance(end_of_text_id, bool) or not isinstance(end_of_text_id, Integral):
        raise ValueError(f"end_of_text_id must be an integer, got {end_of_text_id!r}")
    if not 0 <= int(end_of_text_id) < vocab_size:
        raise ValueError(f"end_of_text_id must be in [0, {vocab_size}), got {end_of_text_id}")


def check_tokens(tokens_bt: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError for what is no integer, and for a token id outside [0, vocab_size)."""
    require_dtype("tokens", tokens_bt, INTEGER)
    check_token_values(tokens_bt, vocab_size)
