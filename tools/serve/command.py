"""A model behind HTTP, as OpenAI's API has it; a conversation's whole memory is a state of some kilobytes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spec.checkpoint.files import require_file
from spec.checkpoint.quantization import Weights
from spec.config import require_integer
from tools.cli import backends, signals
from tools.cli.listening import address, is_loopback, listen
from tools.generation.request import Event, Finished, GenerationRequest
from tools.generation.session import PROMPT_PIECE

if TYPE_CHECKING:
    from tools.serve.chat_template import ChatTemplate
    from tools.serve.server import HttpServer
    from tools.serve.service import GenerationEngine, Limits, Service

KEY_VARIABLE = "LIQUIDNET_API_KEY"


@dataclass(frozen=True)
class Serve:
    """Serve a model to programs: completions, chats and states over HTTP, as OpenAI's clients ask for them.

    Many texts are written at once, each as if it were alone. Only this machine can reach it, unless --host says
    otherwise. A line of JSON on stderr tells of each request. Ctrl-C or SIGTERM ends it, once texts that are being
    written are complete.
    """

    checkpoint: Path
    """A run (its newest checkpoint), a checkpoint directory, a .pt or a .msgpack file."""
    backend: backends.Backend | None = None
    """Backend to compute with; by default the first one installed."""
    weights: Weights = "float32"
    """Round the matrices to bfloat16, or to int8 with a scale a row, and write with these: less to read a token."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own lets others in: give them an API key."""
    port: int = 8000
    """Port to listen on."""
    api_key: str = ""
    """What clients must send. Lists of processes show it here; LIQUIDNET_API_KEY in the environment is safer."""
    model_name: str = ""
    """What clients call the model; by default as the run's directory."""
    slots: int = 16
    """Texts that are written at the same time."""
    queue: int = 64
    """Texts that may wait for a slot; more are refused with status 429."""
    no_batch_invariance: bool = False
    """Let texts share steps on a GPU and in JAX too: faster, but beside others a near-tie may be drawn otherwise."""
    cache_mib: int = 64
    """MiB of states that are kept of what prompts begin with; 0 keeps none."""
    chat_template: Path | None = None
    """Jinja2 file that makes text of messages, as chat_template.jinja of transformers; chats need one."""
    chat_stop: tuple[str, ...] = ()
    """Strings that end a chat's reply and are no part of it, \\n a line break; a request may name others."""
    max_prompt_tokens: int = 131072
    """Tokens that a prompt may have."""
    max_tokens: int = 4096
    """Tokens that a request may ask for; a chat gets as many where it does not say."""
    max_states: int = 1000
    """States that clients may keep here at once."""
    max_body_mib: int = 8
    """MiB that the body of a request may have."""
    timeout: float = 600.0
    """Seconds that a request may take, waiting for a slot included."""
    grace: float = 10.0
    """Seconds for which texts go on once the server is told to end; a second Ctrl-C ends it at once."""

    def run(self) -> None:
        self._check()
        # Before a model is loaded for nothing.
        from tools.generation.engine import Engine
        from tools.generation.session import open_model, pack_state, parse_state
        from tools.serve.app import create_app
        from tools.serve.middleware import configure_log
        from tools.serve.server import HttpServer
        from tools.serve.service import Service
        from tools.serve.states import StateStore

        key, template = self._key(), self._template()
        with closing(listen(self.host, self.port)) as listener:
            model = open_model(self.checkpoint, self.backend, self.weights)
            _ = model.identity  # of all weights, so that the first request need not wait for it
            engine = Engine(model, self.slots, self.queue, self.cache_mib << 20, not self.no_batch_invariance)
            warm_up(engine)
            # JSON has no bytes that are no text.
            name = (self.model_name or _run_name(self.checkpoint)).encode(errors="replace").decode()
            pack, parse = partial(pack_state, model=model), partial(parse_state, model=model)
            states = StateStore(self.max_states, name, pack, parse)
            service = Service(model, engine, states, name, self._limits(), template, self._stops())
            configure_log()
            server = HttpServer(create_app(service, key, self._hosts()), listener)
            server.start()
            if not is_loopback(self.host) and not key:
                warning = f"anyone who can reach {self.host} can use this model: there is no --api-key"
                print(f"liquidnet: WARNING: {warning}", file=sys.stderr, flush=True)
            ready = f"LiquidNet is at {address(self.host, self.port)} (Ctrl-C ends it)"
            serve_until_ended(service, server, self.grace, ready)

    def _check(self) -> None:
        at_least = {"slots": 1, "queue": 1, "cache_mib": 0, "max_prompt_tokens": 1, "max_tokens": 1, "max_states": 0}
        for name, least in {**at_least, "max_body_mib": 1}.items():
            require_integer(f"--{name.replace('_', '-')}", getattr(self, name), least)
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"--timeout must be a number of seconds above 0, got {self.timeout}")
        if not 0 <= self.grace < float("inf"):
            raise ValueError(f"--grace must be a number of seconds, 0 or more, got {self.grace}")

    def _key(self) -> str:
        key = self.api_key or os.environ.get(KEY_VARIABLE, "")
        # Others cannot be sent in a header, or not by every client.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError(f"--api-key and {KEY_VARIABLE} must be letters, digits and signs of ASCII, without spaces")
        return key

    def _template(self) -> ChatTemplate | None:
        from tools.serve.chat_template import ChatTemplate

        if self.chat_template is None:
            return None
        require_file(self.chat_template)
        try:
            return ChatTemplate(self.chat_template.read_text(encoding="utf-8"))
        except ValueError as error:  # a UnicodeDecodeError is one
            raise ValueError(f"--chat-template {self.chat_template} cannot be used: {error}") from error

    def _stops(self) -> tuple[str, ...]:
        # A shell hands over backslash and n where a line break was meant.
        return tuple(text.replace("\\n", "\n") for text in self.chat_stop if text)

    def _limits(self) -> Limits:
        from tools.serve.service import Limits

        return Limits(
            max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=self.max_tokens,
            max_body_bytes=self.max_body_mib << 20,
            timeout=self.timeout,
        )

    def _hosts(self) -> tuple[str, ...]:
        # A name that someone else's DNS points at this machine must not make their page ours.
        names = (self.host.lower(), f"[{self.host}]", "127.0.0.1", "localhost", "[::1]")
        return names if is_loopback(self.host) else ()


def warm_up(engine: GenerationEngine) -> None:
    """Have compiled what a prompt and a token need, before anybody waits for it."""
    ended = threading.Event()

    def deliver(event: Event) -> None:
        if isinstance(event, Finished):
            ended.set()

    engine.submit(GenerationRequest((0,) * (PROMPT_PIECE + 1), max_tokens=2), deliver)
    ended.wait()


def _run_name(checkpoint: Path) -> str:
    """The name of the run's directory, for a checkpoint inside of one too."""
    path = checkpoint.resolve()
    path = path.parent.parent if path.parent.name == "checkpoints" else path
    return path.stem if path.is_file() else path.name


def serve_until_ended(service: Service, server: HttpServer, grace: float, ready: str) -> None:
    """Say that it is ready, and answer until a signal comes; then write texts to their end for `grace` seconds, and end
    the rest.

    Raises:
        KeyboardInterrupt: a second signal came.
    """
    with _terminated_as_interrupted():
        try:
            print(ready, flush=True)
            server.wait()
        except KeyboardInterrupt:
            service.closing = True
            service.engine.close(grace)
            server.stop()
            return
    raise RuntimeError("the HTTP server has ended by itself")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does; signals in quick succession count once."""
    last = -signals.DEBOUNCE_SECONDS

    def end(*_: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= signals.DEBOUNCE_SECONDS:
            raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
