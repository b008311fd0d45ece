"""A stand-in for the generation engine and its model, so that the HTTP server is tested by itself."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from tools.generation.engine import EngineStats
from tools.generation.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Piece,
    PromptScored,
    QueueFullError,
    SessionState,
    TokenLogprobs,
)
from tools.tokenizer import build_tokenizer, parse_tokenizer

VOCAB_SIZE = 257
END_OF_TEXT = 256


def fake_model() -> Any:
    """What the server asks of a model: bytes, and an identity."""
    tokenizer = parse_tokenizer(build_tokenizer("byte").to_json())
    config = SimpleNamespace(vocab_size=VOCAB_SIZE)
    return SimpleNamespace(
        tokenizer=tokenizer, checkpoint=SimpleNamespace(config=config), identity="0123456789abcdef" * 4
    )


def fake_pack(state: SessionState) -> bytes:
    """A state's file."""
    numbers = [] if state.states is None else state.states.tolist()
    return json.dumps([numbers, state.position, state.recent, state.pending]).encode()


def fake_parse(content: bytes) -> SessionState:
    """The reverse."""
    try:
        numbers, position, recent, pending = json.loads(content)
        states = np.array(numbers, np.float32) if numbers else None
        return SessionState(states, int(position), tuple(recent), tuple(pending))
    except (ValueError, TypeError) as error:
        raise ValueError("it is no state") from error


def written(tokens: int, seed: int, count: int, start: int = 0) -> str:
    """What the engine writes after a text of so many tokens."""
    return "".join(chr(ord("a") + (tokens * 7 + seed + k) % 26) for k in range(start, count))


@dataclass(eq=False)
class _Running:
    request: GenerationRequest
    deliver: Callable[[Event], None]
    text: str = ""
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def before(self) -> int:
        return len(self.request.prompt) + (self.request.state.tokens if self.request.state else 0)

    def scored(self, token: int) -> TokenLogprobs:
        top = tuple(((token + i) % VOCAB_SIZE, -0.5 - i) for i in range(self.request.logprobs or 0))
        return TokenLogprobs(token, -0.5, top)


class FakeEngine:
    """Writes letters that depend on the length of the text, on the seed and on nothing else.

    The prompt "fail" ends in an error, and "burst" raises in the engine's submit.

    Args:
        slots: texts at a time.
        queue: that may wait.
        delay: seconds a step.
    """

    def __init__(self, slots: int = 4, queue: int = 8, delay: float = 0.0):
        self.delay, self._queue, self._slots = delay, queue, slots
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self.requests: list[GenerationRequest] = []
        self._waiting: deque[_Running] = deque()
        self._active: list[_Running] = []
        self._lock, self._end, self._closing = threading.Condition(), 0.0, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> _Running:
        if bytes(token % 256 for token in request.prompt) == b"burst":
            raise RuntimeError("a fault of the engine's own")
        if request.stop == ("refused",):
            raise ValueError("stop strings of this kind cannot be")
        with self._lock:
            free = self._slots - len(self._active)
            if self._closing or len(self._waiting) >= self._queue + free:
                raise QueueFullError(len(self._waiting), 3)
            running = _Running(request, deliver)
            self._waiting.append(running)
            self.requests.append(request)
            self._lock.notify()
        return running

    def stats(self) -> EngineStats:
        return EngineStats(
            slots=self._slots, active=len(self._active), waiting=len(self._waiting), cache_bytes=0, cache_entries=0,
            prompt_tokens=self._counts["prompt"], cached_tokens=0, completion_tokens=self._counts["completion"],
            requests=dict(self._reasons), steps=self._counts["steps"], prompt_pieces=0,
        )  # fmt: skip

    def close(self, grace: float) -> None:
        with self._lock:
            self._closing, self._end = True, time.monotonic() + grace
            self._lock.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._active and not self._waiting and not self._closing:
                    self._lock.wait()
                while self._waiting and len(self._active) < self._slots:
                    self._begin(self._waiting.popleft())
                if self._closing and not self._active:
                    return
            time.sleep(self.delay)
            self._counts["steps"] += 1
            for running in [*self._active]:
                self._step(running)

    def _begin(self, running: _Running) -> None:
        self._active.append(running)
        request = running.request
        self._counts["prompt"] += len(request.prompt)
        if request.prompt_logprobs:
            first = request.state is None
            tokens = [running.scored(token) for token in request.prompt]
            if first:
                tokens[0] = TokenLogprobs(request.prompt[0], None)
            running.deliver(PromptScored(tuple(tokens)))

    def _step(self, running: _Running) -> None:
        request = running.request
        if running.cancelled:
            self._finish(running, "cancelled")
        elif self._closing and time.monotonic() >= self._end:
            self._finish(running, "shutdown")
        elif bytes(token % 256 for token in request.prompt) == b"fail":
            self._finish(running, "error")
        elif len(running.text) >= request.max_tokens:
            self._finish(running, "length")
        else:
            piece = written(running.before, request.sampling.seed, len(running.text) + 1, len(running.text))
            running.text += piece
            if any(running.text.endswith(stop) for stop in request.stop):
                self._finish(running, "stop")
                return
            tokens = () if request.logprobs is None else (running.scored(ord(piece)),)
            running.deliver(Piece(piece, tokens))

    def _finish(self, running: _Running, reason: FinishReason) -> None:
        self._active.remove(running)
        request, count = running.request, len(running.text)
        self._counts["completion"] += count
        self._reasons[reason] += 1
        state = (
            SessionState(np.ones((2, 1, 3), np.float32), running.before + count, (), ()) if request.keep_state else None
        )
        message = "a logit was not finite" if reason == "error" else ""
        running.deliver(Finished(reason, len(request.prompt), len(request.prompt) // 2, count, state, message))
