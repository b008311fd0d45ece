"""Long work tells how far it is: a bar on a terminal, a line now and then elsewhere."""

import re

import pytest

from tools.cli import progress as module
from tools.cli.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with progress("downloading", 1000, done=200) as bar:
        bar.advance(100)
        clock[0] += 29
        bar.advance(100)
        clock[0] += 11
        bar.advance(200)  # 400 in 40 seconds, 400 are left
        bar.expect(1200)
        clock[0] += 40
        bar.advance(400)  # 800 in 80 seconds, 200 are left
        bar.advance(200)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["downloading ...", "downloading: 60%, 40 s left", "downloading: 83%, 20 s left"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("encoding", 10, done=4) as bar:
        bar.advance(2)
        bar.expect(8)
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"encoding .* 75% ", told) and "..." not in told
