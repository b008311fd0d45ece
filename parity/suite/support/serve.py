"""What the tests of `liquidnet serve` share: a server on a port of its own, and requests without a library."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from parity.suite.support.fake_engine import FakeEngine, fake_model, fake_pack, fake_parse
from parity.suite.support.ui import free_port
from tools.cli.listening import listen
from tools.generation.engine import Engine
from tools.generation.session import pack_state, parse_state
from tools.serve.app import create_app
from tools.serve.chat_template import ChatTemplate
from tools.serve.server import HttpServer
from tools.serve.service import Limits, Service
from tools.serve.states import StateStore

HELLO = [{"role": "user", "content": "Hello"}]
KEY = "a-key-of-the-tests"
NAME = "tiny"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which must be the contract's and nothing else."""
        assert self.headers["content-type"] == "application/json", self
        assert self.json.keys() == {"error"}, self
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"], self
        return error

    @property
    def events(self) -> list[Any]:
        """Of a stream, without the last one where that says that it is done."""
        *lines, end = self.content.decode().split("\n\n")
        assert end == "" and not [line for line in lines if not line.startswith("data: ") or "\n" in line], self
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]

    @property
    def is_done(self) -> bool:
        """Whether the stream says that it has come to its end."""
        return self.content.endswith(b"data: [DONE]\n\n")


@dataclass
class Served:
    """A server that runs."""

    port: int
    engine: Any
    service: Service
    connections: Callable[[], int]
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON; `_` in names is `-`."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {**self.headers, **({"Content-Type": "application/json"} if content is not None else {})}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, content, {name: value for name, value in given.items() if value})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def post(self, path: str, **body: object) -> Answer:
        """JSON, which names the model."""
        return self.ask("POST", path, {"model": NAME, **body})

    def raw(self, content: bytes, seconds: float = 30.0) -> bytes:
        """What the server says to these bytes, until it closes the connection."""
        with self.connected(seconds) as connection:
            connection.sendall(content)
            return received(connection)

    @contextlib.contextmanager
    def connected(self, seconds: float = 30.0) -> Iterator[socket.socket]:
        """A bare connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            yield connection

    def posted(self, path: str, body: dict[str, object], more: str = "") -> bytes:
        """A request as its bytes."""
        content = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(content)}", *filter(None, [more]), "", ""]
        return "\r\n".join(lines).encode() + content


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            content += more
    return content


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Fails where a condition does not come true in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it has not come true"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(
    engine: FakeEngine | Engine | None = None,
    limits: Limits | None = None,
    api_key: str = "",
    template: str | None = TEMPLATE,
    most_states: int = 5,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
) -> Iterator[Served]:
    """A server on loopback while the block runs; its states are files where its engine is the true one."""
    engine = FakeEngine() if engine is None else engine
    if isinstance(engine, Engine):
        model, pack, parse = (
            engine.model,
            partial(pack_state, model=engine.model),
            partial(parse_state, model=engine.model),
        )
    else:
        model, pack, parse = fake_model(), fake_pack, fake_parse
    states = StateStore(most_states, NAME, pack, parse)
    compiled = None if template is None else ChatTemplate(template)
    service = Service(model, engine, states, NAME, limits or Limits(), compiled, ("\nuser:",))
    port = free_port()
    server = HttpServer(create_app(service, api_key, hosts), listen("127.0.0.1", port))
    server.start()
    try:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        yield Served(port, engine, service, lambda: len(server._server.server_state.connections), headers)
    finally:
        engine.close(0)
        server.stop()


#: `liquidnet serve` with the stand-ins for model and engine, DELAY seconds a step.
PROGRAM = """
import signal, sys
from parity.suite.support import fake_engine
from tools.cli.main import main
from tools.generation import engine, session

delay = float(sys.argv.pop(1))
engine.Engine = lambda model, slots, queue, cache, invariant: fake_engine.FakeEngine(slots, queue, delay)
session.open_model = lambda path, backend, weights: fake_engine.fake_model()
session.pack_state = lambda state, model: fake_engine.fake_pack(state)
session.parse_state = lambda content, model: fake_engine.fake_parse(content)
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@contextlib.contextmanager
def process(*flags: object, delay: float = 0.0, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Served]]:
    """`liquidnet serve` in a process of its own, once it answers."""
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, str(delay), "serve", "--checkpoint", "run", "--port", str(port)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen([*command, *map(str, flags)], **pipes, env={**os.environ, **environment})
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert f":{port} (Ctrl-C ends it)" in line, running.communicate()
        none: Any = None
        yield running, Served(port, none, none, none)
    finally:
        running.kill()
        running.communicate()
