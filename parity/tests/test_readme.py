"""README, --help and the code agree: its commands run, its flags and files exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.cli import COMMANDS, main
from tools.stories import stories

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```console run\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in BLOCK.findall(README) for line in block.splitlines() if line.strip()]


def flags_of(command: str, capsys) -> set[str]:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with a story of one's own, and the repository's tools beside it, as README's reader has them."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "story.txt").write_text("<|endoftext|>".join(stories(200, seed=5)))
    (directory / "tools").symlink_to(ROOT / "tools")
    return directory


@pytest.mark.long
def test_readme_commands_run(workplace):
    pytest.importorskip("torch", reason="README trains on both backends")
    pytest.importorskip("jax", reason="README trains on both backends")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assert len(commands()) >= 12
    for command in commands():
        ended = subprocess.run(
            shlex.split(command), cwd=workplace, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    assert (workplace / "run" / "loss.png").stat().st_size > 10_000
    assert (workplace / "checkpoint" / "SHA256SUMS").is_file()


def test_every_flag_in_the_readme_exists(capsys):
    known = set().union(*(flags_of(command, capsys) for command in COMMANDS))
    # pip's own, in the example of PIP_ARGS, torchrun's, and XLA's.
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) - {"--index-url", "--nproc-per-node", "--xla"}
    assert len(named) > 15 and named <= known, named - known


def test_every_file_in_the_readme_exists():
    files = set(re.findall(r"`((?:parity|recipes|spec)/[\w./]+)", README)) | set(re.findall(r"\]\(([\w./]+)\)", README))
    assert len(files) > 10
    for name in files:
        assert (ROOT / name).exists(), name


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0 and all(command in told for command in COMMANDS)
    for command in COMMANDS:
        assert {"--help"} < flags_of(command, capsys)
