"""A server in a process of its own, and clients that ask it for texts at the same time."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

#: Seconds that starting, or one answer, may take.
PATIENCE = 300.0


@dataclass(frozen=True)
class Server:
    """Where it listens.

    Args:
        port: on this machine.
        model: how it calls its model.
    """

    port: int
    model: str

    def ask(self, **body: object) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A completion, with the sampling that `liquidnet generate` has by default."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        asked = {"model": self.model, "temperature": 0.8, "top_p": 0.95, **body}
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        return connection, connection.getresponse()


@contextmanager
def started(command: Sequence[str], model: str) -> Iterator[Server]:
    """The server while the block runs; it is told the port.

    Raises:
        RuntimeError: it does not start; with the last line of what it says.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, text=True)
        try:
            until = time.monotonic() + PATIENCE
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read().strip().splitlines()[-1:]}")
                time.sleep(0.1)
            yield Server(port, model)
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _answers(port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except OSError:
        return False


def tokens_per_second(server: Server, clients: int, tokens: int) -> float:
    """Of all clients together, each of whom asks for one text of so many tokens, at the same moment."""
    written: list[int] = []
    ready = threading.Barrier(clients + 1)

    def ask(seed: int) -> None:
        ready.wait()
        connection, answer = server.ask(prompt=chr(ord("a") + seed), max_tokens=tokens, seed=seed)
        with closing(connection):
            written.append(json.loads(answer.read())["usage"]["completion_tokens"])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if len(written) < clients:
        raise RuntimeError("a client was not answered")
    return sum(written) / seconds


def first_token_seconds(server: Server, prompt: Sequence[int]) -> float:
    """From the request to the first piece of a stream that has text; its end is waited for: the server rests then."""
    began, seconds = time.perf_counter(), None
    connection, answer = server.ask(prompt=prompt, max_tokens=4, seed=1, stream=True)
    with closing(connection):
        while line := answer.readline():
            if seconds is None and line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
                seconds = time.perf_counter() - began
    if seconds is None:
        raise RuntimeError("a stream has ended without text")
    return seconds
