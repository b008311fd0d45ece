"""GPT-2's tokenizer from local files and from a stand-in of the hub, with right and wrong bytes."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools import gpt2
from tools.byte_level import END_OF_TEXT
from tools.tokenizer import build_tokenizer

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("LIQUIDNET_SHARED_DATA", ROOT.parent / "shared/data"))
GPT2_FILES = (SHARED / "gpt2/vocab.json", SHARED / "gpt2/merges.txt")
needs_gpt2 = pytest.mark.skipif(not GPT2_FILES[0].exists(), reason=f"no GPT-2 files in {SHARED / 'gpt2'}")


@needs_gpt2
def test_gpt2_known_ids(tmp_path: Path):
    tokenizer = build_tokenizer("gpt2", files=GPT2_FILES)
    assert (tokenizer.vocab_size, tokenizer.end_of_text_id) == (50257, 50256)
    assert tokenizer.encode("Hello, world! Hello  world").tolist() == [15496, 11, 995, 0, 18435, 220, 995]
    merges = tmp_path / "merges.txt"
    merges.write_bytes(_with_header(GPT2_FILES[1].read_bytes()))
    assert build_tokenizer("gpt2", files=(GPT2_FILES[0], merges)).to_json() == tokenizer.to_json()


def _with_header(merges: bytes) -> bytes:
    return merges if merges.startswith(b"#version") else b"#version: 0.2\n" + merges


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as one file's download needs."""

    files: dict[str, bytes]

    def _answer(self, body: bool) -> None:
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        content = content or b""
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", gpt2.REVISION)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()
    thread.join()


def _build_from_hub(endpoint: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since huggingface_hub reads its environment when it is imported."""
    program = "from tools.tokenizer import build_tokenizer as build; print(build('gpt2').encode('Hello, world!'))"
    proxies = {name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("HF_")}
    environment = {name: value for name, value in os.environ.items() if name not in proxies}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=60, check=False)


@needs_gpt2
def test_gpt2_from_the_hub(hub: tuple[str, dict[str, bytes]], tmp_path: Path):
    endpoint, files = hub
    base = f"/{gpt2.REPOSITORY}/resolve/{gpt2.REVISION}"
    files[f"{base}/vocab.json"] = GPT2_FILES[0].read_bytes()
    files[f"{base}/merges.txt"] = _with_header(GPT2_FILES[1].read_bytes())
    result = _build_from_hub(endpoint, tmp_path / "good")
    assert result.stdout.split() == ["[15496", "11", "995", "0]"], result.stderr
    files.clear()
    cached = _build_from_hub(endpoint, tmp_path / "good", HF_HUB_OFFLINE="1")
    assert cached.stdout == result.stdout, cached.stderr


def test_gpt2_from_a_hub_with_other_bytes(hub: tuple[str, dict[str, bytes]], tmp_path: Path):
    endpoint, files = hub
    files[f"/{gpt2.REPOSITORY}/resolve/{gpt2.REVISION}/vocab.json"] = b'{"a": 0}'
    result = _build_from_hub(endpoint, tmp_path)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ValueError")
    assert hashlib.sha256(b'{"a": 0}').hexdigest() in message
    assert gpt2.SHA256["vocab.json"] in message


def test_gpt2_offline_names_the_way_out(tmp_path: Path):
    result = _build_from_hub("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("OSError: cannot download vocab.json")
    assert "--tokenizer-files" in message


@pytest.fixture
def gpt2_pair(tmp_path: Path) -> tuple[Path, Path]:
    """The smallest files of GPT-2's form: 256 bytes, one merge, end of text."""
    symbols = list(json.loads(build_tokenizer("byte").to_json())["model"]["vocab"])
    paths = tmp_path / "vocab.json", tmp_path / "merges.txt"
    paths[0].write_text(json.dumps({token: index for index, token in enumerate([*symbols, "ab", END_OF_TEXT])}))
    paths[1].write_text("#version: 0.2\na b\n")
    return paths


def test_small_gpt2_files(gpt2_pair: tuple[Path, Path]):
    tokenizer = build_tokenizer("gpt2", files=gpt2_pair)
    assert tokenizer.encode("abc").tolist() == [256, ord("c")]
    assert tokenizer.end_of_text_id == 257
    gpt2_pair[1].write_bytes(b"a b\r\n")
    assert build_tokenizer("gpt2", files=gpt2_pair).to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        (0, "{", "not JSON"),
        (0, "[]", "not a vocabulary"),
        (0, '{"a": 5}', "not a vocabulary"),
        (0, '{"a": "0"}', "not a vocabulary"),
        (0, '{"a": 0}', "is missing"),
        (1, "a b\nx y\n", "line 2 is no merge"),
        (1, "ab\n", "line 1 is no merge"),
    ],
)
def test_damaged_gpt2_files(gpt2_pair: tuple[Path, Path], which: int, content: str, message: str):
    gpt2_pair[which].write_text(content)
    with pytest.raises(ValueError, match=rf"{gpt2_pair[which].name}: .*{message}"):
        build_tokenizer("gpt2", files=gpt2_pair)
