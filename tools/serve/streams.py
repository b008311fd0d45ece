"""An answer as one object, or as chunks over server-sent events: what both kinds of completions have in common."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from spec.sampling import Sampling
from tools.generation.request import Event, Finished, GenerationRequest, Piece, PromptScored, TokenLogprobs
from tools.serve.errors import ApiError, ClientLeft, bad_request, dumped, json_response
from tools.serve.schema import Generating
from tools.serve.service import Generation, Service

T = TypeVar("T")
LOGGER = logging.getLogger(__package__)
#: Tokens whose log-probabilities are told at once; of more a thread tells, and nobody's stream waits for that.
FEW_TOKENS = 100
#: Seconds that a client which has stopped reading has for the last of a stream, once time is over.
LAST_SECONDS = 5.0


def check_generating(service: Service, body: Generating, prompts: int) -> None:
    """Raises ApiError for what no kind of completion takes."""
    service.require_model(body.model)
    if prompts * body.n > service.limits.max_texts:
        most = service.limits.max_texts
        raise bad_request(f"prompt: {prompts} prompts with {body.n} choices are more than {most} texts", "prompt")
    if body.save_state and prompts * body.n > 1:
        raise bad_request("save_state: only with one prompt and one choice", "save_state")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options: only with stream", "stream_options")


def samplings(service: Service, body: Generating) -> list[Sampling]:
    """How each choice of a prompt is drawn: choice k with the seed of the request and k, or with one that nobody knows.

    Raises:
        ApiError: 400 that names the field.
    """
    size = service.model.checkpoint.config.vocab_size
    outside = next((token for token in body.logit_bias if token >= size), None)
    if outside is not None:
        raise bad_request(f"logit_bias: token id {outside} is outside the vocabulary of {size}", "logit_bias")
    given = {
        "temperature": body.temperature,
        "top_k": max(body.top_k, 0),
        "top_p": body.top_p,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": tuple(sorted(body.logit_bias.items())),
    }
    seed = secrets.randbits(64) if body.seed is None else body.seed
    try:
        return [Sampling(**given, seed=(seed + k) % 2**64) for k in range(body.n)]
    except ValueError as error:
        name = str(error).partition(" ")[0]
        raise bad_request(str(error), name if name in given else None) from None


@dataclass
class Text:
    """What has come of one text.

    Args:
        pieces: of it.
        prompt_tokens: scored ones.
        tokens: those that were written, where they were asked for.
        finished: its last event.
    """

    pieces: list[str] = field(default_factory=list)
    prompt_tokens: list[TokenLogprobs] = field(default_factory=list)
    tokens: list[TokenLogprobs] = field(default_factory=list)
    finished: Finished | None = None

    def take(self, event: Event) -> None:
        """The next event."""
        if isinstance(event, PromptScored):
            self.prompt_tokens += event.tokens
        elif isinstance(event, Piece):
            self.pieces.append(event.text)
            self.tokens += event.tokens
        else:
            self.finished = event


class Answer:
    """One request that is being answered. A subclass says how a choice looks.

    Args:
        service: that answers.
        body: what was asked.
        requests: the texts, n for each prompt.
    """

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, service: Service, body: Generating, requests: Sequence[GenerationRequest]):
        self.service, self.body = service, body
        self.texts = [Text() for _ in requests]
        self.generation = Generation(service, requests, body.stream)
        self._state_id: str | None = None
        self._holds_place = False
        self._envelope = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": f"fp_{service.model.identity[:16]}",
        }

    def opening(self, index: int) -> dict[str, object] | None:
        """The choice of a text's first chunk, before anything has come."""
        raise NotImplementedError

    def chunk(self, index: int, event: Event) -> dict[str, object] | None:
        """The choice that tells an event."""
        raise NotImplementedError

    def choice(self, index: int, text: Text) -> dict[str, object]:
        """The choice that tells a whole text."""
        raise NotImplementedError

    async def respond(self, request: Request) -> Response:
        """The answer; raises ApiError where nothing of it has been sent yet."""
        request.state.usage = self.usage
        try:
            if self.body.save_state:
                self.service.states.reserve()
                self._holds_place = True
            self.generation.start()
            if not self.body.stream:
                return await while_connected(request.receive, self._whole())
        except BaseException:
            self.close()
            raise
        return EventStream(self)

    def close(self) -> None:
        """Nobody waits any more."""
        self.generation.cancel()
        if self._holds_place:
            self._holds_place = False
            self.service.states.release()

    async def _whole(self) -> Response:
        async with aclosing(self.generation.batches()) as batches:
            async for batch in batches:
                for index, event in batch:
                    self._take(index, event)
        told = sum(len(text.prompt_tokens) + len(text.tokens) for text in self.texts)
        return await asyncio.to_thread(self._response) if told > FEW_TOKENS else self._response()

    def _response(self) -> Response:
        choices = [self.choice(index, text) for index, text in enumerate(self.texts)]
        return json_response(self._object(self.whole_object, choices, {"usage": self.usage()}))

    def _take(self, index: int, event: Event) -> None:
        self.texts[index].take(event)
        if isinstance(event, Finished) and self._holds_place:
            if event.state is None:
                raise ApiError(500, "the engine has kept no state", code="engine_error")
            self._holds_place = False
            self._state_id = self.service.states.add(event.state).id

    def usage(self) -> dict[str, object]:
        """Tokens so far; a prompt counts once, however many choices it has."""
        finished = [text.finished for text in self.texts]
        prompts = [one for one in finished[:: self.body.n] if one is not None]
        prompt_tokens = sum(one.prompt_tokens for one in prompts)
        completion_tokens = sum(one.completion_tokens for one in finished if one is not None)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in prompts)},
        }

    def _object(self, kind: str, choices: list[dict[str, object]], more: dict[str, object]) -> dict[str, object]:
        state = {} if self._state_id is None else {"state": self._state_id}
        return {"object": kind, **self._envelope, "choices": choices, **more, **state}

    def _line(self, choices: list[dict[str, object]], usage: dict[str, object] | None = None) -> bytes:
        more: dict[str, object] = {"usage": usage} if self.body.include_usage else {}
        return event_line(self._object(self.chunk_object, choices, more))

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The lines of the stream, as they come; an error ends it."""
        try:
            opened = [self.opening(index) for index in range(len(self.texts))]
            yield b"".join(self._line([choice]) for choice in opened if choice is not None)
            async with aclosing(self.generation.batches()) as batches:
                async for batch in batches:
                    yield b"".join([await self._lines_of(index, event) for index, event in batch])
            yield (self._line([], self.usage()) if self.body.include_usage else b"") + b"data: [DONE]\n\n"
        except ApiError as error:
            yield event_line(error.body())
        except Exception:  # whatever it is, the client must learn that this is not the text's end
            LOGGER.exception("a stream has failed")
            yield event_line(ApiError(500, "the server has failed", code="internal_error").body())

    async def _lines_of(self, index: int, event: Event) -> bytes:
        self._take(index, event)
        if isinstance(event, PromptScored) and len(event.tokens) > FEW_TOKENS:
            return await asyncio.to_thread(self._told, index, event)
        return self._told(index, event)

    def _told(self, index: int, event: Event) -> bytes:
        choice = self.chunk(index, event)
        return b"" if choice is None else self._line([choice])


def event_line(content: object) -> bytes:
    """A server-sent event."""
    return b"data: " + dumped(content) + b"\n\n"


class EventStream(Response):
    """An answer over server-sent events, which ends where the client leaves.

    Args:
        answer: it, started.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer):
        self._answer = answer
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer
        try:
            async with asyncio.timeout_at(answer.generation.deadline + LAST_SECONDS):
                await while_connected(receive, self._send(send))
        except TimeoutError:
            raise ClientLeft from None
        finally:
            answer.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._answer.lines()) as lines:
            async for line in lines:
                if line:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """What `work` comes to; it is cancelled where the client leaves.

    Raises:
        ClientLeft: it did.
    """

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
