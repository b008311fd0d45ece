"""Around every endpoint: who may ask, what becomes of errors, and a line of JSON in the log for each request."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serve.errors import ApiError, ClientLeft, bad_request

LOGGER = logging.getLogger(__package__)
#: What answers to nobody in particular, so that a balancer needs no key.
OPEN_PATHS = frozenset({"/health"})
#: Of a request that nobody waited for; no status of HTTP, but what others log.
CLIENT_LEFT = 499
_LONGEST_USER = 64
#: A name, or an IPv6 address in brackets, and perhaps a port.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{0,5})?")


class Gate:
    """The outermost part of the application.

    Args:
        app: the rest.
        api_key: that a client must have; empty is none.
        hosts: that a Host header may name; empty is any. Somebody else's DNS must not make their page this server's.
        answered: called with route, status and seconds of every request.
    """

    def __init__(self, app: ASGIApp, api_key: str, hosts: Collection[str], answered: Callable[[str, int, float], None]):
        self._app, self._key, self._hosts, self._answered = app, api_key.encode(), frozenset(hosts), answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), CLIENT_LEFT
        name = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, told)
        except ClientLeft:
            pass
        except Exception as error:  # ours, or anybody's fault: the client gets the contract's error, the log the rest
            if not isinstance(error, ApiError):
                LOGGER.exception("a request has failed", extra={"fields": {"id": name}})
                error = ApiError(500, "the server has failed", code="internal_error")
            if status == CLIENT_LEFT:
                await error.response()(scope, receive, told)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "none")
            self._answered(route, status, seconds)
            LOGGER.info("request", extra={"fields": _fields(scope, name, route, status, seconds)})

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts and _host(headers.get("host", "")) not in self._hosts:
            raise bad_request("the Host header names another machine", code="invalid_host")
        if not self._key or scope["path"] in OPEN_PATHS:
            return
        # Headers are bytes, and a key may have any: compared as such, in a time that tells nothing of them.
        given = [value for key, value in scope["headers"] if key == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if not (hmac.compare_digest(key.strip(), self._key) and scheme.lower() == b"bearer"):
            message = "send the server's API key, with the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _host(header: str) -> str:
    """The name in a Host header, without the port."""
    found = _HOST.fullmatch(header)
    return "" if found is None else found[1].lower()


def _fields(scope: Scope, name: str, route: str, status: int, seconds: float) -> dict[str, object]:
    client, state = scope.get("client"), scope["state"]
    fields: dict[str, object] = {"id": name, "method": scope["method"], "route": route, "status": status}
    fields |= {"seconds": round(seconds, 4), "client": client[0] if client else None}
    if state.get("user") is not None:
        fields["user"] = state["user"][:_LONGEST_USER]
    if (usage := state.get("usage")) is not None:
        counted = usage()
        fields |= {key: counted[key] for key in ("prompt_tokens", "completion_tokens")}
    return fields


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON: nothing that a client says can begin a line of its own or reach a terminal raw."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_log() -> None:
    """Have every request, and what uvicorn warns of, be a line on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name, level in ((LOGGER.name, logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
