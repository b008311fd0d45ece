"""Kill a training run at random instants, resume it each time, and show that nothing is lost.

    python -m parity.suite.runs.crash_resume --kills 50 --backend torch

An uninterrupted run first. Then the same run with --resume again and again, each time SIGKILLed with every process that
it started: while it starts, in a step, in an evaluation, while a checkpoint is written. At the end weights, moments
and states must have the same bits as the uninterrupted run's, and every step the same loss.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from spec.checkpoint.files import TEMPORARY_PREFIX
from spec.checkpoint.format import list_checkpoints, parts_of
from spec.checkpoint.sharded import named_arrays
from tools import convert
from tools.cli.backends import Backend
from tools.data.prepare import Prepare
from tools.training.checkpoint_manager import CheckpointFormat
from tools.training.run_dir import RunDir

EVERY, EVALUATE_EVERY = 3, 10
MODEL = ("--d-model", "32", "--d-ff", "48", "--n-layers", "2", "--seq-len", "32", "--batch-size", "12")
CHECKPOINTS = ("--checkpoint-every", str(EVERY), "--keep", "2")
EVALUATIONS = ("--eval-every", str(EVALUATE_EVERY), "--eval-windows", "16")
STARTING, STEPPING, WRITING, EVALUATING = "before the first step", "in a step", "in a checkpoint", "in an evaluation"
PLACES = (STARTING, STEPPING, WRITING, EVALUATING)
AIMS = (STARTING, WRITING, STEPPING, EVALUATING, WRITING, STEPPING)
PATIENCE = 1800.0
FLAGS = ("backend", "ranks", "stream", "checkpoint_format", "parallel", "seed")


@dataclass(frozen=True)
class Kills:
    """What to kill, and how often."""

    kills: int = 50
    """Kills in all."""
    backend: Backend = "torch"
    """Backend that trains."""
    ranks: int = 1
    """Processes that train together (torch alone)."""
    preset: str = "nano"
    """Preset of the model, narrowed."""
    stream: bool = False
    """Train on contiguous text, states carried from step to step."""
    checkpoint_format: CheckpointFormat = "neutral"
    """Of the run's checkpoints; torch's dcp and JAX's orbax are written while the next steps are made."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether each process has a copy of the parameters, or a part."""
    data: Path | None = None
    """Prepared data; by default 200 stories in bytes."""
    seed: int = 0
    """Seed of the instants and of the first run."""
    json: Path | None = None
    """File to keep the table in."""


@dataclass
class Table:
    """What happened: kills by place, how often the run was started again, and what it came to."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    restarts: int = 0
    runs: int = 0
    steps: int = 0
    steps_done_again: int = 0
    identical: bool = True
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Attempt:
    """One start of a run, in a session of its own.

    Args:
        command: starts it.
        out: the RUN directory.
    """

    def __init__(self, command: list[str], out: Path):
        self.command, self.out, self.began = command, out, time.monotonic()
        self.stored, self.first = _inode(out), _newest(out)
        self.log = out.with_name(f"{out.name}.log")
        with self.log.open("wb") as log:
            environment = {"OMP_NUM_THREADS": "1", **os.environ}
            self.process = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=environment)

    def last_line(self) -> dict[str, Any] | None:
        """The last line of metrics.jsonl that this attempt wrote, None before the first."""
        lines = [] if _inode(self.out) == self.stored else RunDir(self.out).metrics()
        return lines[-1] if lines and lines[-1]["step"] > self.first else None

    def step(self) -> int:
        """The last step in metrics.jsonl; where it resumed, before the first."""
        return (self.last_line() or {"step": self.first})["step"]

    def is_writing(self) -> bool:
        """Whether a checkpoint is half there."""
        return any((self.out / "checkpoints").glob(f"{TEMPORARY_PREFIX}*"))

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether it was reached before the attempt ended; RuntimeError where neither happens in half an hour."""
        end = time.monotonic() + PATIENCE
        try:
            while self.process.poll() is None:
                if reached():
                    return True
                if time.monotonic() > end:
                    raise RuntimeError(f"neither at its end nor where it was awaited:\n{self.tail()}")
                time.sleep(0.001)
        except BaseException:  # Ctrl-C too: no process of the attempt may outlive it
            self.kill()
            raise
        return False

    def kill(self) -> None:
        """SIGKILL to every process of the attempt; torch's launcher puts its workers into sessions of their own."""
        processes = [self.process.pid]
        for process in processes:
            # Stopped, it starts no other while its children are counted.
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
            processes += _children(process)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        while any(_is_alive(process) for process in processes):
            time.sleep(0.001)

    def tail(self) -> str:
        """The last that it printed."""
        return self.log.read_text(errors="replace")[-4000:]


def _inode(out: Path) -> int:
    # A resumed run replaces the file when it cuts it back to its checkpoint.
    path = out / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def _newest(out: Path) -> int:
    found = list_checkpoints(out)
    return int(found[-1].name.removeprefix("step_")) if found else 0


def _children(process: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


def _is_alive(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def command(options: Kills, data: Path, out: Path, seed: int, steps: int, *more: str) -> list[str]:
    """What starts a run, or carries it on."""
    launcher = [sys.executable, "-m"]
    if options.ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks), "-m"]
    flags = ("--data", str(data), "--out", str(out), "--seed", str(seed), "--steps", str(steps))
    flags = (*flags, "--preset", options.preset, *MODEL, *CHECKPOINTS, *EVALUATIONS)
    flags = (*flags, "--checkpoint-format", options.checkpoint_format, "--parallel", options.parallel)
    return [*launcher, f"{options.backend}_impl.train", *flags, *(("--stream",) if options.stream else ()), *more]


def steps_of(kills: int) -> int:
    """Length of a run that lasts for that many kills; each lets about six steps through."""
    return 12 + 6 * kills


def kill_runs(options: Kills) -> Table:
    """Kill runs, one after the other, until all kills are spent.

    Raises:
        ValueError: more than one process of JAX, or a count below one.
        RuntimeError: a start ended by itself with an error, or made no progress; with what it said.
    """
    if options.kills < 1 or options.ranks < 1 or (options.ranks > 1 and options.backend == "jax"):
        raise ValueError("--kills and --ranks must be at least 1, and JAX trains in one process")
    table, chosen, began = Table(), random.Random(options.seed), time.monotonic()
    steps = steps_of(options.kills)
    with tempfile.TemporaryDirectory() as place:
        data = options.data or Path(place) / "data"
        if options.data is None:
            Prepare(out=data, stories=200).run()
        while sum(table.kills.values()) < options.kills:
            seed = options.seed + table.runs
            whole, out = Path(place) / f"whole-{seed}", Path(place) / f"killed-{seed}"
            attempt = Attempt(command(options, data, whole, seed, steps), whole)
            attempt.wait_until(lambda attempt=attempt: attempt.step() > 0)
            start_up = time.monotonic() - attempt.began
            _finish(attempt)
            print(f"run {seed}: {steps} steps without a kill, the first after {start_up:.1f} s", flush=True)
            _kill_one_run(options, table, chosen, command(options, data, out, seed, steps, "--resume"), out, start_up)
            table.runs, table.steps = table.runs + 1, table.steps + steps
            table.differences += [f"run {seed}: {what}" for what in differences(whole, out)]
    table.identical, table.seconds = not table.differences, round(time.monotonic() - began, 1)
    return table


def _kill_one_run(
    options: Kills, table: Table, chosen: random.Random, resume: list[str], out: Path, start_up: float
) -> None:
    """Start and kill the run until it is at its end or the kills are spent; the last start is left alone."""
    for start in itertools.count():
        attempt = Attempt(resume, out)
        table.restarts += start > 0
        spent = sum(table.kills.values())
        if spent == options.kills or not _aim(attempt, AIMS[spent % len(AIMS)], chosen, start_up):
            return _finish(attempt)
        attempt.kill()
        place = _place(attempt)
        table.kills[place] += 1
        table.steps_done_again += (again := max(attempt.step() - _newest(out), 0))
        print(f"kill {spent + 1}: {place}, step {attempt.step()}, {again} to do again", flush=True)


def _aim(attempt: Attempt, aim: str, chosen: random.Random, start_up: float) -> bool:
    """Wait for a random instant about there; False where the attempt ends by itself before."""
    early, target = attempt.began + chosen.uniform(0.0, start_up), attempt.first + chosen.randint(1, 4 * EVERY)
    reached = {
        STARTING: lambda: time.monotonic() >= early,
        STEPPING: lambda: attempt.step() >= target,
        EVALUATING: lambda: attempt.step() > attempt.first and attempt.step() % EVALUATE_EVERY == 0,
        WRITING: lambda: attempt.step() >= target and attempt.is_writing(),
    }[aim]
    if not attempt.wait_until(reached):
        return False
    # A write takes milliseconds, a step and an evaluation tens of them.
    late = 0.0 if aim == STARTING else chosen.uniform(0.0, 0.005 if aim == WRITING else 0.05)
    instant = time.monotonic() + late
    attempt.wait_until(lambda: time.monotonic() >= instant)
    return attempt.process.poll() is None


def _place(attempt: Attempt) -> str:
    """Where a kill fell, seen from what it left."""
    line = attempt.last_line()
    if _inode(attempt.out) != attempt.stored and attempt.is_writing():
        return WRITING
    if line is None:
        return STARTING
    return EVALUATING if line["step"] % EVALUATE_EVERY == 0 and "loss" in line else STEPPING


def _finish(attempt: Attempt) -> None:
    attempt.wait_until(lambda: False)
    if attempt.process.returncode != 0:
        raise RuntimeError(f"{' '.join(attempt.command)} ended with {attempt.process.returncode}:\n{attempt.tail()}")


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs between two finished runs: the last checkpoint in its files or tensors, losses by step."""
    one, other = (list_checkpoints(run)[-1] for run in (whole, killed))
    found = [f"another last checkpoint, {other.name}"] if one.name != other.name else []
    if parts_of(one) != parts_of(other):
        found.append(f"a checkpoint of another format, {parts_of(other) or 'neutral'}")
    contents = [_files(path) if parts_of(path) is None else _tensors(path) for path in (one, other)]
    found += [f"{name} has other bits" for name in _unequal(*contents)]
    names = ("step", "loss", "val_loss", "sample")
    before, after = ([[line.get(name) for name in names] for line in RunDir(run).metrics()] for run in (whole, killed))
    if before != after:
        pairs = itertools.zip_longest(before, after, fillvalue=["the end"])
        step = next(one for one, other in pairs if one != other)[0]
        found.append(f"the losses differ from step {step} on")
    return found


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def _files(checkpoint: Path) -> dict[str, Any]:
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


def _tensors(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint in parts holds; how DCP and Orbax lay out their files is theirs."""
    held = convert.read(checkpoint)
    arrays = named_arrays(held.parameters, held.moments) | ({} if held.states is None else {"states": held.states})
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


def summary(table: Table) -> str:
    """The table in words, a line a fact."""
    rows = {f"killed {place}": count for place, count in table.kills.items()}
    rows |= {"kills": sum(table.kills.values()), "restarts, all of them well": table.restarts, "runs": table.runs}
    rows |= {"steps": table.steps, "steps done again": table.steps_done_again, "seconds": table.seconds}
    verdict = "the same bits as without a kill" if table.identical else "NOT the same: " + "; ".join(table.differences)
    return "\n".join([*(f"{name:32}{value:>10}" for name, value in rows.items()), verdict])


def main(options: Kills) -> int:
    """Exit code 0 where every bit is the same, 1 where one is not or a restart failed."""
    try:
        table = kill_runs(options)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(summary(table))
    flags = {name: getattr(options, name) for name in FLAGS}
    if options.json is not None:
        options.json.write_text(json.dumps({**flags, **asdict(table)}, indent=1) + "\n")
    return 0 if table.identical else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Kills, description=__doc__)))
