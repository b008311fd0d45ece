"""The two announcements: their quick starts run as published but for the import line; so do their training flags."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from parity.proof import adapters
from parity.proof.environment import ROOT
from tools.cli.main import main, parse
from tools.training.train import Train

SEEDS = Path(os.environ.get("LIQUIDNET_SEEDS", ROOT.parent / "shared" / "seeds"))
IMPORTS = {"liquidnet": "LiquidNet, LiquidNetConfig", "liquid_state_space": "LiquidSSMLanguageModel"}
HERE = [name for name in adapters.FRAMEWORKS if not adapters.missing(name)]


def announcement(package: str) -> str:
    """The document that imports from `package`."""
    found = [text for path in sorted(SEEDS.glob("*.txt")) if f"from {package} import" in (text := path.read_text())]
    if not found:
        pytest.skip(f"the announcements are not in {SEEDS}")
    return found[0]


def snippet(package: str, heading: str) -> str:
    """Its Python quick start: from the import line to the next heading."""
    text = announcement(package)
    start = text.index(f"from {package} import")
    return text[start : text.index(heading, start)]


def runs(code: str, package: str, backend: str, given: dict) -> dict:
    """Execute published code with one line changed."""
    line = f"from {package} import {IMPORTS[package]}"
    assert code.count("import ") == 1 and code.startswith(line + "\n")
    names = dict(given)
    exec(code.replace(line, f"from {backend}_impl import {IMPORTS[package]}", 1), names)
    return names


def tokens(backend: str, shape: tuple[int, int], seed: int = 0):
    """Token ids as a user of the framework has them."""
    if backend == "torch":
        import torch

        return torch.randint(0, 32000, shape, generator=torch.Generator().manual_seed(seed))
    import jax

    return jax.random.randint(jax.random.key(seed), shape, 0, 32000)


@pytest.mark.parametrize("backend", HERE)
def test_liquidnets_quick_start(backend, capsys):
    code = snippet("liquidnet", "Architecture Details")
    found = runs(code, "liquidnet", backend, {"input_ids": tokens(backend, (2, 20)), "token": tokens(backend, (2, 1))})
    assert capsys.readouterr().out == "Parameters: 29.9M\n"
    assert tuple(found["logits"].shape) == (2, 1, 50257) and tuple(found["states"].shape) == (6, 2, 384)


class Random:
    """What the published code asks of torch where the tokens are JAX's."""

    randint = staticmethod(lambda low, high, shape: tokens("jax", shape))


@pytest.mark.parametrize("backend", HERE)
def test_the_liquid_ssms_quick_start(backend):
    code = snippet("liquid_state_space", "Current Status")
    given = {"batch_size": 2, "seq_len": 24, "target_ids": tokens(backend, (2, 24), seed=1), "torch": Random}
    if backend == "torch":
        import torch

        given["torch"] = torch
    found = runs(code, "liquid_state_space", backend, given)
    outputs, generated = found["outputs"], found["generated"]
    assert tuple(outputs.logits.shape) == (2, 24, 32000) and 9.0 < outputs.loss < 12.0
    assert tuple(generated.shape) == (1, 100)
    assert (generated[:, :24] == found["input_ids"][:1]).all()


def published_flags() -> list[list[str]]:
    """The flags of each `python train_local.py` in the announcement."""
    commands = re.findall(r"^python train_local\.py ((?:.*\\\n)*.*)$", announcement("liquidnet"), re.MULTILINE)
    return [shlex.split(command.replace("\\\n", " ")) for command in commands]


@pytest.mark.parametrize("backend", HERE)
def test_the_published_training_flags(backend, small_data, tmp_path):
    """As printed, underscores and all: they mean what they say, and the smaller model takes its first step."""
    local, tiny = (
        parse(["train", backend, "--data", str(small_data), "--out", str(tmp_path / "run"), *flags])
        for flags in published_flags()
    )
    assert isinstance(local, Train) and isinstance(tiny, Train)
    assert (local.d_model, local.d_ff, local.n_layers) == (384, 1024, 6)
    assert (local.seq_len, local.batch_size, local.total_tokens, local.lr, local.grad_clip) == (512, 48, 1e8, 1e-4, 0.5)
    assert (tiny.d_model, tiny.d_ff, tiny.n_layers, tiny.seq_len, tiny.batch_size) == (192, 576, 4, 256, 16)
    command = ["train", backend, "--data", str(small_data), "--out", str(tmp_path / "run"), *published_flags()[1]]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--stop-at", "1", "--eval-windows", "1"])
    assert stop.value.code == 0
    assert (tmp_path / "run" / "checkpoints" / "step_00000001" / "SHA256SUMS").is_file()
