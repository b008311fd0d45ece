"""What who runs a server looks at: health, metrics, the log, the models, tokens."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.fake_engine import FakeEngine
from parity.suite.support.serve import HELLO, KEY, NAME, serving, wait_until
from tools.serve.middleware import JsonFormatter


def test_models(server, client):
    assert [model.id for model in client.models.list()] == [NAME]
    model = client.models.retrieve(NAME)
    assert (model.id, model.object, model.owned_by) == (NAME, "model", "user")
    answer = server.post("/v1/completions", model="other", prompt="a")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert server.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}).json["model"] == NAME


def test_tokens_and_back(server):
    answer = server.post("/tokenize", prompt="Oé").json
    assert answer == {"tokens": [79, 195, 169], "count": 3, "max_model_len": None}
    assert server.post("/detokenize", tokens=answer["tokens"]).json == {"prompt": "Oé"}
    assert server.post("/detokenize", tokens=[195]).json == {"prompt": "\ufffd"}
    assert server.post("/tokenize", messages=HELLO).json["count"] == 22
    assert server.post("/tokenize", messages=HELLO, add_generation_prompt=False).json["count"] == 12
    assert server.post("/tokenize", prompt="").json["tokens"] == []


def metrics(served):
    answer = served.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics():
    with serving(FakeEngine(slots=3)) as served:
        before = metrics(served)
        assert before["liquidnet_slots"] == 3 and before["liquidnet_prompt_tokens_total"] == 0
        served.post("/v1/completions", prompt="abc", max_tokens=5)
        served.post("/v1/completions", prompt="abc", max_tokens=5, stream=True)
        served.post("/v1/completions", prompt=5)
        served.post("/v1/states", prompt="abc")
        served.ask("GET", "/nowhere/at/all")
        after = metrics(served)
    assert after["liquidnet_prompt_tokens_total"] == 9 and after["liquidnet_completion_tokens_total"] == 10
    assert after['liquidnet_texts_finished_total{reason="length"}'] == 3 and after["liquidnet_states"] == 1
    assert after["liquidnet_time_to_first_token_seconds_count"] == 3
    counted = {
        name: value for name, value in after.items() if name.startswith("liquidnet_http_request_duration_seconds_count")
    }
    routes = {re.sub(r".*count", "", name): value for name, value in counted.items()}
    assert routes == {
        '{route="/v1/completions",status="200"}': 2,
        '{route="/v1/completions",status="400"}': 1,
        '{route="/v1/states",status="200"}': 1,
        '{route="/metrics",status="200"}': 1,
        '{route="none",status="404"}': 1,
    }


@pytest.fixture
def log():
    """The lines of the log, as they would stand on stderr."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("tools.serve")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_a_request_is_a_line_of_the_log(server, log):
    answer = server.post("/v1/completions", prompt="abc", max_tokens=2, user="me\n\x1b[31m" + "x" * 100, stream=True)
    wait_until(log)
    (line,) = log()
    assert line.pop("time").endswith("+00:00") and 0 <= line.pop("seconds") < 5
    assert line == {
        "level": "info", "event": "request", "id": answer.headers["x-request-id"], "method": "POST",
        "route": "/v1/completions", "status": 200, "client": "127.0.0.1", "user": ("me\n\x1b[31m" + "x" * 100)[:64],
        "prompt_tokens": 3, "completion_tokens": 2,
    }  # fmt: skip


def test_nothing_of_a_client_is_in_the_log_as_it_is(server, log):
    server.ask("GET", "/secret%0apath%1b[31m?key=value", Authorization=f"Bearer {KEY}", X_Header="secret")
    server.ask("GET", f"/v1/states/{'secret' * 9}")
    server.ask("GET", "/v1/models", Authorization="Bearer secret")
    server.post("/v1/completions", prompt="secret", max_tokens=1)
    wait_until(lambda: len(log()) == 4)
    assert [line["route"] for line in log()] == ["none", "/v1/states/{name}", "none", "/v1/completions"]
    assert not any(word in json.dumps(log()) for word in ("secret", KEY, "key=value", "\\u001b"))


def test_a_client_that_has_left_has_a_status_of_its_own(log):
    with serving(FakeEngine(delay=0.01)) as served:
        with served.connected() as connection:
            connection.sendall(served.posted("/v1/completions", {"prompt": "a", "max_tokens": 1000}))
            wait_until(lambda: served.engine.stats().active == 1)
        wait_until(log)
    assert [line["status"] for line in log()] == [499]


def test_while_it_ends():
    with serving(FakeEngine(delay=0.01)) as served, served.connected() as connection:
        connection.sendall(served.posted("/v1/completions", {"prompt": "a", "max_tokens": 1000, "stream": True}))
        wait_until(lambda: served.engine.stats().active == 1)
        served.service.closing = True
        answer = served.ask("GET", "/health")
        assert (answer.status, answer.json) == (503, {"status": "shutting down"})
        for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/states", {"prompt": "a"})):
            answer = served.post(path, **body)
            assert (answer.status, answer.error["code"]) == (503, "server_shutting_down")
        served.engine.close(0)
        content = b""
        while not content.endswith(b"0\r\n\r\n"):
            content += connection.recv(65536)
        assert b'"code":"server_shutting_down"' in content and b"[DONE]" not in content
