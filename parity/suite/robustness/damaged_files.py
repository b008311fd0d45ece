"""Every kind of file that is read, damaged at random for as long as wanted, and read.

    python -m parity.suite.robustness.damaged_files --minutes 10 --seed 1

A reader may read what it is given, or refuse it by a ValueError or an OSError of one line. Anything else is a finding:
another exception, something executed, a process that ends, more memory or more time than there is a limit for. It is
printed with the command that shows it again, since a case is a function of seed and number. Exit code 1: there was one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import tyro

from parity.suite.robustness import corruption
from parity.suite.robustness.damage import damage
from parity.suite.robustness.malicious_files import MARKER
from spec.config import TrainingConfig
from spec.data import open_data
from tools import convert
from tools.bench import results
from tools.cli import backends
from tools.data.documents import open_files
from tools.generation.session import OpenModel, Session
from tools.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from tools.tokenizer.gpt2 import END_OF_TEXT, byte_symbols, gpt2_backend
from tools.training.run_dir import ExecutionConfig, RunDir, Settings

READ, REFUSED = "read", "refused"
WORDS = "The fox ran home. \u00e9\u4e2d \U0001f333 <|endoftext|>\n"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        name: of the file or directory.
        write: a whole one.
        read: as the product does.
        weight: how often it comes.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    weight: float = 1.0


def kinds() -> dict[str, Kind]:
    """Every kind that can be read with what is installed."""
    found = {
        "neutral": Kind("c", lambda path: corruption.write_sample("neutral", path), convert.read, 3.0),
        "dcp": Kind("c", lambda path: convert.write(path, corruption.sample(), "dcp"), convert.read, 2.0),
        "data": Kind("data", corruption.write_data, open_data, 2.0),
        "run": Kind("run", _write_run, _read_run, 2.0),
        "tokenizer": Kind("tokenizer.json", _write_tokenizer, _read_tokenizer, 2.0),
        "gpt2": Kind("gpt2", _write_gpt2, lambda path: _use(Tokenizer(gpt2_backend(_pair(path)), 0))),
        "jsonl": Kind("text.jsonl", _write_rows, _read_text),
        "text": Kind("text.txt", lambda path: path.write_text(WORDS * 40), _read_text),
        "state": Kind("state.safetensors", lambda path: _session(path, "save"), lambda path: _session(path, "load")),
        "bench": Kind("bench.json", _write_bench, results.read),
    }
    if "torch" in backends.installed():
        found["pt"] = Kind("c.pt", lambda path: corruption.write_sample("pt", path), convert.read, 2.0)
    if "jax" in backends.installed():
        found["msgpack"] = Kind("c.msgpack", lambda path: corruption.write_sample("msgpack", path), convert.read, 2.0)
        if find_spec("orbax"):
            orbax = lambda path: convert.write(path, corruption.sample(), "orbax")  # noqa: E731
            found["orbax"] = Kind("c", orbax, convert.read, 0.2)
    if find_spec("pyarrow"):
        found["parquet"] = Kind("text.parquet", _write_parquet, _read_text)
    return found


def _write_run(path: Path) -> None:
    path.mkdir()
    identity: dict[str, str] = dict.fromkeys(("train", "val", "tokenizer"), "0" * 64)
    RunDir(path).write_settings(Settings(corruption.CONFIG, TrainingConfig(), ExecutionConfig(), identity))
    lines = (json.dumps({"step": step, "loss": 2.5, "lr": 0.1, "backend": "torch"}) + "\n" for step in range(1, 9))
    (path / "metrics.jsonl").write_text("".join(lines))


def _read_run(path: Path) -> None:
    run = RunDir(path)
    run.settings()
    run.metrics()


def _write_tokenizer(path: Path) -> None:
    path.write_text(build_tokenizer("bpe:280", [WORDS * 20]).to_json())


def _read_tokenizer(path: Path) -> None:
    _use(load_tokenizer(path))


def _use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(WORDS)
    decoder = tokenizer.stream_decoder()
    "".join(decoder.push(int(token)) for token in ids)
    tokenizer.decode(ids)


def _write_gpt2(path: Path) -> None:
    path.mkdir()
    pairs = [("t", "h"), ("th", "e"), ("\u0120", "the")]
    tokens = [*byte_symbols(), *("".join(pair) for pair in pairs), END_OF_TEXT]
    (path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in pairs))


def _pair(path: Path) -> tuple[Path, Path]:
    return path / "vocab.json", path / "merges.txt"


def _write_rows(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": WORDS * 3, "id": row}) + "\n" for row in range(30)))


def _write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = pyarrow.table({"id": range(60), "text": [WORDS * 3] * 60})
    parquet.write_table(rows, path, row_group_size=20, compression="zstd")


def _read_text(path: Path) -> None:
    for _ in open_files([path], "--text").pieces(lambda _: None):
        pass


def _session(path: Path, what: str) -> None:
    checkpoint = corruption.sample()
    model = cast(OpenModel, SimpleNamespace(checkpoint=checkpoint, identity="0" * 64))
    session = Session(cast(Any, None), build_tokenizer("byte"))
    if what == "load":
        session.load(path, model)
        return
    session.pending, session.position = [1, 2, 3], 5
    session.states = np.ones((2, 1, 6), np.float32)
    session.save(path, model)


def _write_bench(path: Path) -> None:
    run = {"when": "2026-01-01", "targets": [], "sections": {"scan": [{"name": "a", "ms": 1.0}]}, "environment": {}}
    path.write_text(json.dumps(run))


class Cases:
    """Cases by number, in a directory that holds a whole sample of each kind."""

    def __init__(self, seed: int, place: Path, only: tuple[str, ...] = ()) -> None:
        self.seed, self.place, self.kinds = seed, place, kinds()
        if only:
            self.kinds = {name: self.kinds[name] for name in only}
        for name, kind in self.kinds.items():
            (place / name).mkdir()
            kind.write(place / name / kind.name)
            kind.read(place / name / kind.name)
        weights = np.array([kind.weight for kind in self.kinds.values()])
        self.share = weights / weights.sum()

    def run(self, number: int) -> tuple[str, str, str]:
        """Kind of a case, what was damaged, and the outcome: READ, REFUSED, or what is wrong."""
        random = np.random.default_rng([self.seed, number])
        name = str(random.choice(list(self.kinds), p=self.share))
        kind, here = self.kinds[name], self.place / "case"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(self.place / name, here)
        done = damage(here / kind.name, random)
        outcome = _outcome(kind, here / kind.name)
        return name, done, "something was executed" if (here / MARKER).exists() else outcome


def _outcome(kind: Kind, path: Path) -> str:
    try:
        kind.read(path)
    except (ValueError, OSError) as error:
        return REFUSED if "\n" not in str(error) else f"the refusal has several lines: {str(error)[:500]!r}"
    except BaseException as error:  # anything else is what is looked for; a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    return READ


@dataclass(frozen=True)
class DamagedFiles:
    """Damage files of every kind at random and read them; exit code 1 where a reader does not read or refuse."""

    minutes: float = 1.0
    """Time in all."""
    seed: int = 0
    """Of the cases; one seed has as many as there is time for."""
    case: int | None = None
    """Only the case of this number."""
    kinds: tuple[str, ...] = ()
    """Only these kinds."""
    findings: int = 1
    """End after so many."""
    megabytes: int = 1024
    """Memory that reading may take, beyond what the libraries have."""
    case_seconds: float = 20.0
    """Time that reading one file may take."""

    def run(self) -> int:
        """The exit code."""
        end, counts, found, number = time.monotonic() + 60.0 * self.minutes, Counter[str](), 0, self.case or 0
        while time.monotonic() < end and found < self.findings:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_work, args=(self, number, theirs), daemon=True)
            child.start()
            theirs.close()
            number, wrong = self._follow(ours, counts, number, end)
            child.kill()
            child.join()
            if wrong:
                found += 1
                only = f" --kinds {' '.join(self.kinds)}" if self.kinds else ""
                print(f"FOUND, case {number}: {wrong}")
                print(
                    f"    python -m parity.suite.robustness.damaged_files --seed {self.seed} --case {number}{only}",
                    flush=True,
                )
                number += 1
            if self.case is not None:
                break
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        print(f"seed {self.seed}, {counts[READ] + counts[REFUSED]:,} cases, {found} findings: {told}")
        return 1 if found else 0

    def _follow(self, ours: Connection, counts: Counter[str], number: int, end: float) -> tuple[int, str]:
        """Where the child came to, and what is wrong with the last case; it begins by saying that it is ready."""
        started = False
        while time.monotonic() < end or not started:
            try:
                if not ours.poll(self.case_seconds if started else 300.0):
                    return number, f"still busy after {self.case_seconds:g} seconds"
                told = ours.recv()
            except EOFError:
                return number, "the process ended"
            if not started:
                started = True
                continue
            kind, done, outcome = told
            if outcome not in (READ, REFUSED):
                return number, f"{kind}, {done}: {outcome}"
            counts.update((kind, outcome))
            if self.case is not None:
                print(f"case {number}: {kind}, {done}: {outcome}")
                return number, ""
            number += 1
        return number, ""


def _work(options: DamagedFiles, first: int, report: Connection) -> None:
    warnings.simplefilter("ignore")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with tempfile.TemporaryDirectory(prefix="damaged-") as place:
        cases = Cases(options.seed, Path(place), options.kinds)
        if sys.platform == "linux":  # elsewhere nothing bounds the memory of a process
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (taken + options.megabytes * 2**20, resource.RLIM_INFINITY))
        report.send(None)
        for number in range(first, sys.maxsize):
            try:
                report.send(cases.run(number))
            except (ValueError, TypeError, LookupError, OSError) as error:
                report.send(("the damage itself", "", "".join(traceback.format_exception(error))))


if __name__ == "__main__":
    sys.exit(tyro.cli(DamagedFiles, description=__doc__).run())
