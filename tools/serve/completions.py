"""POST /v1/completions: a prompt is gone on with, or scored."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tools.generation.request import (
    Event,
    Finished,
    GenerationRequest,
    Piece,
    PromptScored,
    SessionState,
    TokenLogprobs,
)
from tools.serve.body import aside, read_json
from tools.serve.errors import bad_request
from tools.serve.logprobs import TextOffsets, completion_logprobs
from tools.serve.schema import CompletionRequest
from tools.serve.service import Service
from tools.serve.streams import Answer, Text, check_generating, samplings

#: Tokens before a text that its first characters may depend on.
CONTEXT = 100


class Completion(Answer):
    """A completion; its texts are those of prompt 0, of prompt 1, ..., n of each.

    Args:
        service: that answers.
        body: what was asked.
        prompts: the ids of each.
        state: that they are appended to.
    """

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"
    body: CompletionRequest

    def __init__(
        self, service: Service, body: CompletionRequest, prompts: Sequence[Sequence[int]], state: SessionState | None
    ):
        scored = body.echo and body.logprobs is not None
        requests = [
            GenerationRequest(
                tuple(prompt), sampling, body.max_tokens, tuple(body.stop or ()), state, body.logprobs, scored,
                body.save_state,
            )
            for prompt in prompts
            for sampling in samplings(service, body)
        ]  # fmt: skip
        super().__init__(service, body, requests)
        self._prompts, self._state, self._scored = prompts, state, scored
        shown = body.prompt if body.echo or body.logprobs is not None else ()
        decode = service.model.tokenizer.decode
        self._shown = [given if isinstance(given, str) else decode(given) for given in shown]
        self._offsets = [self._text_offsets(index) for index in range(len(requests))]

    def _prompt_text(self, index: int) -> str:
        return self._shown[index // self.body.n]

    def _text_offsets(self, index: int) -> TextOffsets | None:
        if self.body.logprobs is None:
            return None
        before = [] if self._state is None else [*self._state.recent, *self._state.pending]
        start = 0
        if not self._scored:
            before += self._prompts[index // self.body.n]
            start = len(self._prompt_text(index))
        return TextOffsets(self.service.model.tokenizer, before[-CONTEXT:], start)

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprobs]) -> dict[str, object] | None:
        offsets = self._offsets[index]
        if offsets is None:
            return None
        return completion_logprobs(self.service.model.tokenizer, tokens, offsets, self.body.logprobs or 0)

    def _choice(
        self, index: int, text: str, tokens: Sequence[TokenLogprobs], finished: Finished | None
    ) -> dict[str, object]:
        reason = None if finished is None else finished.reason
        return {"index": index, "text": text, "logprobs": self._logprobs(index, tokens), "finish_reason": reason}

    def opening(self, index: int) -> dict[str, object] | None:
        # Where the prompt is scored, it is shown with what it scored.
        if not self.body.echo or self._scored:
            return None
        return self._choice(index, self._prompt_text(index), (), None)

    def chunk(self, index: int, event: Event) -> dict[str, object] | None:
        if isinstance(event, PromptScored):
            return self._choice(index, self._prompt_text(index), event.tokens, None)
        if isinstance(event, Piece):
            return self._choice(index, event.text, event.tokens, None) if event.text or event.tokens else None
        return self._choice(index, "", (), event)

    def choice(self, index: int, text: Text) -> dict[str, object]:
        echoed = self._prompt_text(index) if self.body.echo else ""
        return self._choice(index, echoed + "".join(text.pieces), text.prompt_tokens + text.tokens, text.finished)


def routes(service: Service) -> APIRouter:
    """The endpoint."""
    router, limits = APIRouter(), service.limits

    def prepare(body: CompletionRequest) -> tuple[list[list[int]], SessionState | None]:
        state = None if body.state is None else service.states.get(body.state).state
        continues = state is not None and state.tokens > 0
        prompts = []
        for at, given in enumerate(body.prompt):
            prompt = given if isinstance(given, list) else service.encode(given, continues, "prompt")
            name = "prompt" if len(body.prompt) == 1 else f"prompt[{at}]"
            service.check_prompt(prompt, state, name)
            prompts.append(prompt)
        return prompts, state

    def check(body: CompletionRequest) -> None:
        check_generating(service, body, len(body.prompt))
        if body.max_tokens > limits.max_tokens:
            raise bad_request(f"max_tokens: must be at most {limits.max_tokens} on this server", "max_tokens")
        if body.best_of not in (None, 1, body.n):
            raise bad_request("best_of: is not supported; give n alone", "best_of", "unsupported_parameter")

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_json(request, CompletionRequest, limits.max_body_bytes, limits.body_seconds)
        request.state.user = body.user
        check(body)
        prompts, state = await aside(request, prepare, body)
        return await Completion(service, body, prompts, state).respond(request)

    return router
