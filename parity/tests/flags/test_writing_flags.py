"""Every flag of `generate`, `chat`, `ui`, `serve` and `evaluate` reaches what it is for."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity.proof.problems.cases import perturbed_parameters
from parity.suite.support.flags import Row, Typed, require_seen, run
from parity.suite.support.ui import CONFIG
from spec.checkpoint.format import Checkpoint
from spec.checkpoint.quantization import rounded
from spec.runtime.parallel import ParallelContext
from spec.sampling import Sampling
from tools.cli import backends
from tools.generation import chat, generate
from tools.training import evaluate
from tools.ui import command as ui

HERE = backends.installed()
pytestmark = pytest.mark.skipif(not HERE, reason="needs a backend")
OTHER = HERE[-1] if HERE else "torch"
TRAINED = Checkpoint(CONFIG, perturbed_parameters(CONFIG, 3), state={"step": 7})

SAMPLED = [
    Row("--temperature", ("0.31",), "temperature", 0.31),
    Row("--top-k", ("17",), "top_k", 17),
    Row("--top-p", ("0.62",), "top_p", 0.62),
    Row("--seed", ("11",), "seed", 11),
    Row("--max-tokens", ("29",), "max_tokens", 29),
    Row("--checkpoint", ("other",), "checkpoint", Path("other")),
    Row("--backend", (OTHER,), "backend", OTHER),
    Row("--weights", ("int8",), "weights", "int8"),
]
ROWS = {
    "generate": [*SAMPLED, Row("--prompt", ("A fox ",), "text", ["A fox "])],
    "chat": [
        *SAMPLED,
        Row("--mode", ("chat",), "text", ["\nUser:  Hello \nAssistant:"]),
        Row("--mode", ("chat",), "stop", ("\nUser:",)),
        Row("--turn", ("<{}>\\n",), "text", ["< Hello >\n"]),
        Row("--stop", ("###", "\\n\\n"), "stop", ("###", "\n\n")),
        Row("--state", ("kept",), "state", Path("kept")),
    ],
    "ui": [
        Row("--checkpoint", ("one", "two"), "checkpoint", (Path("one"), Path("two"))),
        Row("--backend", (OTHER,), "backend", OTHER),
        Row("--weights", ("bfloat16",), "weights", "bfloat16"),
        Row("--host", ("127.0.0.5",), "address", ("127.0.0.5", 7860)),
        Row("--port", ("7871",), "address", ("127.0.0.1", 7871)),
        Row("--max-length", ("33",), "max_length", 33),
    ],
    "serve": [
        Row("--checkpoint", ("other",), "checkpoint", Path("other")),
        Row("--backend", (OTHER,), "backend", OTHER),
        Row("--weights", ("int8",), "weights", "int8"),
        Row("--host", ("127.0.0.5",), "address", ("127.0.0.5", 8000)),
        Row("--host", ("0.0.0.0",), "hosts", ()),
        Row("--port", ("8071",), "address", ("127.0.0.1", 8071)),
        Row("--api-key", ("secret",), "api_key", "secret"),
        Row("--model-name", ("tiny",), "name", "tiny"),
        Row("--slots", ("3",), "slots", 3),
        Row("--queue", ("5",), "queue", 5),
        Row("--no-batch-invariance", (), "batch_invariant", False),
        Row("--cache-mib", ("2",), "cache_bytes", 2 << 20),
        Row("--chat-template", ("chat.jinja",), "chat", "[]"),
        Row("--chat-stop", ("###", "\\n\\n"), "chat_stop", ("###", "\n\n")),
        Row("--max-prompt-tokens", ("41",), "max_prompt_tokens", 41),
        Row("--max-tokens", ("42",), "max_tokens", 42),
        Row("--max-states", ("0",), "keeps states", False),
        Row("--max-body-mib", ("3",), "max_body_bytes", 3 << 20),
        Row("--timeout", ("7.5",), "timeout", 7.5),
        Row("--grace", ("1.5",), "grace", 1.5),
    ],
    "evaluate": [
        Row("--checkpoint", ("other",), "checkpoint", Path("other")),
        Row("--data", ("others",), "data", Path("others")),
        Row("--backend", (OTHER,), "backend", OTHER),
        Row("--weights", ("int8",), "embedding", rounded(TRAINED.parameters, "int8")["embedding.weight"].sum()),
        Row("--batch-size", ("3",), "rows", 3),
        Row("--seq-len", ("5",), "length", 5),
        Row("--windows", ("6",), "windows", 6),
        Row("--stream", (), "carried", True),
    ],
}
GIVEN: dict[str, Typed] = {
    "ui": {"--checkpoint": ("run",)},
    "serve": {"--checkpoint": ("run",)},
    "evaluate": {"--checkpoint": ("run",), "--data": ("d",)},
}


class Recorder(dict[str, Any]):
    """A model and a session that write down what they are asked for."""

    is_empty = ended = False

    def open(self, path: Path, backend: str | None, weights: str) -> Recorder:
        self |= {"checkpoint": path, "backend": backend, "weights": weights, "text": [], "state": None}
        return self

    def session(self) -> Recorder:
        return self

    def append(self, text: str) -> None:
        self["text"].append(text)

    def load(self, path: Path, model: object) -> None:
        self["state"] = path

    def write(self, sampling: Sampling, max_tokens: int, stop: tuple[str, ...] = ()) -> list[str]:
        self.update(vars(sampling) | {"max_tokens": max_tokens, "stop": stop})
        return []


def written(command: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def seen(typed: Typed) -> Recorder:
        recorder = Recorder()
        monkeypatch.setattr(module, "open_model", recorder.open)
        # One line with a space before and after it, as it must arrive.
        monkeypatch.setattr("sys.stdin", io.StringIO(" Hello \n"))
        run(command, {"--checkpoint": ("run",), **typed})
        return recorder

    return seen


@pytest.mark.parametrize("row", ROWS["generate"], ids=lambda row: row.flag)
def test_generate(row, monkeypatch):
    require_seen(row, {}, written("generate", generate, monkeypatch))


@pytest.mark.parametrize("row", ROWS["chat"], ids=lambda row: row.flag)
def test_chat(row, monkeypatch):
    require_seen(row, {}, written("chat", chat, monkeypatch))


@pytest.mark.parametrize("row", ROWS["ui"], ids=lambda row: row.flag)
def test_ui(row, monkeypatch):
    pytest.importorskip("starlette", reason="the page is Gradio's")
    found: dict[str, Any] = {}

    def build(controller: Any, choices: object, backend: str) -> Any:
        found.update(backend=backend, max_length=controller.max_length, weights=controller._models._weights)
        return SimpleNamespace(launch=launch, close=lambda verbose: None, server=SimpleNamespace())

    def launch(server_name: str, server_port: int, **_: object) -> None:
        found["address"] = server_name, server_port

    def seen(typed: Typed) -> dict[str, Any]:
        run("ui", typed)
        return found

    # In place of what imports Gradio, which takes seconds.
    monkeypatch.setitem(sys.modules, "tools.ui.page", SimpleNamespace(build=build))
    monkeypatch.setitem(sys.modules, "tools.ui.theme", SimpleNamespace(CSS="", theme=lambda: None))
    monkeypatch.setattr(ui, "wait", lambda: None)
    monkeypatch.setattr(ui, "Catalogue", lambda roots: found.update(checkpoint=roots))
    monkeypatch.setattr(ui, "_check_place", lambda host, port: found.update(checked=(host, port)))
    require_seen(row, GIVEN["ui"], seen)
    assert found["checked"] == found["address"]


@pytest.mark.parametrize("row", ROWS["serve"], ids=lambda row: row.flag)
def test_serve(row, monkeypatch, tmp_path):
    for package in ("fastapi", "uvicorn", "jinja2", "prometheus_client"):
        pytest.importorskip(package, reason="the server is made of them")
    from tools.generation import session
    from tools.serve import app, command, middleware, server
    from tools.serve.errors import ApiError

    monkeypatch.chdir(tmp_path)
    Path("chat.jinja").write_text("{{ messages }}")
    found: dict[str, Any] = {}

    def open_model(path: Path, backend: str | None, weights: str) -> Any:
        found.update(checkpoint=path, backend=backend, weights=weights)
        return SimpleNamespace(identity="")

    def engine(model: object, slots: int, queue: int, cache_bytes: int, batch_invariant: bool) -> None:
        found.update(slots=slots, queue=queue, cache_bytes=cache_bytes, batch_invariant=batch_invariant)

    def listen(host: str, port: int) -> Any:
        found["address"] = host, port
        return SimpleNamespace(close=lambda: None)

    def create_app(service: Any, api_key: str, hosts: tuple[str, ...]) -> None:
        found.update(vars(service.limits), api_key=api_key, hosts=hosts)
        found.update(name=service.name, chat_stop=service.chat_stop)
        found["chat"] = None if service.template is None else "".join(service.template.render([]))
        try:
            service.states.reserve()
            found["keeps states"] = True
        except ApiError:
            found["keeps states"] = False

    def seen(typed: Typed) -> dict[str, Any]:
        run("serve", typed)
        return dict(found)

    monkeypatch.setattr("tools.generation.engine.Engine", engine)
    monkeypatch.setattr(session, "open_model", open_model)
    monkeypatch.setattr(command, "listen", listen)
    monkeypatch.setattr(command, "warm_up", lambda engine: None)
    monkeypatch.setattr(app, "create_app", create_app)
    monkeypatch.setattr(middleware, "configure_log", lambda: None)
    monkeypatch.setattr(server, "HttpServer", lambda *_: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(command, "serve_until_ended", lambda service, http, grace, ready: found.update(grace=grace))
    require_seen(row, GIVEN["serve"], seen)


def test_the_key_of_the_environment(monkeypatch):
    from tools.serve.command import Serve

    monkeypatch.setenv("LIQUIDNET_API_KEY", "of-the-environment")
    assert Serve(Path("run"))._key() == "of-the-environment"
    assert Serve(Path("run"), api_key="of-the-flag")._key() == "of-the-flag"
    monkeypatch.delenv("LIQUIDNET_API_KEY")
    assert Serve(Path("run"))._key() == ""


class Evaluated:
    """An engine that writes down what it is given."""

    context = ParallelContext()

    def __init__(self, found: dict[str, Any], backend: str):
        self.found, self.backend = found, backend

    def __call__(self, config: object, training: object) -> Evaluated:
        self.found |= {"backend": self.backend, "windows": 0, "carried": False}
        return self

    def load(self, parameters: dict[str, np.ndarray], moments: object, step: int) -> None:
        self.found["embedding"] = parameters["embedding.weight"].sum()

    def evaluate(self, batch: Any, states: object) -> tuple[float, object]:
        rows, length = batch.tokens.shape
        first = self.found["windows"] == 0
        self.found |= {"rows": rows, "length": length} if first else {"carried": states is not None}
        self.found["windows"] += rows
        return 1.0, states or "states"


@pytest.mark.parametrize("row", ROWS["evaluate"], ids=lambda row: row.flag)
def test_evaluate(row, monkeypatch, small_data):
    found: dict[str, Any] = {}

    def open_data(path: Path) -> Any:
        found["data"] = path
        return opened(small_data)

    def read(path: Path) -> Checkpoint:
        found["checkpoint"] = path
        return TRAINED

    def seen(typed: Typed) -> dict[str, Any]:
        run("evaluate", typed)
        return dict(found)

    opened = evaluate.open_data
    monkeypatch.setattr(evaluate, "open_data", open_data)
    monkeypatch.setattr("tools.convert.read", read)
    for name in HERE:
        monkeypatch.setattr(backends.load(name, "training.engine"), "Engine", Evaluated(found, name))
    few = {} if row.flag == "--windows" else {"--windows": ("40",)}
    require_seen(row, {**GIVEN["evaluate"], **few}, seen)
