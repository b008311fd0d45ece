"""Many clients at once against `liquidnet serve`: every text is the one that `liquidnet generate` writes alone.

    python -m parity.suite.runs.serve_load --clients 64 --minutes 5 --backend torch

The server is a process of its own. Each client asks again and again for one of a few texts, of mixed lengths; one
request in ten is left in mid-stream. In the end every request was answered with the right text, left, or refused with
429; no slot is lost, none waits, and the server's memory has not grown.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro

from parity.suite.support.ui import free_port, wandering
from spec.checkpoint.format import write_checkpoint
from spec.sampling import Sampling
from tools.cli.backends import Backend
from tools.generation.session import open_model

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
#: Seconds that one read may take.
PATIENCE = 120.0
#: MiB by which the server's memory may differ between the second third of the time and the last: that of a few bodies.
GROWTH = 24.0


@dataclass(frozen=True)
class Load:
    """What the clients do, and for how long."""

    clients: int = 64
    """Clients at once."""
    minutes: float = 5.0
    """How long they ask."""
    backend: Backend = "torch"
    """Backend that serves."""
    slots: int = 16
    """Texts that the server writes at once."""
    texts: int = 60
    """Texts that the clients choose from."""
    leaving: float = 0.1
    """The part of the requests that is left in mid-stream."""
    seed: int = 0
    """Of the texts, and of what the clients do."""


@dataclass(frozen=True)
class Wanted:
    """A request, and the text that it must be answered with."""

    body: dict[str, object]
    text: str


def wanted_texts(checkpoint: Path, load: Load) -> list[Wanted]:
    """Requests of mixed lengths, and what a session alone writes."""
    rng, model = random.Random(load.seed), open_model(checkpoint, load.backend)
    found = []
    for seed in range(load.texts):
        prompt = "".join(rng.choice("abcdefghij ") for _ in range(rng.choice((1, 7, 30, 90, 300))))
        tokens, temperature = rng.choice((1, 10, 60, 200)), rng.choice((0.0, 0.8, 1.0))
        session = model.session()
        session.append(prompt)
        text = "".join(session.write(Sampling(temperature, 0, 0.95, seed), tokens))
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": temperature, "top_p": 0.95, "seed": seed}
        found.append(Wanted(body, text))
    return found


@contextmanager
def server(checkpoint: Path, load: Load) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`liquidnet serve` on a port of its own; yields the port and the process."""
    port = free_port()
    command = [sys.executable, "-m", "tools.cli", "serve", "--checkpoint", str(checkpoint), "--port", str(port)]
    command += ["--backend", load.backend, "--slots", str(load.slots), "--queue", str(load.clients // 2)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not ADDRESS.search(line):
                log.seek(0)
                raise RuntimeError(f"the server did not start: {line}{log.read()}")
            yield port, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE)


class Client:
    """One client's requests.

    Args:
        port: of the server.
        wanted: what may be asked for.
        load: how.
        number: of the client.
    """

    def __init__(self, port: int, wanted: list[Wanted], load: Load, number: int):
        self._port, self._wanted, self._load = port, wanted, load
        self._rng = random.Random(f"{load.seed}, client {number}")
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self, until: float) -> None:
        """Ask until then."""
        while time.monotonic() < until:
            try:
                self._ask(self._rng.choice(self._wanted))
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.faults.append(f"{type(error).__name__}: {error}")

    def _ask(self, wanted: Wanted) -> None:
        leaves, streams = self._rng.random() < self._load.leaving, self._rng.random() < 0.7
        body = json.dumps({**wanted.body, "stream": streams or leaves})
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)) as connection:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status == 429:
                answer.read()
                self.counts["refused"] += 1
                time.sleep(min(1.0, float(answer.headers["Retry-After"])) * self._rng.random())
                return
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {answer.read()[:200]!r}")
            if leaves:
                for _ in range(self._rng.randrange(4)):
                    answer.readline()
                self.counts["left"] += 1
                return
            text = self._streamed(answer) if streams else json.loads(answer.read())["choices"][0]["text"]
        if text != wanted.text:
            self.faults.append(f"{wanted.body}: {text!r} and not {wanted.text!r}")
        self.counts["answered"] += 1

    @staticmethod
    def _streamed(answer: http.client.HTTPResponse) -> str:
        lines = [line.removeprefix("data: ") for line in answer.read().decode().split("\n\n") if line]
        if lines[-1] != "[DONE]":
            raise ValueError(f"a stream ended with {lines[-1][:200]}")
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])


def metrics(port: int) -> dict[str, float]:
    """What the server counts, by name."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def resident(process: subprocess.Popen[str]) -> float:
    """MiB of memory that a process holds; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def run(load: Load) -> list[str]:
    """What was wrong, in sentences; prints what was counted."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "checkpoint"
        write_checkpoint(checkpoint, wandering())
        wanted = wanted_texts(checkpoint, load)
        with server(checkpoint, load) as (port, process):
            clients = [Client(port, wanted, load, number) for number in range(load.clients)]
            until = time.monotonic() + 60 * load.minutes
            threads = [threading.Thread(target=client.run, args=(until,)) for client in clients]
            for thread in threads:
                thread.start()
            memory = []
            while any(thread.is_alive() for thread in threads):
                memory.append(resident(process))
                time.sleep(min(1.0, 60 * load.minutes / 30))
            idle = _until_idle(port)
        faults = [fault for client in clients for fault in client.faults]
        counts = sum((client.counts for client in clients), Counter[str]())
    third = len(memory) // 3
    before, after = max(memory[third : 2 * third]), max(memory[2 * third :])
    print(f"{load.backend}: {dict(counts)}, memory {before:.0f} MiB, later {after:.0f} MiB, exit {process.returncode}")
    if not idle:
        faults.append("texts are still being written, or wait, though nobody asks any more")
    if after - before > GROWTH:
        faults.append(f"the server's memory has grown from {before:.0f} to {after:.0f} MiB")
    if process.returncode:
        faults.append(f"the server ended with {process.returncode}")
    if not counts["answered"] or (load.leaving and not counts["left"]):
        faults.append("nothing was answered, or nobody left")
    return faults


def _until_idle(port: int) -> bool:
    """Whether within some seconds nothing is written any more."""
    for _ in range(50):
        found = metrics(port)
        if found["liquidnet_active"] == found["liquidnet_waiting"] == 0:
            return True
        time.sleep(0.2)
    return False


def main() -> None:
    """Run what the flags say; exit code 1 where anything was wrong."""
    faults = run(tyro.cli(Load, description=__doc__))
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
