"""Corrupted and malicious files are refused in words, or read as they were written; nothing is run, nothing hangs."""

from __future__ import annotations

import errno
import itertools
import os
import re
import resource
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from parity.suite.robustness import corruption, malicious_directories, malicious_files
from spec.checkpoint.format import list_checkpoints, read_checkpoint, write_checkpoint
from spec.data import open_data
from tools import convert
from tools.training.run_dir import RunDir

NEEDS = {"pt": "torch", "msgpack": "jax"}
CASES = [
    *corruption.everywhere(),
    *corruption.rewritten(),
    *malicious_files.pickle_bombs(),
    *malicious_files.zip_tricks(),
    *malicious_files.tensor_tricks(),
    *malicious_files.msgpack_tricks(),
    *malicious_directories.headers(),
    *malicious_directories.no_files(),
    *malicious_directories.swapped(),
    *malicious_directories.meta_json(),
    *malicious_directories.emptied(),
]


SECONDS = 20


@pytest.fixture
def time_limit():
    """What waits for ever ends in an error."""

    def interrupt(*_):
        raise TimeoutError(f"still busy after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.signal(signal.SIGALRM, before)


def memory_peak():
    """Most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def content(form, path):
    """All that is read, comparable bit for bit."""
    if form == "data":
        data = open_data(path)
        return data.train.tobytes(), data.val.tobytes(), data.meta, data.tokenizer
    read = convert.read(path)
    groups = (read.parameters, *(read.moments[name] for name in sorted(read.moments)), {"states": read.states})
    arrays = [(name, a.dtype.str, a.shape, a.tobytes()) for group in groups for name, a in sorted(group.items())]
    return arrays, read.config, dict(read.state), read.tokenizer


def outcome(case, path, whole):
    """`refused` or `read`, where either is right; else what is wrong."""
    signal.alarm(SECONDS)
    try:
        read = content(case.form, path)
    except ValueError as error:
        message = str(error)
        if str(path) not in message and "meta.json" not in message:
            return f"the refusal does not name the file: {message}"
        return "refused" if re.search(case.refusal or "", message) else f"refused for another reason: {message}"
    except Exception as error:  # anything else is what this test looks for
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    if case.refusal is not None:
        return "was not refused"
    return "read" if read == whole else "was read as something else than was written"


@pytest.mark.parametrize("form", corruption.SUFFIXES)
def test_corruption_is_refused_or_does_no_harm(form, time_limit, tmp_path, report):
    if form in NEEDS:
        pytest.importorskip(NEEDS[form], reason=f"{form} needs {NEEDS[form]}")
    whole = tmp_path / f"whole{corruption.SUFFIXES[form]}"
    corruption.write_sample(form, whole)
    written, wrong, counts, before = content(form, whole), [], Counter(), memory_peak()
    for number, case in enumerate(case for case in CASES if case.form == form):
        place = tmp_path / str(number)
        place.mkdir()
        path = place / f"sample{corruption.SUFFIXES[form]}"
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, path)
        case.change(path)
        found = outcome(case, path, written)
        if found not in ("refused", "read") or (place / malicious_files.MARKER).exists():
            wrong.append(f"{case.kind}, {case.name}: {found}")
        counts[case.kind] += 1
        counts[found] += 1
        shutil.rmtree(place)
    assert not wrong, "\n".join(wrong)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in sorted({case.kind for case in CASES}) if counts[kind])
    report(f"{form}: {kinds}: {counts['refused']} refused, {counts['read']} read back whole")
    assert counts["refused"] > 4 * counts["read"]
    assert memory_peak() - before < malicious_files.BOMB_BYTES // 2


def test_there_are_hundreds_of_cases_and_no_two_are_one():
    names = [(case.form, case.kind, case.name) for case in CASES]
    assert len({*names}) == len(names) >= 200
    assert len({case.kind for case in CASES}) >= 15


COMMANDS = {
    "neutral": ("bit flips", "flip 3"),
    "pt": ("pickle bombs", "data.pkl, protocol 2, system"),
    "msgpack": ("msgpack tricks", "endless maps"),
    "data": ("meta.json", "deep"),
}


@pytest.mark.parametrize("form, more", [*((form, "") for form in COMMANDS), ("pt", "a pipe"), ("neutral", "a pipe")])
def test_a_command_says_it_in_one_line(form, more, tmp_path, refused):
    if form in NEEDS:
        pytest.importorskip(NEEDS[form], reason=f"{form} needs {NEEDS[form]}")
    path, whole = tmp_path / f"sample{corruption.SUFFIXES[form]}", tmp_path / "whole"
    corruption.write_sample(form, path)
    corruption.write_sample("neutral", whole)
    kind, name = COMMANDS[form]
    if more:
        kind, name = "no regular file", f"{'state.json' if form == 'neutral' else ''}: {more}"
    next(case for case in CASES if (case.form, case.kind, case.name) == (form, kind, name)).change(path)
    if form == "data":
        message = refused("evaluate", "--checkpoint", str(whole), "--data", str(path))
    else:
        message = refused("convert", str(path), str(tmp_path / "target"))
    assert (
        str(path) in message and not (tmp_path / malicious_files.MARKER).exists() and not (tmp_path / "target").exists()
    )


@pytest.fixture
def full_disk():
    """No file may grow beyond 600 bytes: what a full disk or a quota does to a writer."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, request):
    run, old = RunDir(tmp_path / "run"), corruption.sample()
    run.save(old, 1)
    request.getfixturevalue("full_disk")
    new = replace(old, state={**old.state, "step": 8})
    with pytest.raises(OSError, match="too large"):
        run.save(new, 1)
    with pytest.raises(OSError, match="too large"):
        write_checkpoint(tmp_path / "elsewhere" / "c", new)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step_00000007"]
    assert read_checkpoint(run.path).state["step"] == 7 and not [*(tmp_path / "elsewhere").iterdir()]


@pytest.mark.parametrize("form", ["neutral", "pt", "msgpack"])
def test_a_full_disk_stops_a_command_in_one_line(form, tmp_path, request, refused):
    if form in NEEDS:
        pytest.importorskip(NEEDS[form], reason=f"{form} needs {NEEDS[form]}")
    corruption.write_sample("neutral", tmp_path / "whole")
    target = tmp_path / f"target{corruption.SUFFIXES[form]}"
    request.getfixturevalue("full_disk")
    message = refused("convert", str(tmp_path / "whole"), str(target))
    assert "File too large" in message and [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("point", range(17))
def test_no_moment_of_a_failing_write_leaves_half_a_checkpoint(point, tmp_path, monkeypatch):
    """The disk fills up at each write, fsync and rename in turn."""
    run, old = RunDir(tmp_path / "run"), corruption.sample()
    run.save(old, 1)
    calls = itertools.count()

    def failing(function):
        def call(*arguments):
            if next(calls) == point:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments)

        return call

    monkeypatch.setattr(Path, "write_bytes", failing(Path.write_bytes))
    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    with pytest.raises(OSError, match="No space left"):
        run.save(replace(old, state={**old.state, "step": 8}), 1)
    monkeypatch.undo()
    left = sorted((run.path / "checkpoints").iterdir())
    assert left == list_checkpoints(run.path)
    assert [read_checkpoint(path).state["step"] for path in left] in ([7], [7, 8])
