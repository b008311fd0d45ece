"""The models on a page of one's own machine: text as it is written, the state as it goes by, the loss of the run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spec.checkpoint.quantization import Weights
from tools.cli import backends
from tools.cli.listening import address, is_loopback, listen
from tools.ui.controller import Controller
from tools.ui.models import Catalogue

if TYPE_CHECKING:
    import gradio as gr


@dataclass(frozen=True)
class Ui:
    """Write with models in a browser, on either backend or on both side by side, and watch the liquid state.

    Only this machine can reach the page, which asks nothing of any other one. Ctrl-C ends it.
    """

    checkpoint: tuple[Path, ...]
    """Runs, whose checkpoints may then be chosen, checkpoint directories, .pt or .msgpack files."""
    backend: backends.Backend | None = None
    """Backend that is chosen at first; by default the first one installed."""
    weights: Weights = "float32"
    """Round the matrices to bfloat16, or to int8 with a scale a row, and write with these: less to read a token."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own lets others in, without a password."""
    port: int = 7860
    """Port to listen on."""
    max_length: int = 2000
    """Tokens that one click may ask for."""

    def run(self) -> None:
        with serve(self) as (place, controller):
            print(f"LiquidNet is at {place} (Ctrl-C ends it)", flush=True)
            wait()
        if controller.is_busy():
            # A thread inside a compiler cannot be asked to stop, and Python's end would tear it down with a crash.
            os._exit(0)


def wait() -> None:
    """Until Ctrl-C or SIGTERM."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass  # how one ends it
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def serve(options: Ui) -> Iterator[tuple[str, Controller]]:
    """Serve the page while the block runs; yields its address, and its controller.

    Raises:
        ValueError: a checkpoint, backend, host or port that cannot be.
    """
    if options.max_length < 1:
        raise ValueError(f"--max-length must be at least 1, got {options.max_length}")
    if not options.checkpoint:
        raise ValueError("name a run or a checkpoint with --checkpoint")
    _check_place(options.host, options.port)
    backend = options.backend or backends.default()
    backends.load(backend, "generation")
    controller = Controller(Catalogue(options.checkpoint), options.max_length, options.weights)
    _prepare_gradio()
    from tools.ui.page import build

    page = build(controller, backends.installed(), backend)
    if not is_loopback(options.host):
        warning = f"anyone who can reach {options.host} can use this page: there is no password"
        print(f"liquidnet: WARNING: {warning}", file=sys.stderr, flush=True)
    _launch(page, options.host, options.port)
    try:
        yield address(options.host, options.port), controller
    finally:
        controller.stop_all()
        # An open page would be waited for; what uvicorn says of cutting it off helps nobody.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        page.server.force_exit = True
        page.close(verbose=False)


def _prepare_gradio() -> None:
    """What Gradio reads from the environment as it is imported: above all, to ask nothing of any other machine."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # How long a browser can be gone before its text is stopped.
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "1")


def _launch(page: gr.Blocks, host: str, port: int) -> None:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from tools.ui.theme import CSS, theme

    # Gradio asks its own server whether it is there; a proxy would not know.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host, "localhost")))
    # A name that someone else's DNS points at this machine must not make their page ours.
    names = [host, "127.0.0.1", "localhost"] if is_loopback(host) and ":" not in host else ["*"]
    page.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, show_error=False,
        inbrowser=False, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
        mcp_server=False, num_workers=0, allowed_paths=[], max_file_size=1, state_session_capacity=100,
        theme=theme(), css=CSS,
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=names)]},
    )  # fmt: skip


def _check_place(host: str, port: int) -> None:
    listen(host, port).close()
