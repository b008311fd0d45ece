"""The RUN directory: lock, settings, metrics and checkpoints, whole at every instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spec.checkpoint.files import TEMPORARY_PREFIX, new_file, read_utf8, remove, remove_unfinished
from spec.checkpoint.format import Checkpoint, list_checkpoints, parts_of, read_beside, write_checkpoint
from spec.config import ModelConfig, TrainingConfig, config_to_json, known_fields, require_integer, training_from_json
from spec.data import Dataset
from spec.mixers import config_from_json
from tools import convert
from tools.cli.file_lock import exclusive_lock
from tools.training.records import BestCheckpoint, MetricsLine
from tools.training.tensorboard import event_writer


@dataclass(frozen=True)
class ExecutionConfig:
    """How a run computes and what it keeps; none of it changes the mathematics.

    Args:
        method: mixer method.
        remat: make activations again in the backward pass.
        compile: compile torch's step; None where that is known to pay, on a CUDA GPU.
        checkpoint_every: steps between checkpoints.
        keep: checkpoints to keep, besides the best.
        eval_every: steps between evaluations.
        eval_windows: validation windows to read at most.

    Raises:
        ValueError: a value out of range, named.
    """

    method: str = "auto"
    remat: bool = False
    compile: bool | None = None
    checkpoint_every: int = 250
    keep: int = 3
    eval_every: int = 250
    eval_windows: int = 2048

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep", "eval_every", "eval_windows"):
            require_integer(name, getattr(self, name), 1)
        if not isinstance(self.compile, bool | None):
            raise ValueError(f"compile must be true, false or null, got {self.compile!r}")


@dataclass(frozen=True)
class Settings:
    """What a run is: kept in RUN/config.json, so that a later segment needs only --data, --out and --resume."""

    model: ModelConfig
    training: TrainingConfig
    execution: ExecutionConfig
    data: dict[str, str]
    init_from: str | None = None
    """Where the first weights were taken from."""

    def to_json(self) -> dict[str, object]:
        """The content of RUN/config.json."""
        parts = {"training": asdict(self.training), "execution": asdict(self.execution), "data": self.data}
        return {"model": config_to_json(self.model), **parts, "init_from": self.init_from}

    def require_same_run(self, asked: Settings) -> None:
        """Raises ValueError where what is asked for now is another run than this one, which was stored."""
        if asked.data != self.data:
            raise ValueError("the data differs from what this run was started with; resume with the same prepared data")
        if asked.model != self.model:
            now = config_to_json(asked.model)
            kept = [f"{k} {v} (not {now.get(k)})" for k, v in config_to_json(self.model).items() if now.get(k) != v]
            raise ValueError(f"this run's model has {', '.join(kept)}; resume without the flags that change it")
        if asked.init_from != self.init_from:
            began = self.init_from or "fresh weights"
            raise ValueError(f"this run began from {began}, not from {asked.init_from}; resume without --init-from")
        # The lanes of a stream belong to its batch size.
        for name in ("seq_len", "seed", "stream", *(("batch_size",) if self.training.stream else ())):
            before, now = getattr(self.training, name), getattr(asked.training, name)
            if before != now:
                raise ValueError(f"this run has {name} {before}, not {now}; resume without --{name.replace('_', '-')}")


def _name(step: int) -> str:
    return f"step_{step:08d}"


def data_identity(data: Dataset) -> dict[str, str]:
    """The checksums that tell one prepared data set from another."""
    return {part: data.meta[part]["sha256"] for part in ("train", "val")} | {"tokenizer": data.meta["tokenizer_sha256"]}


class RunDir:
    """An open RUN directory; only one process has it at a time.

    Args:
        path: the directory.
        tensorboard: write the metrics as TensorBoard's events besides, to RUN/tensorboard.
    """

    def __init__(self, path: Path, tensorboard: bool = False):
        self.path, self.tensorboard = path, tensorboard

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; a dead process's lock vanishes with it. Raises ValueError where another run is live."""
        lock, made = self.path / ".lock", not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"{self.path} is in use by another live run, {{}}; wait for it or name another --out"
        with exclusive_lock(lock, busy):
            remove_unfinished(self.path)
            remove_unfinished(self.path / "checkpoints")
            try:
                yield
            except BaseException:  # Ctrl-C among them, and it goes on
                # A run that could not begin leaves nothing: seen while the lock is held, for all is another's after it.
                if made and {*self.path.iterdir()} <= {lock}:
                    with suppress(OSError):
                        lock.unlink()
                        self.path.rmdir()
                raise

    def exists(self) -> bool:
        """Whether a run has started here, or what is left of one lies here."""
        names = ("config.json", "metrics.jsonl")
        return any((self.path / name).exists() for name in names) or bool(list_checkpoints(self.path))

    def settings(self) -> Settings:
        """RUN/config.json; raises ValueError where it is damaged."""
        try:
            stored = json.loads(read_utf8(self.path / "config.json"))
            model, training = config_from_json(stored["model"]), training_from_json(stored["training"])
            # Earlier versions wrote this entry as `habits`, without a choice of `compile`, and no `init_from`.
            kept = stored["execution"] if "execution" in stored else stored["habits"]
            execution = ExecutionConfig(**known_fields(ExecutionConfig, {"compile": None, **kept}))
            init_from = stored.get("init_from")
            return Settings(model, training, execution, stored["data"], init_from and str(init_from))
        except (OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{self.path / 'config.json'} is damaged ({error}); restore it or start anew") from error

    def write_settings(self, settings: Settings) -> None:
        """Write RUN/config.json."""
        with new_file(self.path / "config.json") as temporary:
            temporary.write_text(json.dumps(settings.to_json(), indent=1) + "\n")

    def newest_checkpoint(self, readers: tuple[int, int] | None = None, form: str = "dcp") -> Checkpoint | None:
        """The newest checkpoint; None where there is none; ValueError where it is damaged.

        Args:
            readers: number of this process, and of all, where each reads its own part of what is in parts; the
                checkpoint then has neither parameters nor moments.
            form: of the parts that they can read so, dcp or orbax; anything else is read whole.
        """
        found = list_checkpoints(self.path)
        if not found:
            return None
        in_parts = readers is not None and parts_of(found[-1]) == form
        checkpoint = read_beside(found[-1], *readers) if readers and in_parts else convert.read(found[-1])
        if found[-1].name != _name(checkpoint.state["step"]):
            raise ValueError(f"{found[-1]} holds step {checkpoint.state['step']}; rename it to what it holds")
        return checkpoint

    def last_good(self) -> str:
        """Where to go on from, for a message."""
        found = list_checkpoints(self.path)
        return f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"

    def save(self, checkpoint: Checkpoint, keep: int) -> None:
        """Write a checkpoint, then drop those beyond the newest `keep` and the best."""
        write_checkpoint(self.checkpoint_path(checkpoint.state["step"]), checkpoint)
        self.drop_old(checkpoint.state.get("best"), keep)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / "checkpoints" / _name(step)

    def drop_old(self, best: BestCheckpoint | None, keep: int) -> None:
        """Remove the checkpoints beyond the newest `keep` and the best."""
        kept = None if best is None else _name(best["step"])
        for old in list_checkpoints(self.path)[:-keep]:
            if old.name != kept:
                # A kill between the two leaves no half of a checkpoint under a valid name.
                doomed = old.with_name(TEMPORARY_PREFIX + old.name)
                old.rename(doomed)
                if not remove(doomed):
                    print(f"{doomed} is another's, and was not removed; let its owner do that", file=sys.stderr)

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl; a kill can leave the last one torn."""
        if not (self.path / "metrics.jsonl").is_file():
            return []
        lines = []
        for line in (self.path / "metrics.jsonl").read_text(errors="replace").split("\n"):
            try:
                entry = json.loads(line)
                lines.append({**entry, "step": int(entry["step"])})
            except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
                break
        return lines

    def cut_metrics(self, step: int) -> None:
        """Forget what came after `step`: it will be computed again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with new_file(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    @contextmanager
    def metrics_writer(self, step: int) -> Iterator[Callable[[MetricsLine], None]]:
        """A function that appends one object to metrics.jsonl, a line at a time.

        Args:
            step: that this segment goes on from.
        """
        events = event_writer(self.path / "tensorboard", step) if self.tensorboard else nullcontext()
        with (self.path / "metrics.jsonl").open("a", buffering=1) as file, events as show:

            def write(line: MetricsLine) -> None:
                file.write(json.dumps(line) + "\n")
                if show is not None:
                    show(line)

            yield write
            file.flush()
            os.fsync(file.fileno())
