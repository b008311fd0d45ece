"""Streams: they come as they are written, they say how they end, and they end where nobody listens."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.fake_engine import FakeEngine, fake_model, fake_pack, fake_parse, written
from parity.suite.support.serve import NAME, received, serving, wait_until
from tools.generation.request import GenerationRequest, Piece
from tools.serve import server as server_module
from tools.serve import streams
from tools.serve.service import Generation, Limits, Service
from tools.serve.states import StateStore


@pytest.fixture(scope="module")
def slow():
    """A server whose engine takes its time."""
    with serving(FakeEngine(slots=2, queue=4, delay=0.01)) as served:
        yield served


BODIES = {
    "completions": ("/v1/completions", {"prompt": "Once", "max_tokens": 1000}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1000}),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path, body", BODIES.values(), ids=BODIES)
def test_a_client_that_leaves_frees_its_slots(slow, path, body, stream):
    before = slow.engine.stats().requests.get("cancelled", 0)
    with slow.connected() as connection:
        connection.sendall(slow.posted(path, {**body, "n": 4, "stream": stream}))
        wait_until(lambda: slow.engine.stats().active == 1)
        if stream:
            assert connection.recv(100)
    wait_until(lambda: slow.engine.stats().active == 0 and slow.engine.stats().waiting == 0)
    # Of those that had not been asked for nothing is left to end.
    assert slow.engine.stats().requests.get("cancelled", 0) == before + 1
    assert slow.post("/v1/completions", prompt="a", max_tokens=1).status == 200


def test_a_client_that_leaves_while_a_state_is_made(slow):
    with slow.connected() as one, slow.connected() as two:
        for connection in (one, two):
            connection.sendall(slow.posted("/v1/completions", {"prompt": "a", "max_tokens": 1000}))
        wait_until(lambda: slow.engine.stats().active == 2)
        with slow.connected() as connection:
            connection.sendall(slow.posted("/v1/states", {"prompt": "abc"}))
            wait_until(lambda: slow.engine.stats().waiting == 1)
        wait_until(lambda: slow.service.states._reserved == 0)
    wait_until(lambda: slow.engine.stats().active == 0)
    assert slow.ask("GET", "/v1/states").json["data"] == []


def test_pieces_come_as_they_are_written(slow):
    with slow.connected() as connection:
        began = time.monotonic()
        connection.sendall(slow.posted("/v1/completions", {"prompt": "a", "max_tokens": 40, "stream": True, "seed": 0}))
        content, times = b"", []
        while b"[DONE]" not in content:
            content += connection.recv(65536)
            times.append(time.monotonic() - began)
    assert len(times) > 3 and times[-1] - times[0] > 0.1
    # One after another on the same connection.
    assert content.count(b'"text":') == 41


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system cannot tell")
def test_a_reader_that_stops_reading_is_dropped(monkeypatch):
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(streams, "LAST_SECONDS", 0.1)
    limits = Limits(timeout=0.3, max_tokens=100_000)
    with serving(FakeEngine(slots=2), limits) as served, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", served.port))
        connection.sendall(served.posted("/v1/completions", {"prompt": "a", "max_tokens": 100_000, "stream": True}))
        wait_until(lambda: served.engine.stats().active == 1)
        wait_until(lambda: served.engine.stats().active == 0)
        wait_until(lambda: not served.connections())
        connection.settimeout(5)
        assert not received(connection).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path, body", [("/v1/completions", {"prompt": "fail"})])
def test_an_engine_that_fails(slow, path, body):
    answer = slow.post(path, **body)
    assert (answer.status, answer.error["message"]) == (500, "a logit was not finite")
    answer = slow.post(path, **body, stream=True)
    assert answer.status == 200 and not answer.is_done
    assert answer.events[-1]["error"]["type"] == "server_error" and len(answer.events) == 1


def test_faults_of_ours_are_told_as_such(slow, caplog):
    answer = slow.post("/v1/completions", prompt="burst", stream=True)
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "a fault of the engine's own" in caplog.text and "fault" not in answer.content.decode()
    answer = slow.post("/v1/completions", prompt="a", stop="refused")
    assert (answer.status, answer.error["message"]) == (400, "stop strings of this kind cannot be")


def test_the_client_learns_of_an_error_in_a_stream(slow):
    openai = pytest.importorskip("openai", reason="pip install openai")
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{slow.port}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.APIError, match="a logit was not finite"),
    ):
        [*client.completions.create(model=NAME, prompt="fail", stream=True)]


def test_many_at_once_are_each_their_own():
    with serving(FakeEngine(slots=4, queue=100)) as served:
        texts: dict[int, str] = {}

        def ask(k: int) -> None:
            body = {"prompt": "a" * (k + 1), "max_tokens": 20, "seed": k, "stream": k % 2 == 0}
            answer = served.post("/v1/completions", **body)
            objects = answer.events if k % 2 == 0 else [answer.json]
            texts[k] = "".join(one["choices"][0]["text"] for one in objects)

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == {k: written(k + 1, k, 20) for k in range(24)}


def test_one_connection_takes_one_request_after_another(slow):
    with slow.connected() as connection:
        for k in range(3):
            connection.sendall(slow.posted("/v1/completions", {"prompt": "a", "max_tokens": 1, "seed": k}))
            content = b""
            while b"\r\n\r\n" not in content or not content.endswith(b"}"):
                content += connection.recv(65536)
            assert json.loads(content.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == written(1, k, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_only_a_stream_wakes_the_loop_for_each_piece(stream):
    """Who waits for the whole text is told of its first piece, which tells how long it took, and of its end."""

    async def batches() -> list[list[tuple[int, object]]]:
        service = Service(fake_model(), engine, StateStore(5, NAME, fake_pack, fake_parse), NAME)
        generation = Generation(service, [GenerationRequest((7,), max_tokens=30)] * 2, stream)
        generation.start()
        return [batch async for batch in generation.batches()]

    engine = FakeEngine(slots=4, delay=0.005)
    try:
        found = asyncio.run(batches())
    finally:
        engine.close(0.0)
    events = [event for batch in found for event in batch]
    assert Counter(type(event).__name__ for _, event in events) == {"Piece": 60, "Finished": 2}
    assert len(found) >= 30 if stream else len(found) <= 4
    texts = [
        "".join(event.text for at, event in events if at == index and isinstance(event, Piece)) for index in (0, 1)
    ]
    assert texts == [written(1, 0, 30)] * 2
