"""Files damaged at random are read or refused; and the fuzzer that says so finds what it is there for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

from parity.suite.robustness import damaged_files
from parity.suite.robustness.damaged_files import READ, REFUSED, Cases, DamagedFiles, Kind
from parity.suite.support.fixtures import ROOT
from tools import tokenizer as tokenizer_module
from tools.tokenizer import build_tokenizer, load_tokenizer

LIGHT = ("neutral", "data", "run", "tokenizer", "gpt2", "jsonl", "text", "state", "bench")


def test_some_cases_of_every_light_kind(tmp_path: Path):
    cases = Cases(0, tmp_path, LIGHT)
    found = [cases.run(number) for number in range(100)]
    assert not [(number, case) for number, case in enumerate(found) if case[2] not in (READ, REFUSED)]
    assert {name for name, _, _ in found} == {*LIGHT}
    assert sum(outcome == REFUSED for _, _, outcome in found) > 40
    # A case is a function of seed and number, in any order.
    assert cases.run(17) == found[17]


@pytest.mark.parametrize(
    ("index", "message"),
    [(2**31, "one of its 257 tokens has the id 2,147,483,648;"), (98, "'a' and 'b' have the same id, 98;")],
)
def test_a_tokenizer_whose_ids_the_library_cannot_keep_is_refused(tmp_path: Path, index: int, message: str):
    """It lists them all, up to the largest, and of two tokens with one id it writes one."""
    content = json.loads(build_tokenizer("byte").to_json())
    content["model"]["vocab"]["a"] = index
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: {message}"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "change",
    [
        {"merges": ["a b", ["ab", "c"]], "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}},
        {"merges": [["a", "b"]], "vocab": {"a": 0, "b": 1, "ab": 2}, "continuing_subword_prefix": "##float"},
    ],
    ids=["longer than all", "shorter than the prefix"],
)
def test_a_merge_that_leads_nowhere_is_refused_before_the_library_panics(tmp_path: Path, change: dict[str, object]):
    content = json.loads(build_tokenizer("byte").to_json())
    content["model"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json: no token is what its merge of 'a.*' and '[bc]' leads to"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_merges_may_begin_as_their_file_does(tmp_path: Path):
    content = json.loads(build_tokenizer("bpe:300", ["a b c"] * 9).to_json())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    plain = load_tokenizer(tmp_path / "tokenizer.json").encode("a b c").tolist()
    content["model"]["merges"] = ["#version: 0.2", *map(" ".join, content["model"]["merges"])]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("a b c").tolist() == plain


def test_a_panic_of_the_library_is_a_refusal_and_ctrl_c_is_none(monkeypatch: pytest.MonkeyPatch):
    panic = type("PanicException", (BaseException,), {})
    for raised, told in ((panic("range end index 8\nmore"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(content: str, raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr(tokenizer_module.tokenizers, "Tokenizer", SimpleNamespace(from_str=fail))
        with pytest.raises(told) as found:
            tokenizer_module.parse_tokenizer("{}", "a.json")
        assert told is KeyboardInterrupt or str(found.value).startswith("a.json: not a tokenizer.json of the tok")
        assert "\n" not in str(found.value)


def _lines(path: Path) -> None:
    raise ValueError("two\nlines")


def _lookup(path: Path) -> None:
    raise KeyError(path)


def _execute(path: Path) -> None:
    (path.parent / damaged_files.MARKER).mkdir()


def _memory(path: Path) -> None:
    np.ones(2**31)


def _time(path: Path) -> None:
    time.sleep(60)


def _process(path: Path) -> None:
    os._exit(3)


WRONG = {
    "_lines": "several lines", "_lookup": "KeyError", "_execute": "executed", "_memory": "MemoryError",
    "_time": "still busy after 0.5 seconds", "_process": "the process ended",
}  # fmt: skip


def test_what_is_wrong_is_found_and_can_be_repeated():
    """In a process of its own, which may be forked: no library has started threads in it."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, cwd=ROOT, check=False)
    parts = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    assert set(parts) == set(WRONG), done.stderr
    for name, told in WRONG.items():
        assert "FOUND, case 0: " in parts[name] and told in parts[name], (name, parts[name])
        assert "python -m parity.suite.robustness.damaged_files --seed 3 --case 0\n" in parts[name]
        assert parts[name].endswith("exit code 1\n")


def find(name: str) -> None:
    """Print what the fuzzer says of the reader of this name."""

    class Forked:
        """The child has this reader, and no libraries to import first."""

        Pipe = staticmethod(damaged_files.multiprocessing.Pipe)
        Process = damaged_files.multiprocessing.get_context("fork").Process

    entered: list[Path] = []

    def reader(path: Path) -> None:
        # The whole sample is read once before.
        if entered:
            globals()[name](path)
        entered.append(path)

    kinds = {"text": Kind("a.txt", lambda path: path.write_text("a"), reader)}
    seconds = 0.5 if name == "_time" else 60.0
    print(f"== {name}")
    with (
        patch.object(damaged_files, "kinds", lambda: kinds),
        patch.object(damaged_files.multiprocessing, "get_context", lambda _: Forked),
    ):
        print("exit code", DamagedFiles(minutes=1, seed=3, megabytes=512, case_seconds=seconds).run(), flush=True)


if __name__ == "__main__":
    for name in WRONG:
        find(name)
