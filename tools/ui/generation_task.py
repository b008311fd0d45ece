"""What one browser writes: a text on one backend, or on several side by side, and the states it went through."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spec.sampling import Sampling
from tools.cli.backends import Backend
from tools.generation.session import Session, as_array
from tools.ui.models import Models, Opened

#: Tokens whose states are shown.
WINDOW = 100
#: Seconds of writing between two looks at it: then another browser has its turn.
SLICE = 0.08
PROMPT_CHARACTERS = 10_000


@dataclass(frozen=True)
class Order:
    """What to write.

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


class Side:
    """The text on one backend.

    Args:
        backend: its name.
        opened: the model, which is held only while it writes: a text that waits needs no more than its state.
        prompt: what the text begins with.
    """

    def __init__(self, backend: Backend, opened: Opened, prompt: str):
        self.backend, self.text = backend, prompt
        self.opened: Opened | None = opened
        self.half_lives_ln = opened.half_lives_ln
        #: The last tokens that were absorbed, and the states [l, n] after each.
        self.seen: deque[tuple[str, np.ndarray]] = deque(maxlen=WINDOW)
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

    def _step(self, tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        assert self.opened is not None
        step, following = self.opened.model.step, states
        result = step(tokens_bt, states)
        if tokens_bt.shape[1] == 1:
            self._see(tokens_bt, result[1])
            return result
        # The text must not depend on being looked at: it goes on from the states of the prompt read at once.
        head_bt, tail_bt = tokens_bt[:, :-WINDOW], tokens_bt[:, -WINDOW:]
        if head_bt.shape[1]:
            following = step(head_bt, following)[1]
        for t in range(tail_bt.shape[1]):
            following = step(tail_bt[:, t : t + 1], following)[1]
            self._see(tail_bt[:, t : t + 1], following)
        return result

    def _see(self, tokens_bt: np.ndarray, states: Any) -> None:
        self.seen.append((self.session.tokenizer.decode(tokens_bt[0]), as_array(states)[:, 0]))


class Writing:
    """The text of one browser; nothing of it is shared with another one.

    Args:
        models: where they are opened.
    """

    def __init__(self, models: Models):
        self._models, self._busy = models, threading.Lock()
        self._from: tuple[Path, tuple[Backend, ...]] | None = None
        self.sides: list[Side] = []
        self.stopped = self.ended = False
        #: The layer that is looked at, from 0.
        self.layer = 0

    @property
    def is_busy(self) -> bool:
        """Whether it is being written."""
        return self._busy.locked()

    def write(self, order: Order, onward: bool = False) -> Iterator[str]:
        """Write, and say now and then how far it is; ends within a token once `stopped` is set.

        Args:
            order: what to write.
            onward: go on from the text that is there, without reading it again; the prompt is not looked at.

        Raises:
            ValueError: it cannot be written, or this browser is still writing.
        """
        if not onward:
            _check_prompt(order.prompt)
        if not self._busy.acquire(blocking=False):
            raise ValueError("this page is still writing; press Stop first")
        try:
            waited = [name for name in order.backends if not self._models.is_open(order.checkpoint, name)]
            if waited:
                yield f"Loading the model in {' and in '.join(waited)} …"
            self._open(order, onward)
            yield from self._tokens(order)
        finally:
            for side in self.sides:
                side.opened = None
            self._busy.release()

    def _open(self, order: Order, onward: bool) -> None:
        opened = [self._models.open(order.checkpoint, name) for name in order.backends]
        source = order.checkpoint, order.backends
        if not onward:
            sides = zip(order.backends, opened, strict=True)
            self.sides, self._from = [Side(name, model, order.prompt) for name, model in sides], source
        elif self._from != source:
            raise ValueError("this text was written by another model; press Generate to start anew")
        for side, model in zip(self.sides, opened, strict=True):
            side.opened = model

    def _tokens(self, order: Order) -> Iterator[str]:
        before, began = self.sides[0].tokens, time.monotonic()
        told = began - SLICE
        live = [(side, side.session.write(order.sampling, order.max_tokens)) for side in self.sides]
        while live and not self.stopped:
            live = [(side, pieces) for side, pieces in live if side.take(pieces)]
            if time.monotonic() - told >= SLICE:
                yield self._told("Writing:", self.sides[0].tokens - before, began)
                told = time.monotonic()
        written = self.sides[0].tokens - before
        self.ended = not self.stopped and written < order.max_tokens
        how = "The text ends here:" if self.ended else "Stopped:" if self.stopped else "Done:"
        yield self._told(how, written, began)

    def _told(self, how: str, written: int, began: float) -> str:
        speed = written / max(time.monotonic() - began, 1e-3)
        layers, channels = self.sides[0].half_lives_ln.shape
        after = f"; after {self.sides[0].tokens:,} tokens its memory is still {layers} x {channels} numbers"
        return f"{how} {written:,} tokens, {speed:,.0f} a second{after}. {agreement(self.sides)}".strip()


def _check_prompt(prompt: str) -> None:
    if not prompt:
        raise ValueError("the prompt is empty; give at least one character")
    if len(prompt) > PROMPT_CHARACTERS:
        told = f"the prompt has {len(prompt):,} characters, this page takes {PROMPT_CHARACTERS:,}"
        raise ValueError(f"{told}; shorten it")


def agreement(sides: list[Side]) -> str:
    """Whether the texts of several backends are the same; nothing is said of one alone."""
    if len(sides) < 2:
        return ""
    texts, names = [side.text for side in sides], " and ".join(side.backend for side in sides)
    same, longest = _common(texts), max(map(len, texts))
    if same == min(map(len, texts)):
        return f"{names} agree: the same {same:,} characters." if same == longest else f"{names} agree so far."
    return f"{names} differ from character {same + 1:,} on; a near-tie can do that."


def _common(texts: list[str]) -> int:
    """How many characters they begin with in common."""
    shortest = min(map(len, texts))
    return next((i for i in range(shortest) if len({text[i] for text in texts}) > 1), shortest)
