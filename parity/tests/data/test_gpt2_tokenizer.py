"""GPT-2's tokenizer from local files and from a stand-in of the hub, with right and wrong bytes."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity.suite.support import fake_hub as stand_in
from parity.suite.support.fake_hub import Hub
from parity.suite.support.fixtures import SHARED
from tools.tokenizer import END_OF_TEXT, build_tokenizer, gpt2

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


@pytest.fixture
def hub() -> Iterator[Hub]:
    with stand_in.serve() as hub:
        yield hub


def _build_from_hub(endpoint: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    program = "from tools.tokenizer import build_tokenizer as build; print(build('gpt2').encode('Hello, world!'))"
    environment = stand_in.environment(endpoint, home, **more)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_gpt2
def test_gpt2_from_the_hub(hub: Hub, tmp_path: Path):
    vocabulary, merges = gpt2.FILES
    hub.put(vocabulary, GPT2_FILES[0].read_bytes())
    hub.put(merges, _with_header(GPT2_FILES[1].read_bytes()))
    result = _build_from_hub(hub.endpoint, tmp_path / "good")
    assert result.stdout.split() == ["[15496", "11", "995", "0]"], result.stderr
    assert result.stderr.splitlines() == [
        "downloading vocab.json, 1,042,301 bytes ...",
        "downloading merges.txt, 456,318 bytes ...",
    ]
    hub.contents.clear()
    cached = _build_from_hub(hub.endpoint, tmp_path / "good", HF_HUB_OFFLINE="1")
    assert cached.stdout == result.stdout, cached.stderr


def test_gpt2_from_a_hub_with_other_bytes(hub: Hub, tmp_path: Path):
    other = b" " * gpt2.FILES[0].size
    hub.put(gpt2.FILES[0], other)
    result = _build_from_hub(hub.endpoint, tmp_path)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ValueError")
    assert hashlib.sha256(other).hexdigest() in message
    assert gpt2.FILES[0].sha256 in message


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
        (0, '{"a":' * 100_000, "not JSON"),
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
