"""The RUN directory: lock, settings, metrics and checkpoints, whole at every instant."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spec.checkpoint.files import TEMPORARY_PREFIX, new_file, read_utf8, remove, remove_named, require_no_broken_link
from spec.checkpoint.format import Checkpoint, list_checkpoints, parts_of, read_beside, write_checkpoint
from spec.config import ModelConfig, TrainingConfig, config_to_json, known_fields, require_integer, training_from_json
from spec.data import Dataset
from spec.mixers import config_from_json
from tools import convert
from tools.cli.errors import os_error_message
from tools.cli.file_lock import exclusive_lock
from tools.training.records import BestCheckpoint, MetricsLine
from tools.training.tensorboard import event_writer

_FILES, _NUMBER = r"(config\.json|metrics\.jsonl|loss\.png)", r"[0-9a-f]{8}"
#: What a run that was killed left of its own: others may be writing in the directory, too. Earlier versions put the
#: number of a file before its name.
_UNFINISHED = re.compile(
    rf"{re.escape(TEMPORARY_PREFIX)}({_FILES}\.{_NUMBER}|{_NUMBER}-{_FILES}|step_\d+(\.{_NUMBER})?)"
)


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
    decay_from: str | None = None
    """The checkpoint of a stable run that all was taken from, to be decayed."""

    def to_json(self) -> dict[str, object]:
        """The content of RUN/config.json."""
        parts = {"training": asdict(self.training), "execution": asdict(self.execution), "data": self.data}
        origins = {"init_from": self.init_from, "decay_from": self.decay_from}
        return {"model": config_to_json(self.model), **parts, **origins}

    def require_same_run(self, asked: Settings) -> None:
        """Raises ValueError where what is asked for now is another run than this one, which was stored."""
        if asked.data != self.data:
            raise ValueError("the data differs from what this run was started with; go on with the same prepared data")
        if asked.model != self.model:
            now = config_to_json(asked.model)
            kept = [f"{k} {v} (not {now.get(k)})" for k, v in config_to_json(self.model).items() if now.get(k) != v]
            raise ValueError(f"this run's model has {', '.join(kept)}; leave out the flags that change it")
        if asked.init_from != self.init_from:
            began = self.init_from or "fresh weights"
            raise ValueError(f"this run began from {began}, not from {asked.init_from}; leave --init-from out")
        if asked.decay_from != self.decay_from:
            began = self.decay_from or "no checkpoint"
            raise ValueError(f"this run was decayed from {began}, not from {asked.decay_from}; leave --decay-from out")
        # The lanes of a stream belong to its batch size; a run that decays from a checkpoint is there for this alone.
        lanes = ("batch_size",) if self.training.stream else ()
        decay = ("steps", "schedule", "decay_steps") if self.decay_from else ()
        for name in ("seq_len", "seed", "stream", "optimizer", *lanes, *decay):
            before, now = getattr(self.training, name), getattr(asked.training, name)
            if before != now:
                raise ValueError(f"this run has {name} {before}, not {now}; leave --{name.replace('_', '-')} out")


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
        self._held: tuple[int, int] | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; a dead process's lock vanishes with it. Raises ValueError where another run is live."""
        lock, made = self.path / ".lock", not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"{self.path} is in use by another live run, {{}}; wait for it or name another --out"
        with exclusive_lock(lock, busy):
            self._held = _identity(lock)
            for directory in (self.path, self.path / "checkpoints"):
                remove_named(directory, _UNFINISHED)
            try:
                yield
            except BaseException:  # Ctrl-C among them, and it goes on
                # A run that could not begin leaves nothing: seen while the lock is held, for all is another's after it.
                if made and not self.is_lost() and {*self.path.iterdir()} <= {lock}:
                    with suppress(OSError):
                        lock.unlink()
                        self.path.rmdir()
                raise
            finally:
                self._held = None

    def is_lost(self) -> bool:
        """Whether the locked directory lies here no more: moved or removed, another one in its place perhaps."""
        try:
            return self._held is not None and self._held != _identity(self.path / ".lock")
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            # Of a disk that does not answer now, what is written next will tell.
            return False

    def require_held(self) -> None:
        """Raises ValueError where the locked directory lies here no more: what does may be another run's."""
        if self.is_lost():
            raise ValueError(
                f"{self.path}, or its file .lock, was moved or removed while this run was in it, and nothing more is "
                "written there; move it back and add --resume, or name another --out"
            )

    @contextmanager
    def explaining(self, path: Path) -> Iterator[None]:
        """Around what writes a file or directory of the run.

        Raises:
            ValueError: it cannot be written, for the directory lies here no more.
            OSError: it cannot be written; the message names it, and where to go on from.
        """
        try:
            yield
        except OSError as error:
            self.require_held()
            known = error.errno and error.strerror
            why = os_error_message(OSError(error.errno, error.strerror, str(path))) if known else f"{path}: {error}"
            raise OSError(f"{why}; {self.last_good()}; add --resume to carry on") from error

    def require_files(self) -> None:
        """Raises ValueError where what a run has is a link to what is not there now, or in its place is not a run's.

        A disk that is not mounted is no run without checkpoints, and a picture without a run is its owner's.
        """
        for path in (self.path, *(self.path / name for name in ("checkpoints", "config.json", "metrics.jsonl"))):
            require_no_broken_link(path)
        if not self.exists() and os.path.lexists(picture := self.path / "loss.png"):
            raise ValueError(f"{picture} is there already, without a run; move it away or name another --out")

    def exists(self) -> bool:
        """Whether a run has started here, or what is left of one lies here."""
        names = ("config.json", "metrics.jsonl")
        return any((self.path / name).exists() for name in names) or bool(list_checkpoints(self.path))

    def settings(self) -> Settings:
        """RUN/config.json; raises ValueError where it is damaged, PermissionError where it may not be read."""
        try:
            stored = json.loads(read_utf8(self.path / "config.json"))
            model, training = config_from_json(stored["model"]), training_from_json(stored["training"])
            # Earlier versions wrote this entry as `habits`, without a choice of `compile`, and no origins.
            kept = stored["execution"] if "execution" in stored else stored["habits"]
            execution = ExecutionConfig(**known_fields(ExecutionConfig, {"compile": None, **kept}))
            origins = {name: stored.get(name) and str(stored[name]) for name in ("init_from", "decay_from")}
            return Settings(model, training, execution, stored["data"], **origins)
        except PermissionError:
            raise
        except (OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"{self.path / 'config.json'} is damaged ({error}); restore it or start anew") from error

    def write_settings(self, settings: Settings) -> None:
        """Write RUN/config.json."""
        path = self.path / "config.json"
        self.require_held()
        with self.explaining(path), new_file(path) as temporary:
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
        path = self.checkpoint_path(checkpoint.state["step"])
        self.require_held()
        with self.explaining(path):
            write_checkpoint(path, checkpoint)
        self.drop_old(checkpoint.state.get("best"), keep)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.path / "checkpoints" / _name(step)

    def drop_old(self, best: BestCheckpoint | None, keep: int) -> None:
        """Remove the checkpoints beyond the newest `keep` and the best."""
        self.require_held()
        kept = None if best is None else _name(best["step"])
        for old in list_checkpoints(self.path)[:-keep]:
            if old.name != kept:
                # A kill between the two leaves no half of a checkpoint under a valid name.
                doomed = old.with_name(TEMPORARY_PREFIX + old.name)
                old.rename(doomed)
                if not remove(doomed):
                    print(f"{doomed} is another's, and was not removed; let its owner do that", file=sys.stderr)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl that can be read; a kill can leave the last one torn."""
        return [entry for entry, _ in self._metrics_lines() if entry is not None]

    def _metrics_lines(self) -> Iterator[tuple[dict[str, Any] | None, bytes]]:
        """Each line's content, None where it cannot be read, and the line itself."""
        path = self.path / "metrics.jsonl"
        for line in io.BytesIO(path.read_bytes() if path.is_file() else b""):
            yield _metrics_entry(line), line

    def cut_metrics(self, step: int) -> None:
        """Forget what came after `step`, which will be computed again, and a torn last line; all else stays."""
        kept, lines = True, list[bytes]()
        for entry, line in self._metrics_lines():
            # Somebody may mend by hand what cannot be read; it stays where the line before it does.
            kept = entry["step"] <= step if entry is not None else kept and line.endswith(b"\n")
            lines += [line.removesuffix(b"\n") + b"\n"] if kept else []
        path = self.path / "metrics.jsonl"
        self.require_held()
        with self.explaining(path), new_file(path) as temporary:
            temporary.write_bytes(b"".join(lines))

    @contextmanager
    def metrics_writer(self, step: int) -> Iterator[Callable[[MetricsLine], None]]:
        """A function that appends one object to metrics.jsonl, a line at a time.

        Args:
            step: that this segment goes on from.
        """
        path = self.path / "metrics.jsonl"
        self.require_held()
        events = event_writer(self.path / "tensorboard", step) if self.tensorboard else nullcontext()
        # Without a buffer: what a full disk has refused is not tried again at the end, in place of the first error.
        with path.open("ab", buffering=0) as file, events as show:

            def write(line: MetricsLine) -> None:
                content = json.dumps(line).encode() + b"\n"
                with self.explaining(path):
                    while content:
                        content = content[file.write(content) :]
                if show is not None:
                    show(line)

            yield write
            with self.explaining(path):
                os.fsync(file.fileno())


def _metrics_entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line.decode(errors="replace"))
        return {**entry, "step": int(entry["step"])}
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


def _identity(path: Path) -> tuple[int, int]:
    """What tells a file that is open from any other that takes its name."""
    status = path.lstat()
    return status.st_dev, status.st_ino
