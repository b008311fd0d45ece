"""The text of one browser: generated on one backend, or on several side by side, with the states it went through."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from spec.sampling import Sampling
from tools.cli.backends import Backend
from tools.generation.session import Session, as_array
from tools.ui.models import LoadedModel, ModelCache

#: Tokens whose states are shown.
WINDOW = 100
#: Seconds between two progress lines of a text: at each another browser has its turn.
SLICE = 0.08
PROMPT_CHARACTERS = 10_000


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate.

    Args:
        checkpoint: where the weights are.
        backends: each writes the text.
        prompt: the text's beginning.
        sampling: how each token is drawn.
        max_tokens: tokens to write at most.
    """

    checkpoint: Path
    backends: tuple[Backend, ...]
    prompt: str
    sampling: Sampling
    max_tokens: int


class Generation:
    """The text on one backend.

    Args:
        backend: its name.
        opened: the model, which is held only while it writes: a text that waits needs no more than its state.
        prompt: what the text begins with.
    """

    def __init__(self, backend: Backend, opened: LoadedModel, prompt: str):
        self.backend, self.text = backend, prompt
        self.opened: LoadedModel | None = opened
        self.half_lives_ln = opened.half_lives_ln
        #: The last tokens that the state has absorbed, and the states [l, n] after each.
        self.recent_states: deque[tuple[str, np.ndarray]] = deque(maxlen=WINDOW)
        self.session = Session(self._step, opened.model.tokenizer)
        self.session.append(prompt)

    @property
    def tokens(self) -> int:
        """How many the text has, the prompt's among them."""
        return self.session.position + len(self.session.pending)

    def take(self, pieces: Iterator[str]) -> bool:
        """Append the next piece; false where there is none."""
        piece = next(pieces, None)
        self.text += piece or ""
        return piece is not None

    def _step(self, tokens_bt: np.ndarray, states: object) -> tuple[np.ndarray, object]:
        assert self.opened is not None
        step, shown = self.opened.model.step, states
        result = step(tokens_bt, states)
        if tokens_bt.shape[1] == 1:
            self._record(tokens_bt, result[1])
            return result
        # The text must not depend on being shown: it goes on from the states of the prompt read at once.
        head_bt, tail_bt = tokens_bt[:, :-WINDOW], tokens_bt[:, -WINDOW:]
        if head_bt.shape[1]:
            shown = step(head_bt, shown)[1]
        for t in range(tail_bt.shape[1]):
            shown = step(tail_bt[:, t : t + 1], shown)[1]
            self._record(tail_bt[:, t : t + 1], shown)
        return result

    def _record(self, tokens_bt: np.ndarray, states: object) -> None:
        self.recent_states.append((self.session.tokenizer.decode(tokens_bt[0]), as_array(states)[:, 0]))


class GenerationTask:
    """The text of one browser; nothing of it is shared with another one.

    Args:
        models: where they are opened.
    """

    def __init__(self, models: ModelCache):
        self._models, self._busy = models, threading.Lock()
        self._from: tuple[Path, tuple[Backend, ...]] | None = None
        self.generations: list[Generation] = []
        self.stopped = self.ended = False
        #: The layer whose states are shown, from 0.
        self.layer = 0

    @property
    def is_busy(self) -> bool:
        """Whether it is being written."""
        return self._busy.locked()

    def write(self, request: GenerationRequest, onward: bool = False) -> Iterator[str]:
        """Write, and say now and then how far it is; ends within a token once `stopped` is set.

        Args:
            request: what to write.
            onward: go on from the text that is there, without reading it again; the prompt is ignored.

        Raises:
            ValueError: it cannot be written, or this browser is still writing.
        """
        if not onward:
            _check_prompt(request.prompt)
        if not self._busy.acquire(blocking=False):
            raise ValueError("this page is still writing; press Stop first")
        try:
            waited = [name for name in request.backends if not self._models.is_open(request.checkpoint, name)]
            if waited:
                yield f"Loading the model in {' and in '.join(waited)} …"
            self._open(request, onward)
            yield from self._tokens(request)
        finally:
            for generation in self.generations:
                generation.opened = None
            self._busy.release()

    def _open(self, request: GenerationRequest, onward: bool) -> None:
        opened = [self._models.open(request.checkpoint, name) for name in request.backends]
        source = request.checkpoint, request.backends
        if not onward:
            named = zip(request.backends, opened, strict=True)
            self.generations = [Generation(name, model, request.prompt) for name, model in named]
            self._from = source
        elif self._from != source:
            raise ValueError("this text was written by another model; press Generate to start anew")
        for generation, model in zip(self.generations, opened, strict=True):
            generation.opened = model

    def _tokens(self, request: GenerationRequest) -> Iterator[str]:
        before, began = self.generations[0].tokens, time.monotonic()
        shown_at = began - SLICE
        live = [(one, one.session.write(request.sampling, request.max_tokens)) for one in self.generations]
        while live and not self.stopped:
            live = [(one, pieces) for one, pieces in live if one.take(pieces)]
            if time.monotonic() - shown_at >= SLICE:
                yield self._progress_line("Writing:", self.generations[0].tokens - before, began)
                shown_at = time.monotonic()
        written = self.generations[0].tokens - before
        self.ended = not self.stopped and written < request.max_tokens
        how = "The text ends here:" if self.ended else "Stopped:" if self.stopped else "Done:"
        yield self._progress_line(how, written, began)

    def _progress_line(self, how: str, written: int, began: float) -> str:
        speed = written / max(time.monotonic() - began, 1e-3)
        layers, channels = self.generations[0].half_lives_ln.shape
        after = f"; after {self.generations[0].tokens:,} tokens its memory is still {layers} x {channels} numbers"
        return f"{how} {written:,} tokens, {speed:,.0f} a second{after}. {agreement(self.generations)}".strip()


def _check_prompt(prompt: str) -> None:
    if not prompt:
        raise ValueError("the prompt is empty; give at least one character")
    if len(prompt) > PROMPT_CHARACTERS:
        size = f"the prompt has {len(prompt):,} characters, this page takes {PROMPT_CHARACTERS:,}"
        raise ValueError(f"{size}; shorten it")


def agreement(generations: list[Generation]) -> str:
    """Whether the texts of several backends are the same; nothing is said of one alone."""
    if len(generations) < 2:
        return ""
    texts, names = [one.text for one in generations], " and ".join(one.backend for one in generations)
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    same, longest = len(list(alike)), max(map(len, texts))
    if same == min(map(len, texts)):
        return f"{names} agree: the same {same:,} characters." if same == longest else f"{names} agree so far."
    return f"{names} differ from character {same + 1:,} on; a near-tie can do that."
