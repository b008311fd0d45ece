"""uvicorn in a thread of its own: signals are the main thread's, which decides when it ends."""

from __future__ import annotations

import asyncio
import socket
import threading

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tools.serve.errors import bad_request, dumped

#: In which the first line and the headers of a request must have come, once a connection or a request has begun.
HEADER_SECONDS = 20.0
#: That a connection is kept for the next request.
KEEP_ALIVE_SECONDS = 30
#: After which a client that takes nothing of what is sent to it is given up, where the system can tell.
UNREAD_SECONDS = 60.0
#: In which answers are sent that are finished when the server ends.
LAST_SECONDS = 5


class _Protocol(H11Protocol):
    """A connection on which a request must come in time, and what is no HTTP is answered like any other mistake."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        body = dumped(bad_request("this is no HTTP request", code="invalid_http").body())
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class HttpServer:
    """A server on a socket that listens already.

    Args:
        app: that answers.
        listener: the socket.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket):
        config = uvicorn.Config(
            app, http=_Protocol, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False,
            server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=LAST_SECONDS,
        )  # fmt: skip
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections have it from the socket that listens
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))
        self._server = uvicorn.Server(config)
        # Not the thread's `join`: after one that a signal has interrupted, Python takes the thread for ended.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="http", daemon=True)

    def _run(self, listener: socket.socket) -> None:
        try:
            self._server.run([listener])
        finally:
            self._ended.set()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        while not self._server.started and not self._ended.wait(0.01):
            pass

    def wait(self) -> None:
        """Until it ends, which it does by itself only where it fails."""
        self._ended.wait()

    def stop(self) -> None:
        """End, once answers that are being sent have been, or LAST_SECONDS are over."""
        self._server.should_exit = True
        self._ended.wait(LAST_SECONDS + 2)
        self._server.force_exit = True
