"""Answers in JSON; an error is {"error": {"message", "type", "param", "code"}}, as OpenAI's API has it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "service_unavailable", 504: "server_error"}


class ApiError(Exception):
    """What a request is answered with in place of what it asked for.

    Args:
        status: of HTTP.
        message: for a person.
        param: the field that is at fault; messages[0].content is one.
        code: for a program.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, object]:
        """The JSON that says so."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        return json_response(self.body(), self.status, self.headers)


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def dumped(content: object) -> bytes:
    """JSON in UTF-8, in one line."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(dumped(content), status, {} if headers is None else dict(headers), "application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """What a client can mend."""
    return ApiError(400, message, param, code)


def queue_full(message: str, retry_after: int) -> ApiError:
    """More requests than are taken."""
    return ApiError(429, message, code="queue_full", headers={"Retry-After": str(max(1, retry_after))})


def shutting_down() -> ApiError:
    """The server takes no more, and ends what runs."""
    return ApiError(503, "the server is shutting down", code="server_shutting_down")
