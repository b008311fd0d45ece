"""What all endpoints share: the model and its engine, the limits, and how a request is asked of the engine's thread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tools.generation.engine import EngineStats
from tools.generation.request import (
    EngineClosedError,
    Event,
    Finished,
    GenerationRequest,
    Piece,
    QueueFullError,
    SessionState,
)
from tools.generation.session import PROMPT_PIECE, OpenModel
from tools.serve.chat_template import ChatTemplate, TemplateRefusal
from tools.serve.errors import ApiError, bad_request, queue_full, shutting_down
from tools.serve.states import StateStore

#: Seconds after which a request is offered again that found the queue full, while none of its own texts is running.
RETRY_SECONDS = 0.2


class Ticket(Protocol):
    """A request that the engine has taken."""

    def cancel(self) -> None:
        """Nobody waits for it any more; from any thread."""
        ...


class GenerationEngine(Protocol):
    """One thread that owns the device; `tools.generation.engine.Engine` is one."""

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> Ticket:
        """Take a request, whose events are delivered on the engine's thread.

        Raises:
            QueueFullError: no more are taken now.
            ValueError: it cannot be.
        """
        ...

    def stats(self) -> EngineStats:
        """What has been counted so far."""
        ...

    def close(self, grace: float) -> None:
        """Take no more, and end what is still running after `grace` seconds."""
        ...


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Args:
        max_prompt_tokens: of one prompt.
        max_tokens: to write, of one text; what a chat reply has at most where nothing is said.
        max_texts: that one request may ask for, prompts times choices.
        max_body_bytes: of a body.
        body_seconds: in which it must have come.
        timeout: seconds that a request may take.
    """

    max_prompt_tokens: int = 131072
    max_tokens: int = 4096
    max_texts: int = 256
    max_body_bytes: int = 8 << 20
    body_seconds: float = 20.0
    timeout: float = 600.0


@dataclass(eq=False)
class Service:
    """A model that is served.

    Args:
        model: it.
        engine: that writes with it.
        states: that clients keep here.
        name: that clients give it.
        limits: what they may ask for.
        template: of chats, if there is one.
        chat_stop: strings that end a reply where a request names none.
        first_token: called with the seconds that the first text of a request took.
    """

    model: OpenModel
    engine: GenerationEngine
    states: StateStore
    name: str
    limits: Limits = field(default_factory=Limits)
    template: ChatTemplate | None = None
    chat_stop: tuple[str, ...] = ()
    first_token: Callable[[float], None] = lambda seconds: None
    #: Whether the server is ending: nothing more is taken.
    closing: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def end_of_text(self) -> str:
        """What the vocabulary calls the end of text."""
        return self.model.tokenizer.token_string(self.model.tokenizer.end_of_text_id) or ""

    def require_model(self, name: str | None) -> None:
        """Raises ApiError 404 for another model than the one that is served; None is that one."""
        if name is not None and name != self.name:
            message = f"the model {name[:80]!r} does not exist; this server has {self.name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def encode(self, text: str, continues: bool, param: str) -> list[int]:
        """The ids of a text; raises ApiError 400 where the tokenizer has none for it."""
        try:
            return self.model.tokenizer.encode(text, continues=continues).tolist()
        except ValueError as error:
            raise bad_request(f"{param}: {error}", param) from None

    def check_prompt(self, tokens: Sequence[int], state: SessionState | None, param: str) -> None:
        """Raises ApiError 400 for a prompt that is empty, too long, or of other tokens than the model's."""
        # A model may have rows for more tokens than there are.
        size = min(self.model.checkpoint.config.vocab_size, self.model.tokenizer.vocab_size)
        if not tokens and (state is None or state.tokens == 0):
            raise bad_request(f"{param}: must not be empty where there is no state to go on from", param)
        count = len(tokens) + (0 if state is None else len(state.pending))
        if count > self.limits.max_prompt_tokens:
            what = "has" if state is None else "and what its state has not read yet have"
            message = f"{param}: {what} {count} tokens, and at most {self.limits.max_prompt_tokens} are taken"
            raise bad_request(message, param, "context_length_exceeded")
        outside = next((token for token in tokens if not 0 <= token < size), None)
        if outside is not None:
            raise bad_request(f"{param}: token id {_shortened(outside)} is outside the vocabulary of {size}", param)

    def chat_tokens(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, continues: bool
    ) -> list[int]:
        """The ids of a conversation by the chat template.

        Raises:
            ApiError: 400, there is none, or it refuses these messages.
        """
        if self.template is None:
            message = "this server has no chat template; start it with --chat-template, or use /v1/completions"
            raise bad_request(message, "messages", "no_chat_template")
        tokens: list[int] = []
        try:
            pieces = self.template.render(messages, add_generation_prompt, continues)
        except TemplateRefusal as error:
            raise bad_request(f"messages: {error}", "messages") from None
        for piece in pieces:
            if piece is None:
                tokens.append(self.model.tokenizer.end_of_text_id)
            else:
                tokens += self.encode(piece, continues or bool(tokens), "messages")
        return tokens

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> Ticket:
        """As the engine's, with errors that a client is told.

        Raises:
            ApiError: 503 while the server ends, 400 for what cannot be.
            QueueFullError: no more are taken now.
        """
        if self.closing:
            raise shutting_down()
        try:
            return self.engine.submit(request, deliver)
        except QueueFullError:
            raise
        except EngineClosedError as error:
            raise (shutting_down() if self.closing else ApiError(503, str(error), code="engine_error")) from None
        except ValueError as error:
            raise bad_request(str(error)) from None


def _shortened(number: int) -> str:
    return str(number) if abs(number) < 10**20 else "of more than 20 digits"


class Generation:
    """The texts of one request: asked of the engine as it has room for them, ended where nobody waits any more.

    Args:
        service: whose engine.
        requests: the texts.
        stream: whether somebody waits for each piece of a text; else only for the first one and for its end.
    """

    def __init__(self, service: Service, requests: Sequence[GenerationRequest], stream: bool = True):
        self._service, self._requests, self._stream = service, requests, stream
        self._loop, self._began = asyncio.get_running_loop(), time.monotonic()
        # Both ends of it may be used at once; the event says that there is something.
        self._events: deque[tuple[int, Event]] = deque()
        self._come = asyncio.Event()
        self._running: dict[int, Ticket] = {}
        self._next, self._told = 0, False
        # So that a long list leaves room for others.
        self._at_once = max(1, service.engine.stats().slots // 2)
        # Prompts that are being read: another text of the same one waits for what the cache will have of it.
        self._reading: dict[int, tuple[int, ...]] = {}
        self.deadline = self._loop.time() + service.limits.timeout

    def start(self) -> None:
        """Ask for the first of them.

        Raises:
            ApiError: 429 where the queue is full, 503 while the server ends, 400 for what cannot be.
        """
        try:
            self._submit()
        except QueueFullError as error:
            self.cancel()
            raise queue_full(str(error), error.retry_after) from None
        except ApiError:
            self.cancel()
            raise
        self._fill()

    def _submit(self) -> None:
        index, kinds = self._next, set[type[Event]]()

        def deliver(event: Event) -> None:
            self._events.append((index, event))
            # To wake the loop's thread takes time from the engine's: of a kind the first is news to all.
            if self._stream or type(event) not in kinds:
                kinds.add(type(event))
                with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                    self._loop.call_soon_threadsafe(self._come.set)

        request = self._requests[index]
        self._running[index] = self._service.submit(request, deliver)
        if request.state is None and len(request.prompt) > PROMPT_PIECE:  # of a shorter one nothing is kept
            self._reading[index] = request.prompt
        self._next += 1

    def _fill(self) -> None:
        with contextlib.suppress(QueueFullError):
            while self._next < len(self._requests) and len(self._running) < self._at_once:
                if self._requests[self._next].prompt in self._reading.values():
                    return
                self._submit()

    async def batches(self) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """What has come since the last time, (number of the text, event), until all of them are finished.

        Raises:
            ApiError: 503 where the server ended one, 504 where time is over, 500 where the engine failed.
        """
        while self._running or self._next < len(self._requests):
            batch = await self._batch()
            for index, event in batch:
                self._reading.pop(index, None)
                if isinstance(event, Finished):
                    del self._running[index]
                    _require_finished(event)
                if isinstance(event, (Finished, Piece)) and not self._told:
                    self._told = True
                    self._service.first_token(time.monotonic() - self._began)
            self._fill()
            yield batch

    async def _batch(self) -> list[tuple[int, Event]]:
        try:
            async with asyncio.timeout_at(self.deadline):
                while not self._running:
                    self._fill()
                    if not self._running:
                        await asyncio.sleep(RETRY_SECONDS)
                await self._come.wait()
        except TimeoutError:
            message = f"the request has taken {self._service.limits.timeout:g} seconds and was ended"
            raise ApiError(504, message, code="request_timeout") from None
        self._come.clear()
        batch: list[tuple[int, Event]] = []
        while self._events:
            batch.append(self._events.popleft())
        return batch

    def cancel(self) -> None:
        """End what is still running."""
        self._next = len(self._requests)
        for ticket in self._running.values():
            ticket.cancel()
        self._running.clear()


def _require_finished(event: Finished) -> None:
    if event.reason == "shutdown":
        raise shutting_down()
    if event.reason not in ("stop", "length"):
        raise ApiError(500, event.message or "the engine has failed", code="engine_error")
