"""Who may ask, how much, and for how long."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.fake_engine import FakeEngine
from parity.suite.support.serve import KEY, received, serving, wait_until
from tools.serve import server as server_module
from tools.serve.service import Limits

PATHS = [("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nowhere")]
PATHS += [("PUT", "/v1/states/x"), ("POST", "/tokenize"), ("OPTIONS", "/v1/completions")]


@pytest.fixture(scope="module")
def strict():
    """A server that allows next to nothing."""
    limits = Limits(
        max_prompt_tokens=50, max_tokens=40, max_texts=6, max_body_bytes=3000, body_seconds=0.3, timeout=60.0
    )
    with serving(FakeEngine(slots=1, queue=1), limits) as served:
        yield served


@pytest.mark.parametrize("method, path", PATHS)
@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer \xe9\xff"]
)
def test_nobody_is_answered_without_the_key(server, method, path, given):
    answer = server.ask(method, path, Authorization=given)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer" and KEY not in answer.content.decode()


def test_the_client_knows_each_error_by_its_class(server, client):
    import openai

    messages, tiny = [{"role": "user", "content": "a"}], {"model": "tiny", "max_tokens": 1}
    for wrong, error in (
        (lambda: client.with_options(api_key="x").models.list(), openai.AuthenticationError),
        (lambda: client.models.retrieve("other"), openai.NotFoundError),
        (lambda: client.completions.create(prompt="a", **{**tiny, "max_tokens": -1}), openai.BadRequestError),
        (lambda: client.completions.create(prompt="fail", **tiny), openai.InternalServerError),
        (lambda: client.chat.completions.create(messages=messages, **tiny, tools=[{}]), openai.BadRequestError),
        (lambda: client.embeddings.create(model="tiny", input="a"), openai.NotFoundError),
    ):
        with pytest.raises(error) as raised:
            wrong()
        assert raised.value.body.keys() == {"message", "type", "param", "code"}


def test_two_keys_are_none(server):
    line = f"Authorization: Bearer {KEY}\r\n"
    ask = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert server.raw(ask + line.encode() * 2 + b"\r\n").startswith(b"HTTP/1.1 401 ")
    assert server.raw(ask + line.replace("Bearer", "bEARER").encode() + b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_health_needs_no_key(server):
    assert server.ask("GET", "/health", Authorization="").json == {"status": "ok"}


def test_a_long_prompt(strict):
    assert strict.post("/v1/completions", prompt="a" * 50, max_tokens=1).status == 200
    for prompt, param in (("a" * 51, "prompt"), ([1] * 51, "prompt"), (["a", "a" * 51], "prompt[1]")):
        error = strict.post("/v1/completions", prompt=prompt, max_tokens=1).error
        assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    answer = strict.post("/v1/chat/completions", messages=[{"role": "user", "content": "a" * 60}])
    assert (answer.status, answer.error["param"]) == (400, "messages")
    assert strict.post("/v1/states", prompt="a" * 51).error["code"] == "context_length_exceeded"


def test_many_tokens_and_texts(strict):
    assert strict.post("/v1/completions", prompt="a", max_tokens=41).error["param"] == "max_tokens"
    assert strict.post("/v1/completions", prompt=["a"] * 3, n=2, max_tokens=1).status == 200
    assert strict.post("/v1/completions", prompt=["a"] * 4, n=2).error["param"] == "prompt"
    assert strict.post("/v1/completions", prompt=["a"] * 7).error["param"] == "prompt"


@pytest.mark.parametrize("size", [3001, 10_000, 1_000_000])
def test_a_large_body(strict, size):
    for path, content in (("/v1/completions", b" " * size), ("/tokenize", b"x" * size)):
        answer = strict.ask("POST", path, content)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    answer = strict.ask("PUT", "/v1/states/x", b"x" * size)
    assert answer.status == 413 and answer.headers["connection"] == "close"
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    assert strict.ask("POST", "/v1/completions", body + b" " * (3000 - len(body))).status == 200


def test_a_large_body_in_chunks(strict):
    head = strict.posted("/v1/completions", {}).partition(b"Content-Length")[0]
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    answer = strict.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    chunks = b"".join(b"1\r\n" + body[k : k + 1] + b"\r\n" for k in range(len(body))) + b"0\r\n\r\n"
    answer = strict.raw(head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_body_without_end(strict):
    with strict.connected() as connection:
        head = strict.posted("/v1/completions", {}).partition(b"Content-Length")[0]
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100_000_000:
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        assert sent < 100_000_000


def test_a_client_that_asks_before_it_sends(strict):
    whole = strict.posted("/v1/completions", {"prompt": "a" * 4000}, "Expect: 100-continue")
    with strict.connected() as connection:
        connection.sendall(whole.partition(b"{")[0])
        assert received(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("begun", [b"", b"{", b'{"prompt": "'])
def test_a_slow_body(strict, begun):
    content = strict.posted("/v1/completions", {"prompt": "a" * 100}).partition(b"{")[0] + begun
    with strict.connected() as connection:
        began = time.monotonic()
        connection.sendall(content)
        answer = received(connection)
    assert 0.25 < time.monotonic() - began < 10
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in answer


def test_a_body_that_trickles(strict):
    with strict.connected() as connection:
        connection.sendall(strict.posted("/v1/completions", {"prompt": "a" * 1000}).partition(b"{")[0])
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(b" ")
                time.sleep(0.01)
        assert received(connection)[:13] in (b"HTTP/1.1 408 ", b"")


def test_headers_that_trickle(strict, monkeypatch):
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.2)
    for begun in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: local"):
        with strict.connected() as connection:
            connection.sendall(begun)
            assert received(connection) == b""
    # On a connection that has been of use, too.
    with strict.connected() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        connection.sendall(b"GET /hea")
        assert received(connection) == b""


def test_a_full_queue_is_told(strict):
    strict.engine.delay = 0.1
    try:
        with strict.connected() as one, strict.connected() as two:
            one.sendall(strict.posted("/v1/completions", {"prompt": "a", "max_tokens": 40}))
            wait_until(lambda: strict.engine.stats().active == 1)
            two.sendall(strict.posted("/v1/completions", {"prompt": "ab", "max_tokens": 1}))
            wait_until(lambda: strict.engine.stats().waiting == 1)
            for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}, {"prompt": ["a", "b"]}):
                answer = strict.post("/v1/completions", **body)
                assert (answer.status, answer.headers["retry-after"]) == (429, "3")
                assert (answer.error["type"], answer.error["code"]) == ("rate_limit_error", "queue_full")
            assert strict.post("/v1/states", prompt="a").status == 429
            strict.engine.delay = 0.0
            assert b"HTTP/1.1 200" in two.recv(65536)
    finally:
        strict.engine.delay = 0.0
    wait_until(lambda: strict.engine.stats().active == 0)


def test_what_takes_too_long_is_ended():
    with serving(FakeEngine(delay=0.05), Limits(timeout=0.2)) as served:
        answer = served.post("/v1/completions", prompt="a", max_tokens=1000)
        assert (answer.status, answer.error["code"]) == (504, "request_timeout")
        answer = served.post("/v1/completions", prompt="a", max_tokens=1000, stream=True)
        assert answer.events[-1]["error"]["code"] == "request_timeout" and not answer.is_done
        wait_until(lambda: served.engine.stats().active == 0)
        assert served.engine.stats().requests == {"cancelled": 2}


def test_idle_connections_leave_others_alone(strict):
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(strict.connected())
        assert strict.ask("GET", "/health").status == 200


def test_a_client_that_sends_half_and_leaves(strict):
    for cut in (10, 60, -5):
        with strict.connected() as connection:
            connection.sendall(strict.posted("/v1/completions", {"prompt": "a"})[:cut])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert strict.ask("GET", "/health").status == 200
