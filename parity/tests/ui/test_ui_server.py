"""The process of `liquidnet ui`: whom it answers, how it ends, what it refuses in a line."""

from __future__ import annotations

import contextlib
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from parity.suite.support.ui import free_port, served, wandering
from spec.checkpoint.format import write_checkpoint
from tools.ui.command import Ui, is_loopback


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ui") / "wandering"
    write_checkpoint(path, wandering())
    return path


def ask(address: str, **headers: str) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def needs_gradio() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed; pip install 'liquidnet-dual[ui]'")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_starts_answers_here_alone_and_ends(model, number):
    """Through a proxy that is not there; other names for this machine, files and uploads are refused."""
    needs_gradio()
    port, nowhere = free_port(), "http://127.0.0.1:9"
    address = f"http://127.0.0.1:{port}"
    with served("--checkpoint", model, "--port", port, HTTP_PROXY=nowhere, http_proxy=nowhere) as (process, line):
        assert line == f"LiquidNet is at {address} (Ctrl-C ends it)\n"
        assert ask(address) == 200
        assert ask(address, Host="liquid.example") == 400
        for path in ("/etc/hostname", "pyproject.toml", model / "config.json"):
            assert ask(f"{address}/gradio_api/file={path}") == 403
        elsewhere = [a for a in machine_addresses() if not a.startswith("127.")]
        for other in elsewhere:
            with pytest.raises(OSError):
                socket.create_connection((other, port), timeout=2)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def machine_addresses() -> list[str]:
    with contextlib.suppress(OSError):
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)})
    return []


def test_mistakes_are_one_line(model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"127.0.0.1:{port} \(Address already in use\); name another --port"):
            Ui((model,), port=port).run()
    good = {"checkpoint": (model,), "port": free_port()}
    for wrong, message in (
        ({"checkpoint": ()}, "--checkpoint"),
        ({"checkpoint": (Path("nowhere"),)}, "nowhere does not exist"),
        ({"port": 0}, r"--port must be in \[1, 65535\], got 0"),
        ({"port": 70000}, "--port must be"),
        ({"max_length": 0}, "--max-length must be"),
        ({"host": "no.such.host.invalid"}, "cannot listen on no.such.host.invalid"),
    ):
        with pytest.raises(ValueError, match=message):
            Ui(**{**good, **wrong}).run()


def test_other_hosts_are_warned_of(model):
    needs_gradio()
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.0.1", "localhost", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")] == [False] * 4
    port = free_port()
    with served("--checkpoint", model, "--port", port, "--host", "0.0.0.0") as (process, line):
        assert line.startswith(f"LiquidNet is at http://0.0.0.0:{port}")
        process.send_signal(signal.SIGTERM)
        assert "WARNING: anyone who can reach 0.0.0.0 can use this page" in process.communicate(timeout=20)[1]
