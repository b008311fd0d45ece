"""Sampling, shared by both backends so that one seed writes one text on either."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from spec.data import document_resets
from spec.init import stream
from spec.inputs import INTEGER, check_masks, check_token_values, require_dtype

Step = Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]
#: Tokens of a prompt that are absorbed at a time: what a prompt needs of memory does not grow with it.
PROMPT_PIECE = 4096


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: divides the logits; 0 takes the most likely token. Source: Ackley, Hinton and Sejnowski 1985.
        top_k: keep the k most likely tokens; 0 keeps all. Source: Fan, Lewis and Dauphin 2018.
        top_p: keep the smallest set of most likely tokens that holds this probability; 1 keeps all. Source: Holtzman
            et al. 2020, section 3.1 (nucleus sampling).
        seed: of the uniforms.

    Raises:
        ValueError: a value out of range, named.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if getattr(value, "shape", None) == () and hasattr(value, "item"):  # an array of one number is that number
                object.__setattr__(self, field.name, value.item())
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            # Integers of NumPy too, which `require_integer` leaves out: it checks what JSON has.
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"{name} must be an integer, got {value!r}")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0.0 <= self.temperature <= 1e3:
            raise ValueError(f"temperature must be in [0, 1000], got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")


def uniforms(seed: int, position: int, rows: int) -> np.ndarray:
    """One uniform of [0, 1) a row for the token at `position`: a pure function of its arguments.

    Source: Philox, a counter-based generator: Salmon et al. 2011.
    """
    return stream(seed, f"sampling, position {position}").random(rows)


def sample(logits_bv: np.ndarray, sampling: Sampling, uniforms_b: np.ndarray) -> np.ndarray:
    """Draw one token a row by inverting the cumulative distribution, in float64.

    The token of uniform u is the least i with w_0 + ... + w_i > u (w_0 + ... + w_{v-1}), w the weights that are left.
    Temperature, top-k and top-p in this order, each over what the one before has left, as in transformers' `generate`.
    Source: the inversion method, Devroye 1986, section III.2.

    Args:
        logits_bv: logits, [b, v].
        sampling: temperature, top-k and top-p.
        uniforms_b: one uniform a row.

    Raises:
        ValueError: a logit is not finite.
    """
    if not np.isfinite(logits_bv).all():
        raise ValueError("the model produced a logit that is not finite; its weights are broken; take others")
    if sampling.temperature == 0.0:
        return logits_bv.argmax(axis=-1)
    below_best = logits_bv.astype(np.float64) - logits_bv.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # a temperature near 0 takes the others to exp(-inf)
        weight = np.exp(below_best / sampling.temperature)
    order = np.argsort(-weight, axis=-1, kind="stable")
    if 0 < sampling.top_k < weight.shape[-1]:
        np.put_along_axis(weight, order[:, sampling.top_k :], 0.0, axis=-1)
    if sampling.top_p < 1.0:
        ranked = np.take_along_axis(weight, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked
        outside = before >= sampling.top_p * ranked.sum(axis=-1, keepdims=True)
        np.put_along_axis(weight, order, np.where(outside, 0.0, ranked), axis=-1)
    cumulative = np.cumsum(weight, axis=-1)
    below = cumulative <= uniforms_b[:, None] * cumulative[:, -1:]
    return below.sum(axis=-1)


def generate(
    step: Step,
    prompt_bt: np.ndarray,
    sampling: Sampling,
    states: Any = None,
    position: int = 0,
    resets_bt: np.ndarray | None = None,
    end_of_text_id: int | None = None,
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

    Raises:
        ValueError: the prompt is empty, or the resets have another shape or are not bool.
    """
    if prompt_bt.ndim != 2 or 0 in prompt_bt.shape:
        raise ValueError(f"the prompt [b, t] needs at least one token, got shape {prompt_bt.shape}")
    check_masks(prompt_bt.shape, resets_bt)
    resets_bt = np.zeros(prompt_bt.shape, bool) if resets_bt is None else resets_bt
    resets_bt = resets_bt | document_resets(prompt_bt, end_of_text_id)
    cuts = {*range(0, prompt_bt.shape[1], PROMPT_PIECE), *np.flatnonzero(resets_bt.any(axis=0)).tolist()}
    for start, stop in itertools.pairwise([*sorted(cuts), prompt_bt.shape[1]]):
        logits_bv, states = step(prompt_bt[:, start:stop], _cleared(states, resets_bt[:, start]))
    position += prompt_bt.shape[1]
    before_b = prompt_bt[:, -1]
    while True:
        tokens_b = sample(logits_bv, sampling, uniforms(sampling.seed, position, len(logits_bv)))
        yield tokens_b
        resets_b = document_resets(np.stack([before_b, tokens_b], axis=1), end_of_text_id)[:, 1]
        logits_bv, states = step(tokens_b[:, None], _cleared(states, resets_b))
        position, before_b = position + 1, tokens_b


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
    drawn = generate(step, prompt_bt, sampling, resets_bt=resets_bt, end_of_text_id=end_of_text_id)
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
