"""The application: every endpoint, and what a request for none of them is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tools.generation.request import Event, Finished, GenerationRequest
from tools.serve import chat, completions
from tools.serve.body import aside, read_body, read_json
from tools.serve.errors import ApiError, bad_request, json_response
from tools.serve.metrics import Metrics
from tools.serve.middleware import Gate
from tools.serve.schema import DetokenizeRequest, StateRequest, TokenizeRequest
from tools.serve.service import Generation, Service
from tools.serve.streams import while_connected


def create_app(service: Service, api_key: str = "", hosts: Collection[str] = ()) -> FastAPI:
    """The whole of the server behind HTTP.

    Args:
        service: that answers.
        api_key: that clients must have; empty is none.
        hosts: that a Host header may name; empty is any.
    """
    # Pages of documentation would load scripts from other machines; a slash too many is another path.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    metrics = Metrics(service.engine.stats, lambda: len(service.states.all()))
    service.first_token = metrics.first_token
    app.add_exception_handler(HTTPException, _not_found)
    for routes in (completions.routes, chat.routes, _models, _tokens, _states):
        app.include_router(routes(service))

    @app.get("/health")
    async def health() -> Response:
        if service.closing:
            return json_response({"status": "shutting down"}, 503)
        if not service.engine.stats().alive:
            return json_response({"status": "the engine has failed"}, 503)
        return json_response({"status": "ok"})

    @app.get("/metrics")
    async def scrape() -> Response:
        return metrics.response()

    app.add_middleware(Gate, api_key=api_key, hosts=hosts, answered=metrics.answered)
    return app


async def _not_found(request: Request, error: Exception) -> Response:
    """What Starlette says of paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return ApiError(405, "no such method here", code="method_not_allowed", headers=error.headers).response()
    return ApiError(error.status_code, "there is no such path", code="not_found", headers=error.headers).response()


def _models(service: Service) -> APIRouter:
    router = APIRouter()
    model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "user"}

    @router.get("/v1/models")
    async def all_models() -> Response:
        return json_response({"object": "list", "data": [model]})

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        service.require_model(name)
        return json_response(model)

    return router


def _tokens(service: Service) -> APIRouter:
    router, limits = APIRouter(), service.limits

    def encode(body: TokenizeRequest) -> list[int]:
        service.require_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("prompt: give prompt or messages", "prompt")
        if body.prompt == service.end_of_text:
            return [service.model.tokenizer.end_of_text_id]  # so clients look up its id; in a text it is text
        if body.prompt is not None:
            return service.encode(body.prompt, False, "prompt")
        turns = [message.turn() for message in body.messages or ()]
        return service.chat_tokens(turns, body.add_generation_prompt, False)

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await read_json(request, TokenizeRequest, limits.max_body_bytes, limits.body_seconds)
        tokens = await aside(request, encode, body)
        return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": None})

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        template = None if service.template is None else service.template.source
        return json_response({"eos_token": service.end_of_text, "bos_token": None, "chat_template": template})

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await read_json(request, DetokenizeRequest, limits.max_body_bytes, limits.body_seconds)
        service.require_model(body.model)
        try:
            return json_response({"prompt": await aside(request, service.model.tokenizer.decode, body.tokens)})
        except ValueError as error:
            raise bad_request(f"tokens: {error}", "tokens") from None

    return router


def _states(service: Service) -> APIRouter:
    router, limits, states = APIRouter(), service.limits, service.states

    def prepare(body: StateRequest) -> GenerationRequest:
        service.require_model(body.model)
        state = None if body.state is None else states.get(body.state).state
        continues = state is not None and state.tokens > 0
        prompt = body.prompt if isinstance(body.prompt, list) else service.encode(body.prompt, continues, "prompt")
        service.check_prompt(prompt, state, "prompt")
        return GenerationRequest(tuple(prompt), max_tokens=0, state=state, keep_state=True)

    async def absorbed(requests: Sequence[GenerationRequest]) -> Event | None:
        generation = Generation(service, requests)
        generation.start()
        try:
            return [event async for batch in generation.batches() for _, event in batch][-1]
        finally:
            generation.cancel()

    @router.post("/v1/states")
    async def make_state(request: Request) -> Response:
        body = await read_json(request, StateRequest, limits.max_body_bytes, limits.body_seconds)
        states.reserve()
        try:
            last = await while_connected(request.receive, absorbed([await aside(request, prepare, body)]))
            if not isinstance(last, Finished) or last.state is None:
                raise ApiError(500, "the engine has kept no state", code="engine_error")
        except BaseException:
            states.release()
            raise
        return json_response(states.add(last.state).as_json())

    @router.get("/v1/states")
    async def all_states() -> Response:
        return json_response({"object": "list", "data": [one.as_json() for one in states.all()]})

    @router.get("/v1/states/{name}")
    async def state_file(name: str) -> Response:
        content = states.content(name)
        headers = {"Content-Disposition": f'attachment; filename="{name}.safetensors"'}
        return Response(content, headers=headers, media_type="application/octet-stream")

    @router.put("/v1/states/{name}")
    async def put_state(name: str, request: Request) -> Response:
        content = await read_body(request, limits.max_body_bytes, limits.body_seconds)
        state = await asyncio.to_thread(states.parse, content)
        return json_response(states.put(name, state).as_json())

    @router.delete("/v1/states/{name}")
    async def delete_state(name: str) -> Response:
        states.delete(name)
        return json_response({"id": name, "object": "state", "deleted": True})

    return router
