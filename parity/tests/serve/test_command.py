"""The process of `liquidnet serve`: how it begins, how it ends, what it refuses in a line."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'liquidnet-dual[serve]'")

from parity.suite.support.fake_engine import written
from parity.suite.support.serve import KEY, process, received
from parity.suite.support.ui import free_port
from tools.generation import session
from tools.serve.command import Serve, _run_name

STREAM = {"prompt": "Once", "max_tokens": 60, "stream": True, "seed": 0}


def ended(running):
    """The exit code, and the log, of which every line is JSON."""
    out, err = running.communicate(timeout=20)
    assert out == ""
    return running.returncode, [json.loads(line) for line in err.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_written_to_its_end(number):
    with process("--grace", 10, delay=0.01, LIQUIDNET_API_KEY=KEY) as (running, served):
        assert served.ask("GET", "/v1/models").status == 401
        served.headers["Authorization"] = f"Bearer {KEY}"
        assert [model["id"] for model in served.ask("GET", "/v1/models").json["data"]] == ["run"]
        with served.connected() as connection:
            connection.sendall(served.posted("/v1/completions", STREAM, "Connection: close"))
            content = connection.recv(10)
            running.send_signal(number)
            content += received(connection)
        assert content.count(b'"text":"') == 61 and b"data: [DONE]" in content
        assert f'"text":"{written(4, 0, 60)[-1]}"'.encode() in content
        code, log = ended(running)
    assert code == 0 and [line["status"] for line in log] == [401, 200, 200]


def test_what_runs_for_too_long_is_ended_and_told():
    with process("--grace", 0.2, delay=0.01) as (running, served):
        with served.connected() as stream, served.connected() as plain, served.connected() as idle:
            stream.sendall(served.posted("/v1/completions", {**STREAM, "max_tokens": 4000}))
            plain.sendall(served.posted("/v1/completions", {"prompt": "a", "max_tokens": 4000}))
            content = stream.recv(10)
            began = time.monotonic()
            running.send_signal(signal.SIGTERM)
            content, answer = content + received(stream), received(plain)
            assert received(idle) == b""
        assert b'"code":"server_shutting_down"' in content and b"[DONE]" not in content
        assert answer.startswith(b"HTTP/1.1 503 ") and b'"code":"server_shutting_down"' in answer
        code, _ = ended(running)
    assert code == 0 and time.monotonic() - began < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number):
    with process("--grace", 60, delay=0.01) as (running, served):
        with served.connected() as connection:
            connection.sendall(served.posted("/v1/completions", {**STREAM, "max_tokens": 4000}))
            assert connection.recv(10)
            running.send_signal(signal.SIGTERM)
            time.sleep(0.4)
            began = time.monotonic()
            running.send_signal(number)
            assert not received(connection).endswith(b"0\r\n\r\n")
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (130, "") and time.monotonic() - began < 20
    assert "liquidnet: interrupted; run it again\n" in err and "Traceback" not in err


@pytest.fixture
def unloaded(monkeypatch):
    monkeypatch.setattr(session, "open_model", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"port": 0}, r"--port must be in \[1, 65535\], got 0"),
        ({"host": "no.such.host.invalid"}, "cannot listen on no.such.host.invalid"),
        ({"slots": 0}, "--slots must be an integer of at least 1, got 0"),
        ({"queue": 0}, "--queue must be an integer of at least 1, got 0"),
        ({"cache_mib": -1}, "--cache-mib must be an integer of at least 0, got -1"),
        ({"max_tokens": 0}, "--max-tokens must be an integer of at least 1"),
        ({"max_prompt_tokens": 0}, "--max-prompt-tokens must be an integer of at least 1"),
        ({"max_states": -1}, "--max-states must be an integer of at least 0"),
        ({"max_body_mib": 0}, "--max-body-mib must be an integer of at least 1"),
        ({"timeout": 0.0}, "--timeout must be a number of seconds above 0, got 0.0"),
        ({"timeout": float("nan")}, "--timeout must be"),
        ({"grace": -1.0}, "--grace must be a number of seconds, 0 or more, got -1.0"),
        ({"api_key": "a key"}, "--api-key and LIQUIDNET_API_KEY must be letters, digits and signs of ASCII"),
        ({"api_key": "ké"}, "--api-key"),
        ({"chat_template": Path("nowhere.jinja")}, "nowhere.jinja cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_line(unloaded, wrong, message):
    with pytest.raises(ValueError, match=message):
        Serve(**{"checkpoint": Path("run"), "port": free_port(), **wrong}).run()


def test_a_place_that_is_taken_is_told_before_anything_is_loaded(unloaded):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"127.0.0.1:{port} \(Address already in use\); name another --port"):
            Serve(Path("run"), port=port).run()


def test_a_template_that_is_none(unloaded, tmp_path):
    for content, reason in ((b"{% if %}", "it is no Jinja2: line 1"), (b"\xff", "utf-8")):
        (tmp_path / "chat.jinja").write_bytes(content)
        with pytest.raises(ValueError, match=rf"--chat-template .*chat\.jinja cannot be used: .*{reason}"):
            Serve(Path("run"), port=free_port(), chat_template=tmp_path / "chat.jinja").run()


def test_others_are_let_in_with_a_warning():
    with process("--host", "0.0.0.0") as (running, served):
        assert served.ask("GET", "/health", Host="another.example").status == 200
        running.send_signal(signal.SIGTERM)
        err = running.communicate(timeout=20)[1]
    assert err.startswith(
        "liquidnet: WARNING: anyone who can reach 0.0.0.0 can use this model: there is no --api-key\n"
    )


def test_a_model_is_called_as_its_run(tmp_path):
    (tmp_path / "tiny" / "checkpoints" / "step_00000010").mkdir(parents=True)
    (tmp_path / "small.pt").touch()
    assert _run_name(tmp_path / "tiny") == _run_name(tmp_path / "tiny" / "checkpoints" / "step_00000010") == "tiny"
    assert _run_name(tmp_path / "small.pt") == "small"
