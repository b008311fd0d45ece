"""The RUN directory: lock, settings, metrics and checkpoints, whole at every instant."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spec.checkpoint import Checkpoint, list_checkpoints, read_checkpoint, write_checkpoint
from spec.config import LiquidNetConfig, TrainingConfig, config_from_json, config_to_json, training_from_json
from spec.data import Dataset
from spec.files import new_file, remove_unfinished


@dataclass(frozen=True)
class Settings:
    """What a run is: kept in RUN/config.json, so that a later leg needs only --data, --out and --resume."""

    model: LiquidNetConfig
    training: TrainingConfig
    data: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"model": config_to_json(self.model), "training": asdict(self.training), "data": self.data}


def data_identity(data: Dataset) -> dict[str, str]:
    """The checksums that tell one prepared data set from another."""
    return {part: data.meta[part]["sha256"] for part in ("train", "val")} | {"tokenizer": data.meta["tokenizer_sha256"]}


class Run:
    """An open RUN directory; only one process has it at a time.

    Args:
        path: the directory.
        keep: checkpoints to keep, besides the best.
    """

    def __init__(self, path: Path, keep: int = 3):
        self.path = path
        self.keep = keep

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; a dead process's lock vanishes with it. Raises ValueError where another run is live."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{self.path} is in use by another live run; wait for it or name another --out"
                ) from error
            remove_unfinished(self.path)
            remove_unfinished(self.path / "checkpoints")
            yield

    def exists(self) -> bool:
        """Whether a run has started here."""
        return (self.path / "config.json").is_file()

    def settings(self) -> Settings:
        """RUN/config.json; raises ValueError where it is damaged."""
        try:
            stored = json.loads((self.path / "config.json").read_text())
            return Settings(config_from_json(stored["model"]), training_from_json(stored["training"]), stored["data"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path / 'config.json'} is damaged ({error}); restore it or start anew") from error

    def write_settings(self, settings: Settings) -> None:
        with new_file(self.path / "config.json") as temporary:
            temporary.write_text(json.dumps(settings.to_json(), indent=1) + "\n")

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint; None where there is none; ValueError where it is damaged."""
        found = list_checkpoints(self.path)
        return read_checkpoint(found[-1]) if found else None

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then drop those beyond the newest `keep` and the best."""
        target = self.path / "checkpoints" / f"step_{checkpoint.state['step']:08d}"
        write_checkpoint(target, checkpoint)
        best = checkpoint.state.get("best") or {}
        for old in list_checkpoints(self.path)[: -self.keep]:
            if old.name != f"step_{best.get('step', -1):08d}":
                shutil.rmtree(old)
        return target

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl; a kill can leave the last one torn."""
        if not (self.path / "metrics.jsonl").is_file():
            return []
        lines = []
        for line in (self.path / "metrics.jsonl").read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    def cut_metrics(self, step: int) -> None:
        """Forget what came after `step`: it will be computed again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with new_file(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))

    @contextmanager
    def metrics_writer(self) -> Iterator[Any]:
        """A function that appends one object to metrics.jsonl, a line at a time."""
        with (self.path / "metrics.jsonl").open("a", buffering=1) as file:
            yield lambda line: file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
