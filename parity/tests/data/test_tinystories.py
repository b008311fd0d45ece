"""TinyStories as published, and the recipe that trains on it: its flags exist, it runs, it goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from parity.proof.environment import ROOT
from parity.suite.support.fixtures import SHARED
from spec.data import open_data
from tools.data import datasets as prepare_datasets
from tools.data.hub import HubFile
from tools.data.pieces import split_documents
from tools.data.prepare import Prepare
from tools.generation.generate import Generate
from tools.tokenizer import END_OF_TEXT
from tools.training.evaluate import Evaluate
from tools.training.train import Train

RECIPE = ROOT / "recipes/tinystories_small.sh"
SAMPLE = SHARED / "tinystories_sample.txt"
TINY = ("--d-model", "16", "--d-ff", "16", "--n-layers", "1", "--batch-size", "2", "--seq-len", "16")
SHORT = (*TINY, "--total-tokens", "64", "--dtype", "float32", "--eval-windows", "4")


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample of TinyStories in {SHARED}")
def test_its_stories_are_separated():
    text = SAMPLE.read_text()
    found = [piece for piece, _ in split_documents([text[start : start + 100] for start in range(0, len(text), 100)])]
    assert text.endswith(f"\n{END_OF_TEXT}\n") and len(found) == text.count(END_OF_TEXT)
    # As the first story begins: with a line break of its own, which no marker is before.
    assert found[0].startswith("\nOnce upon a time there was a little boy named Ben.")
    assert "".join(found).replace("\n", "") == text.replace(END_OF_TEXT, "").replace("\n", "")
    for story in found[1:]:
        assert story.strip("\n") == story and END_OF_TEXT not in story


def test_the_published_split_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[HubFile] = []

    def download(file: HubFile, otherwise: str) -> Path:
        asked.append(file)
        path = tmp_path / file.filename
        path.write_text(f"from {file.filename}\n{END_OF_TEXT}\nand on")
        return path

    monkeypatch.setattr(prepare_datasets, "download", download)
    Prepare(out=tmp_path / "data", dataset="tinystories").run()
    meta = open_data(tmp_path / "data").meta
    place = "hf://datasets/roneneldan/TinyStories@f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
    assert meta["source"] == [f"{place}/TinyStories-train.txt"]
    assert meta["val_source"] == [f"{place}/TinyStories-valid.txt"]
    assert bytes((tmp_path / "data/val.bin").read_bytes()[:44:2]) == b"from TinyStories-valid"
    assert {file.filename: file.size for file in asked} == {
        "TinyStories-train.txt": 1_924_281_556,
        "TinyStories-valid.txt": 19_447_282,
    }


def script(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def recipe(tmp_path: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe with the commands of tmp_path/bin."""
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)} | more
    command = ["bash", str(RECIPE), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("machine", ["gpu", "gpus", "tpu"])
def test_its_flags_exist_and_say_what_was_published(tmp_path: Path, machine: str):
    said = tmp_path / "said"
    for name in ("liquidnet", "torchrun"):
        script(tmp_path / "bin" / name, f'{{ printf "%s\\t" {name} "$@"; echo; }} >> "{said}"')
    result = recipe(tmp_path, machine, tmp_path / "out", "--stop-at", "7")
    assert result.returncode == 0, result.stderr
    prepare, train, evaluate, generate = [line.split("\t")[:-1] for line in said.read_text().splitlines()]
    asked = tyro.cli(Prepare, args=prepare[2:])
    assert (asked.dataset, asked.tokenizer, asked.max_tokens) == ("tinystories", "gpt2", 50e6)
    if machine == "gpus":
        start = ["torchrun", "--standalone", "--nproc-per-node", "8", "-m", "torch_impl.train"]
        assert train[: len(start)] == start
        train = ["liquidnet", "train", "torch", *train[len(start) :]]
    flags = tyro.cli(Train, args=train[2:], config=(tyro.conf.FlagCreatePairsOff,))
    assert flags.backend == ("jax" if machine == "tpu" else "torch")
    assert flags.mesh == ("data=8" if machine == "tpu" else None)
    assert (flags.preset, flags.batch_size, flags.seq_len, flags.total_tokens) == ("small", 48, 512, 100e6)
    assert (flags.lr, flags.grad_clip, flags.dtype, flags.resume, flags.stop_at) == (1e-4, 0.5, "bfloat16", True, 7)
    assert flags.data == asked.out == tmp_path / "out/data" and flags.out == tmp_path / "out/run"
    assert tyro.cli(Evaluate, args=evaluate[2:]).checkpoint == flags.out
    assert tyro.cli(Generate, args=generate[2:]).backend == flags.backend
    figures = result.stdout.split("Loss:")[0].splitlines()[1:]
    assert figures
    for figure in figures:
        assert any(word in figure for word in ("measured", "modelled", "reported")), figure


def test_it_runs_and_goes_on_where_it_stopped(tmp_path: Path):
    script(tmp_path / "bin/liquidnet", f'test "$1" = train || exit 0; exec {sys.executable} -m tools.cli "$@"')
    check_two_segments(tmp_path, "gpu", "gpu")


@pytest.mark.long
def test_it_goes_on_on_another_machine(tmp_path: Path):
    script(tmp_path / "bin/liquidnet", f'exec {sys.executable} -m tools.cli "$@"')
    last = check_two_segments(tmp_path, "gpu", "tpu")
    assert '{"step": 2, "val_loss": ' in last and "\nOnce upon a time" in last


def check_two_segments(tmp_path: Path, first: str, second: str) -> str:
    Prepare(out=tmp_path / "data", stories=40).run()
    more = {"DATA": str(tmp_path / "data"), "MESH": "data=1"}
    segments = [recipe(tmp_path, first, tmp_path / "out", *SHORT, "--stop-at", "1", **more)]
    segments.append(recipe(tmp_path, second, tmp_path / "out", *SHORT, **more))
    for segment in segments:
        assert segment.returncode == 0, segment.stderr
        assert "liquidnet prepare" not in segment.stdout
    lines = [json.loads(line) for line in (tmp_path / "out/run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert "steps 1 to 2 of 2" in segments[1].stderr
    return segments[1].stdout


def test_it_stops_where_something_fails(tmp_path: Path):
    script(tmp_path / "bin/liquidnet", 'echo "$1" >> "$0.said"; exit 2')
    assert recipe(tmp_path, "gpu", tmp_path / "out").returncode == 2
    assert (tmp_path / "bin/liquidnet.said").read_text() == "prepare\n"
    wrong = recipe(tmp_path, "cpu")
    assert wrong.returncode == 2 and "choose gpu, gpus or tpu, not cpu" in wrong.stderr
    assert not wrong.stdout
