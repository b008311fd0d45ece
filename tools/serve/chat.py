"""POST /v1/chat/completions: a reply to messages, by the server's chat template."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tools.generation.request import Event, Finished, GenerationRequest, Piece, SessionState, TokenLogprobs
from tools.serve.body import aside, read_json
from tools.serve.errors import bad_request
from tools.serve.logprobs import chat_logprobs
from tools.serve.schema import ChatRequest
from tools.serve.service import Service
from tools.serve.streams import Answer, Text, check_generating, samplings


class ChatCompletion(Answer):
    """Replies to one conversation.

    Args:
        service: that answers.
        body: what was asked.
        prompt: the ids of the conversation.
        state: that they are appended to.
    """

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"
    body: ChatRequest

    def __init__(self, service: Service, body: ChatRequest, prompt: Sequence[int], state: SessionState | None):
        stop = service.chat_stop if body.stop is None else tuple(body.stop)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        requests = [
            GenerationRequest(
                tuple(prompt), sampling, most_tokens(service, body), stop, state, logprobs, False, body.save_state
            )
            for sampling in samplings(service, body)
        ]
        super().__init__(service, body, requests)

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> dict[str, object] | None:
        return chat_logprobs(self.service.model.tokenizer, tokens) if self.body.logprobs else None

    def _chunk(
        self, index: int, delta: dict[str, str], tokens: Sequence[TokenLogprobs] | None, finished: Finished | None
    ) -> dict[str, object]:
        reason = None if finished is None else finished.reason
        logprobs = None if tokens is None else self._logprobs(tokens)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def opening(self, index: int) -> dict[str, object] | None:
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, index: int, event: Event) -> dict[str, object] | None:
        if isinstance(event, Piece) and (event.text or event.tokens):
            return self._chunk(index, {"content": event.text}, event.tokens, None)
        return self._chunk(index, {}, None, event) if isinstance(event, Finished) else None

    def choice(self, index: int, text: Text) -> dict[str, object]:
        message = {"role": "assistant", "content": "".join(text.pieces), "refusal": None}
        reason = None if text.finished is None else text.finished.reason
        return {"index": index, "message": message, "logprobs": self._logprobs(text.tokens), "finish_reason": reason}


def most_tokens(service: Service, body: ChatRequest) -> int:
    """How many a reply may have."""
    given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return service.limits.max_tokens if given is None else given


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router, limits = APIRouter(), service.limits

    def check(body: ChatRequest) -> None:
        check_generating(service, body, 1)
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise bad_request("max_tokens: give max_completion_tokens or max_tokens, not both", "max_tokens")
        if most_tokens(service, body) > limits.max_tokens:
            raise bad_request(f"{name}: must be at most {limits.max_tokens} on this server", name)
        if body.top_logprobs is not None and not body.logprobs:
            raise bad_request("top_logprobs: only where logprobs is true", "top_logprobs")

    def prepare(body: ChatRequest) -> tuple[list[int], SessionState | None]:
        state = None if body.state is None else service.states.get(body.state).state
        turns = [message.turn() for message in body.messages]
        prompt = service.chat_tokens(turns, True, state is not None and state.tokens > 0)
        service.check_prompt(prompt, state, "messages")
        return prompt, state

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await read_json(request, ChatRequest, limits.max_body_bytes, limits.body_seconds)
        request.state.user = body.user
        check(body)
        prompt, state = await aside(request, prepare, body)
        return await ChatCompletion(service, body, prompt, state).respond(request)

    return router
