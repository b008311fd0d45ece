"""The text of one browser: generated on one backend, or on several side by side, with the states it went through."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from spec.sampling import Sampling
from tools.cli.backends import Backend
from tools.generation import engine
from tools.generation.engine import Ticket
from tools.generation.request import EngineClosedError, Event, Finished, Piece, QueueFullError
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
        self.session = opened.model.session()
        self.session.append(prompt)
        #: How many tokens the text has, the prompt's among them.
        self.tokens = len(self.session.pending)

    def start(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> Ticket:
        """Have the engine go on with the text.

        Args:
            request: what to write.
            deliver: takes what the engine says, on its thread.

        Raises:
            QueueFullError: too many texts wait.
        """
        assert self.opened is not None
        shown = self.session.position
        if shown == 0:
            self._show_prompt()
            shown = self.tokens
        asked = engine.GenerationRequest(
            (), request.sampling, request.max_tokens, state=self.session.state(), keep_state=True
        )

        def observe(session: Session, tokens: list[int]) -> None:
            if session.position > shown:
                self._record(tokens, session.states)
                self.tokens = session.position + 1

        return self.opened.engine.submit(asked, deliver, observe)

    def finish(self, finished: Finished) -> None:
        """The engine has ended the turn: the text goes on from its state."""
        if finished.state is not None:
            self.session.go_on_from(finished.state)
            self.tokens = finished.state.tokens

    def _show_prompt(self) -> None:
        """The states that the prompt goes through, token by token, computed beside the text's.

        The text must not depend on being shown: it goes on from the states of the prompt read in pieces.
        """
        assert self.opened is not None
        step, states = self.opened.model.step, None
        head_bt, tail_bt = np.split(np.asarray([self.session.pending]), [max(0, self.tokens - WINDOW)], axis=1)
        if head_bt.shape[1]:
            _, states = step(head_bt, None)
        for t in range(tail_bt.shape[1]):
            _, states = step(tail_bt[:, t : t + 1], states)
            self._record([int(tail_bt[0, t])], states)

    def _record(self, tokens: list[int], states: object) -> None:
        self.recent_states.append((self.session.tokenizer.decode(tokens), as_array(states)[:, 0]))


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
        events: queue.SimpleQueue[tuple[Generation, Event]] = queue.SimpleQueue()
        tickets: dict[Generation, Ticket] = {}
        errors: list[str] = []
        try:
            for one in self.generations:
                tickets[one] = one.start(request, lambda event, one=one: events.put((one, event)))
            yield self._progress_line("Writing:", 0, began)
            shown_at = time.monotonic()
            while tickets:
                if self.stopped:
                    _cancel(tickets)
                with contextlib.suppress(queue.Empty):
                    _take(tickets, errors, *events.get(timeout=SLICE))
                if time.monotonic() - shown_at >= SLICE:
                    yield self._progress_line("Writing:", self.generations[0].tokens - before, began)
                    shown_at = time.monotonic()
        except EngineClosedError as error:
            raise ValueError(f"{error}; press the button again, or start the page anew") from error
        except QueueFullError as error:
            raise ValueError(str(error)) from error
        finally:
            # The page was left, or there was no room: what the engine writes still is waited for, a step of it.
            _cancel(tickets)
            while tickets:
                _take(tickets, errors, *events.get())
        if errors:
            raise ValueError(errors[0])
        written = self.generations[0].tokens - before
        self.ended = not self.stopped and written < request.max_tokens
        how = "The text ends here:" if self.ended else "Stopped:" if self.stopped else "Done:"
        yield self._progress_line(how, written, began)

    def _progress_line(self, how: str, written: int, began: float) -> str:
        speed = written / max(time.monotonic() - began, 1e-3)
        layers, channels = self.generations[0].half_lives_ln.shape
        after = f"; after {self.generations[0].tokens:,} tokens its memory is still {layers} x {channels} numbers"
        return f"{how} {written:,} tokens, {speed:,.0f} a second{after}. {agreement(self.generations)}".strip()


def _cancel(tickets: Mapping[Generation, Ticket]) -> None:
    for ticket in tickets.values():
        ticket.cancel()


def _take(tickets: dict[Generation, Ticket], errors: list[str], one: Generation, event: Event) -> None:
    """What an engine says of one text."""
    if isinstance(event, Piece):
        one.text += event.text
    elif isinstance(event, Finished):
        one.finish(event)
        del tickets[one]
        if event.reason == "error":
            errors.append(event.message)


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
