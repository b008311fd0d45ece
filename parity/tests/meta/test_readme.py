"""README, docs, --help and the code agree: their commands and code run, their flags, files and links exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from parity.suite.support.doc_checks import FOREIGN, PAGES, ROOT, blocks, commands, flags, problems, tree
from tools.cli.commands import COMMANDS
from tools.cli.main import main
from tools.data.stories import stories

README = (ROOT / "README.md").read_text()
page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with a story of one's own, and the repository's tools beside it, as README's reader has them."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "story.txt").write_text("<|endoftext|>".join(stories(200, seed=5)))
    (directory / "tools").symlink_to(ROOT / "tools")
    return directory


@pytest.mark.long
def test_the_commands_and_the_code_run(workplace):
    """Page after page, as a reader would."""
    pytest.importorskip("torch", reason="README trains on both backends")
    pytest.importorskip("jax", reason="README trains on both backends")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    lines = [line for page in PAGES for line in commands(page.read_text(), "console run")]
    assert len(lines) >= 20
    for line in lines:
        ended = subprocess.run(
            shlex.split(line), cwd=workplace, env={**os.environ, "PATH": path}, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
    code = [block for page in PAGES for block in blocks(page.read_text(), "python run")]
    assert len(code) >= 3
    for block in code:
        ended = subprocess.run(
            [sys.executable, "-c", block], cwd=workplace, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0, f"{block}\n{ended.stderr}"
    assert (workplace / "run" / "loss.png").stat().st_size > 10_000
    assert (workplace / "checkpoint" / "SHA256SUMS").is_file()


@page
def test_what_is_said_is_so(page):
    assert not list(problems(page.read_text(), page))


def test_a_misspelt_flag_is_found():
    """Any flag, command, target or file in README, with a letter missing."""
    names = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", README)) - FOREIGN
    names |= {f"liquidnet {command}" for command in COMMANDS if f"liquidnet {command}" in README}
    names |= {"make demo", "recipes/learning.sh", "docs/guide/moving.md"}
    assert len(names) > 30
    for name in sorted(names):
        wrong = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", name[:-1], README)
        assert wrong != README and list(problems(wrong, ROOT / "README.md")), name


@page
def test_a_misspelt_flag_is_found_on_any_page(page):
    text = page.read_text()
    wrong = re.sub(r"(?<![\w-])--(checkpoint|data|out|preset|remat|compile|draws|tokenizer)(?![\w-])", r"--\1x", text)
    assert (wrong == text) or list(problems(wrong, page))


def test_help_names_every_command(capsys):
    main(["--help"])
    told = capsys.readouterr().out
    for command in COMMANDS:
        assert command in told and flags(command), command


def drawn_tree() -> str:
    return README.split("## What is in here")[1].split("```")[1]


def test_the_tree_names_every_folder():
    named = {*tree(drawn_tree())}
    twins = {name.replace("torch_impl/", "jax_impl/") for name in named}
    for name in named | twins:
        assert (ROOT / name).is_dir(), name
    for top in ("spec", "torch_impl", "jax_impl", "parity", "tools"):
        below = {
            f"{top}/{path.name}"
            for path in (ROOT / top).iterdir()
            if any(path.glob("*.py")) or any(path.glob("*/*.py"))
        }
        assert below <= named | twins, below - named - twins


@pytest.mark.parametrize(
    "text",
    [
        "`spec/dta.py`",
        "`scan/sequental.py`",
        "`ops/rowise/`",
        "`tools.cli.mian`",
        "`spec.initial_parameter`",
        "[x](spec/dta.py)",
    ],
)
def test_a_misspelt_path_is_found(text):
    right = (
        text.replace("dta", "data").replace("tal.py", "tial.py").replace("rowise", "rowwise").replace("mian", "main")
    )
    right = right.replace("parameter`", "parameters`")
    assert [*problems(text, ROOT / "README.md")] and not [*problems(right, ROOT / "README.md")]
