"""A stand-in of the Hugging Face hub on this machine, as downloads need it, with the faults they must bear."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from parity.proof.environment import ROOT
from parity.suite.support.fixtures import HEED_SIGINT
from tools.data.hub import HubFile

CHUNK = 1 << 12  # the hub's client writes what it has in pieces of this size, here smaller than its 10 MB
_PREPARE = """
import json, os, sys
from huggingface_hub import constants
from tools.cli.main import main
from tools.data import datasets
from tools.data.hub import HubFile
constants.DOWNLOAD_CHUNK_SIZE = int(os.environ["CHUNK"])
datasets.DATASETS["tinystories"] = tuple(HubFile(**file) for file in json.loads(os.environ["FILES"]))
main(sys.argv[1:])
"""


@dataclass
class Hub:
    """What the server has, what it was asked for, and how it misbehaves."""

    endpoint: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)
    #: Method, path and range of every request.
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    #: After how many bytes each of the next answers breaks off.
    breaks: list[int] = field(default_factory=list)
    #: After how many answers with content all others are errors of the server.
    gone_after: int | None = None
    #: Whether files are on another host, as the hub's large ones are.
    redirects: bool = False
    #: Paths, on that host, of requests that came with a login.
    logins: list[str] = field(default_factory=list)
    knows_ranges: bool = True
    #: Whether answers say how long they are, and that they are the hub's.
    tells_size: bool = True
    tells_commit: bool = True
    #: Where set, answers stop after half of the content; `reached` tells that one has.
    stalls: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def put(self, file: HubFile, content: bytes) -> None:
        """Serve this content as that file."""
        folder = "" if file.repository_type == "model" else f"{file.repository_type}s/"
        self.contents[f"/{folder}{file.repository}/resolve/{file.revision}/{file.filename}"] = content

    def ranges(self) -> list[str | None]:
        """The range of every GET so far."""
        return [asked for method, _, asked in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, asked, elsewhere = self.hub, self.headers["Range"], self.headers["Host"].startswith("localhost")
        hub.requests.append((self.command, self.path, asked))
        content = hub.contents.get(self.path)
        if elsewhere and self.headers["Authorization"]:
            hub.logins.append(self.path)
        if hub.redirects and not elsewhere and content is not None:
            self._redirect(content)
            return
        gone = hub.gone_after is not None and len(hub.ranges()) > hub.gone_after
        if content is None or gone:
            self._head(500 if gone else 404, {"Content-Length": "0"})
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.knows_ranges else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        headers |= {"Content-Length": str(len(content) - start)} if hub.tells_size else {}
        headers |= {"X-Repo-Commit": self._revision()} if hub.tells_commit else {}
        self._head(206 if start else 200, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        if body:
            self._send(content[start:])

    def _redirect(self, content: bytes) -> None:
        place = f"{self.hub.endpoint.replace('127.0.0.1', 'localhost')}{self.path}"
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._head(302, {"Location": place, "Content-Length": "0", **linked, "X-Repo-Commit": self._revision()})

    def _revision(self) -> str:
        return self.path.split("/resolve/")[1].split("/")[0]

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes) -> None:
        self.close_connection = True
        if self.hub.stalls:
            self.wfile.write(content[: len(content) // 2])
            self.hub.reached.set()
            self.hub.closing.wait(60)
        else:
            self.wfile.write(content[: self.hub.breaks.pop(0)] if self.hub.breaks else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def describe(name: str, content: bytes) -> HubFile:
    """A file of a data set with this content."""
    return HubFile("somebody/texts", "0" * 40, name, len(content), hashlib.sha256(content).hexdigest(), "dataset")


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """For a process that knows this hub and no other; huggingface_hub reads it when it is imported."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("HF_")
    }
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    return kept | ours | more


def prepare(
    endpoint: str, home: Path, files: Sequence[HubFile], *arguments: object, **more: str
) -> subprocess.Popen[str]:
    """Start `liquidnet prepare --dataset tinystories ...` where that data set is these two files."""
    described = json.dumps([asdict(file) for file in files])
    command = [sys.executable, "-c", HEED_SIGINT + _PREPARE, "prepare", "--dataset", "tinystories"]
    there = environment(endpoint, home, CHUNK=str(CHUNK), FILES=described, **more)
    command += map(str, arguments)
    return subprocess.Popen(command, env=there, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
