"""What several tests ask for: data (real text where it lies beside the repository, else our stories), refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from parity.proof.environment import ROOT
from spec.data import Dataset, open_data
from tools.cli.main import main
from tools.data.prepare import Prepare

MEASURED = "measured"
"""The property of a test that `report` adds to."""
#: Begins a program that Ctrl-C must reach even where the tests run in the background of a shell, which has it ignored.
HEED_SIGINT = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
TEXT = ("--text", "The fox ran home.")
SHARED = Path(os.environ.get("LIQUIDNET_SHARED_DATA", ROOT.parent / "shared" / "data"))
"""Texts and tokenizers beside the repository, which a test skips without."""


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared directory of 200 stories in bytes."""
    out = tmp_path_factory.mktemp("data") / "small"
    Prepare(out=out, stories=200).run()
    return out


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """tinyshakespeare in bytes, or 2000 stories where it is absent."""
    out = tmp_path_factory.mktemp("data") / "text"
    text = SHARED / "tinyshakespeare.txt"
    Prepare(out=out, text=(text,)).run() if text.is_file() else Prepare(out=out, stories=2000).run()
    return open_data(out)


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str | int | None, str]]:
    """Runs `liquidnet compare` on a short text; returns its exit code and what it printed."""

    def run(*arguments: object) -> tuple[str | int | None, str]:
        code: str | int | None = 0
        try:
            main(["compare", *map(str, arguments), *(TEXT if "--text-file" not in arguments else ())])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say what was measured; conftest.py prints it after the run."""
    return lambda text: request.node.user_properties.append((MEASURED, text))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; returns its one line."""

    def run(*arguments: str, command: Callable[[list[str]], None] = main) -> str:
        with pytest.raises(SystemExit) as stop:
            command(list(arguments))
        line = capsys.readouterr().err
        assert stop.value.code == 2 and line.startswith("liquidnet: error: ") and line.count("\n") == 1, line
        return line

    return run
