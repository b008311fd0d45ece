"""The body of a request: read within a size and a time, and JSON that means one thing only."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from tools.serve.errors import ApiError, ClientLeft, bad_request
from tools.serve.schema import Body

B = TypeVar("B", bound=Body)
T = TypeVar("T")
P = ParamSpec("P")
#: Bytes that are read, checked and made tokens of within a millisecond or two.
SHORT_BYTES = 8192
#: Seconds in which what is too large is read and dropped: a client that still writes would not see the answer.
DISCARD_SECONDS = 1.0


async def read_json(request: Request, kind: type[B], limit: int, seconds: float) -> B:
    """The body as `kind`, which says what it may hold.

    Args:
        request: whose body nobody has read yet.
        kind: a model of pydantic.
        limit: bytes it may have.
        seconds: in which all of it must have come.

    Raises:
        ApiError: 415 for another content type, 413, 408, and 400 for what is no such JSON.
    """
    require_json(request)
    content = await read_body(request, limit, seconds)
    request.state.size = len(content)
    return await aside(request, parse, content, kind)


async def aside(request: Request, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do what is to be done for a request: in a thread where its body is long, so that nobody's stream waits for that.

    A short one would wait longer for the thread than it takes.
    """
    if request.state.size <= SHORT_BYTES:
        return work(*arguments, **named)
    return await asyncio.to_thread(work, *arguments, **named)


def require_json(request: Request) -> None:
    """Raises 415 for what does not say that it is JSON: a page elsewhere could send that without being asked."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise ApiError(415, "send JSON, with the header Content-Type: application/json")
    charset = parameters.replace(" ", "").replace('"', "").lower()
    if charset.startswith("charset=") and charset not in ("charset=utf-8", "charset=utf8"):
        raise ApiError(415, "send JSON as UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "send JSON that is not compressed")


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """All bytes of the body.

    Raises:
        ApiError: 413 where there are more than `limit`, 408 where they have not come within `seconds`.
    """
    declared = request.headers.get("content-length", "")
    content, more = bytearray(), True
    # Where a client asks first (Expect: 100-continue), it is answered before it has sent anything.
    asks = request.headers.get("expect", "").lower() == "100-continue"
    try:
        async with asyncio.timeout(seconds):
            too_large = asks and declared.isdecimal() and int(declared[:20]) > limit
            while more and not too_large:
                part, more = await _next_part(request)
                content += part
                too_large = len(content) > limit
    except TimeoutError:
        message = f"the body has not come within {seconds:g} seconds"
        raise ApiError(408, message, code="request_timeout", headers={"Connection": "close"}) from None
    if too_large:
        if more and not asks:
            await _discard(request, limit)
        message = f"the body is larger than {limit} bytes"
        raise ApiError(413, message, code="request_too_large", headers={"Connection": "close"})
    return bytes(content)


async def _next_part(request: Request) -> tuple[bytes, bool]:
    """A part of the body, and whether there are more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message.get("body", b""), message.get("more_body", False)


async def _discard(request: Request, limit: int) -> None:
    """Drop what still comes, for a while: a connection that is closed on it would take the answer with it."""
    dropped, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while more and dropped <= 4 * limit:
                part, more = await _next_part(request)
                dropped += len(part)


def parse(content: bytes, kind: type[B]) -> B:
    """JSON as `kind`; raises ApiError 400 that names the field."""
    data = parse_json(content)
    try:
        return kind.model_validate(kind.supported(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = _MESSAGES.get(first["type"], first["msg"].removeprefix("Value error, "))
        param = _path(first["loc"])
        raise bad_request(f"{param or 'the body'}: {_lowered(message)}", param or None) from None


_MESSAGES = {"missing": "is required", "extra_forbidden": "there is no such field"}


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _path(location: tuple[int | str, ...]) -> str:
    """messages[0].content of ("messages", 0, "content"); names are the client's own and may be of any length."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return text if len(text) <= 80 else f"{text[:80]}…"


def parse_json(content: bytes) -> dict[str, object]:
    """A JSON object without what means several things: keys given twice, NaN, half of a surrogate pair.

    Raises:
        ApiError: 400.
    """
    try:
        text = content.decode()
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if "\\u" in text:  # the only way to half of a pair
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8, at byte {error.start}", code="invalid_json") from None
    except UnicodeEncodeError:
        raise bad_request("the body holds half of a surrogate pair", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # JSONDecodeError, ours, and that of an integer of more than 4,300 digits
        reason = str(error).partition(";")[0]
        raise bad_request(f"the body is not JSON: {_lowered(reason)}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    return data


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
