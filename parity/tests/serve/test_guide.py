"""What docs/guide/serving.md shows works as it stands there."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from parity.proof.environment import ROOT
from parity.suite.support.doc_checks import blocks, commands
from parity.suite.support.serve import serving
from parity.suite.support.ui import CONFIG, wandering
from spec.checkpoint.format import write_checkpoint
from tools.cli import backends
from tools.generation.engine import Engine
from tools.generation.session import open_model, parse_state
from tools.serve.chat_template import ChatTemplate

GUIDE = (ROOT / "docs/guide/serving.md").read_text("utf-8")
PLACE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("guide") / "checkpoint"
    write_checkpoint(path, wandering())
    with serving(Engine(open_model(path, backends.default()), slots=2)) as running:
        yield running


def test_its_python_runs(served, capsys):
    pytest.importorskip("openai", reason="pip install openai")
    names: dict[str, object] = {}
    shown = blocks(GUIDE, "python serve")
    assert len(shown) == 2
    for block in shown:
        exec(block.replace(PLACE, f"http://127.0.0.1:{served.port}"), names)
    names["client"].close()
    assert len(served.service.states.all()) >= 2 and names["second"].state in capsys.readouterr().out


def test_its_curl_runs(served, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    state = served.post("/v1/states", prompt="Once " * 20).json
    (tmp_path / "state.safetensors").write_bytes(served.ask("GET", f"/v1/states/{state['id']}").content)
    lines = commands(GUIDE, "console curl")
    assert len(lines) == 5
    answers = []
    for line in lines:
        line = line.replace(PLACE, f"http://127.0.0.1:{served.port}")
        run = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        answers.append(run.stdout)
    assert json.loads(answers[0])["usage"]["completion_tokens"] == 40
    assert answers[1].endswith("data: [DONE]\n\n")
    assert json.loads(answers[2])["tokens"] == 16 and json.loads(answers[3])["id"] == "mine"
    kept = parse_state((tmp_path / "kept.safetensors").read_bytes(), served.service.model)
    assert kept.tokens == 100 and kept.states is not None and kept.states.shape == (CONFIG.n_layers, 1, CONFIG.d_model)


def test_its_template_is_one():
    (template,) = blocks(GUIDE, "jinja")
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    turns.append({"role": "user", "content": "{{ 1 }}"})
    pieces = [*ChatTemplate(template).render(turns, True, False)]
    assert "".join(piece or "" for piece in pieces) == "User: Hello\nAssistant: Hi\nUser: {{ 1 }}\nAssistant:"
