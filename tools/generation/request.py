"""What is asked of the generation engine, and what it answers; plain values, whoever asks: a server, a page, a test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from spec.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled", "shutdown", "error"]
"""stop: an end of text or a stop string; length: max_tokens; cancelled: the client left; shutdown: the server ends;
error: the device failed, or a logit was not finite."""


@dataclass(frozen=True, eq=False)
class SessionState:
    """All that is kept of a text, of one size whatever its length.

    Args:
        states: float32 [l, 1, n] after the first `position` tokens; None before any.
        position: how many tokens the states have absorbed.
        recent: the last of these, for the text of those that follow depends on them.
        pending: tokens of the text that have not been absorbed yet.
    """

    states: np.ndarray | None
    position: int
    recent: tuple[int, ...]
    pending: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many the text has."""
        return self.position + len(self.pending)


@dataclass(frozen=True)
class GenerationRequest:
    """One text to go on with.

    Args:
        prompt: token ids that are appended to `state`, or begin a text; may be empty only where there is a state.
        sampling: how each token is drawn; its uniforms depend on the seed and on the position in the text alone.
        max_tokens: tokens to write at most; 0 only scores or absorbs the prompt.
        stop: strings that end the text and are no part of it.
        state: the text so far; None is an empty one.
        logprobs: of each token that is written: 0 its own, n > 0 those of the n most likely tokens too; None is none.
        prompt_logprobs: as `logprobs` of the prompt's tokens, all but the first of a text.
        keep_state: whether `Finished` carries the state after the text, or after what there is of it.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    state: SessionState | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    keep_state: bool = False


@dataclass(frozen=True)
class TokenLogprobs:
    """A token and how likely it was, in nats, before temperature, top-k, top-p and min-p.

    Args:
        token: its id.
        logprob: its own; None of the first token of a text, which nothing comes before.
        top: the most likely tokens, (id, logprob), best first; ties by the smaller id.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PromptScored:
    """The prompt has been read, where `prompt_logprobs` asked for that; comes once, before any piece."""

    tokens: tuple[TokenLogprobs, ...]


@dataclass(frozen=True)
class Piece:
    """Text that may be shown now, and the tokens whose text that completes (where `logprobs` asked for them)."""

    text: str
    tokens: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The last event of every request.

    Args:
        reason: why it ended.
        prompt_tokens: of the prompt.
        cached_tokens: of these, what the prefix cache had absorbed already.
        completion_tokens: that were drawn, an end of text among them.
        state: after the text, where `keep_state` asked for it.
        message: of an error.
    """

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    state: SessionState | None = None
    message: str = ""


Event = PromptScored | Piece | Finished


class EngineClosedError(Exception):
    """The engine has been closed, or has failed."""


class QueueFullError(Exception):
    """No more requests are taken now; `retry_after` seconds are a guess at when one may be."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} seconds")
        self.retry_after = retry_after
