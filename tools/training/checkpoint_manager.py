"""How a run's checkpoints are written: whole by the first process, or by every process its part, while steps go on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from spec.checkpoint.checksums import checksums, file_sha256, files_below, sha256
from spec.checkpoint.files import new_directory, require_utf8
from spec.checkpoint.format import Checkpoint, files_beside
from spec.config import ModelConfig
from spec.runtime.engine import Engine, PendingSave
from tools.cli import backends
from tools.training.records import TrainerState
from tools.training.run_dir import RunDir

CheckpointFormat = Literal["neutral", "dcp", "orbax"]
OWN_FORMAT: dict[str, CheckpointFormat] = {"torch": "dcp", "jax": "orbax"}
"""In which each process of a backend writes and reads its part."""


class CheckpointManager:
    """Checkpoints in the neutral format, each whole before the next step.

    Every process of the run calls every method.

    Args:
        run: the RUN directory, which the first process has locked.
        engine: of the backend.
        keep: checkpoints to keep, besides the best.
    """

    def __init__(self, run: RunDir, engine: Engine[Any], keep: int):
        self.run, self.engine, self.context, self.keep = run, engine, engine.context, keep
        self.first_process = self.context.rank == 0

    def save(self, config: ModelConfig, state: TrainerState, tokenizer: str) -> None:
        """Write a checkpoint of the engine as it is now.

        Raises:
            OSError: the disk is full or not writable; the earlier checkpoints are whole.
        """
        (parameters, moments), states = self.engine.dump(), self.engine.dump_states()
        with self.context.raise_together():
            if self.first_process:
                self.run.save(Checkpoint(config, parameters, moments, state, tokenizer, states), self.keep)

    def poll(self) -> None:
        """Between steps: let a checkpoint that is being written appear where all of it is there."""

    def finish(self) -> None:
        """Wait until every checkpoint has appeared."""


class ShardedCheckpointManager(CheckpointManager):
    """Sharded checkpoints (spec/checkpoint/sharded.py): copied at once, written while the next steps are made."""

    def __init__(self, run: RunDir, engine: Engine[Any], keep: int):
        super().__init__(run, engine, keep)
        self.pending: PendingSave | None = None

    def save(self, config: ModelConfig, state: TrainerState, tokenizer: str) -> None:
        """Begin to write a checkpoint of the engine as it is now; errors of writing it come with `finish`."""
        self.finish()
        self.state, self.unfinished = state, ExitStack()
        self.beside = files_beside(Checkpoint(config, {}, {}, state, tokenizer, self.engine.dump_states()))
        self.directory: Path = self.context.broadcast(self._make_directory)
        self.pending = self.engine.save_shards(self.directory)

    def _make_directory(self) -> Path:
        self.run.require_held()
        with self.run.explaining(self._target()):
            return self.unfinished.enter_context(new_directory(self._target()))

    def _target(self) -> Path:
        return self.run.checkpoint_path(self.state["step"])

    def poll(self) -> None:
        if self.pending is not None and not self.context.any(not self.pending.done()):
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint has appeared, whole.

        Raises:
            OSError: the disk is full or not writable; the earlier checkpoints are whole.
            ValueError: the processes do not see one file system.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        with self.unfinished:
            with self.context.raise_together(), self.run.explaining(self._target()):
                pending.result()
            names = self.context.broadcast(lambda: sorted(files_below(self.directory)))
            with self.context.raise_together(), self.run.explaining(self._target()):
                own = self._own_digests(names)
            sums = {name: digest for part in self.context.all_gather(own) for name, digest in part.items()}
            with self.context.raise_together():
                if self.first_process:
                    self._complete(sums)

    def _own_digests(self, names: list[str]) -> dict[str, str]:
        """Hashing, too, is spread over all processes."""
        if not files_below(self.directory).keys() <= {*names}:
            raise ValueError(f"{self.directory} is not the same directory in every process; share a file system")
        return {name: file_sha256(self.directory / name) for name in names[self.context.rank :: self.context.size]}

    def _complete(self, sums: dict[str, str]) -> None:
        self.run.require_held()
        with self.run.explaining(self._target()):
            for name, content in self.beside.items():
                (self.directory / name).write_bytes(content)
                sums[name] = sha256(content)
            (self.directory / "SHA256SUMS").write_bytes(checksums(sums))
            # Here, where a disk that is full now still makes all processes fail together.
            self.unfinished.close()
        self.run.drop_old(self.state["best"], self.keep)


def require_format(backend: backends.Backend, format: CheckpointFormat, out: Path) -> None:
    """Raises ValueError or NotImplementedError for a format that a backend does not write here, or not to `out`."""
    if format not in ("neutral", own := OWN_FORMAT[backend]):
        other = {"dcp": "PyTorch's", "orbax": "JAX's"}[format]
        raise ValueError(f"--checkpoint-format {format} is {other}; {backend} reads it, and writes neutral or {own}")
    if format != "neutral":
        sharded = backends.load(backend, "checkpoint.sharded")
        (sharded.require_orbax if format == "orbax" else sharded.require_safetensors)()
    if format == "orbax":
        require_utf8(out, "Orbax")


def make_checkpoint_manager(format: CheckpointFormat, run: RunDir, engine: Engine[Any], keep: int) -> CheckpointManager:
    """The checkpoint manager of a format."""
    return (CheckpointManager if format == "neutral" else ShardedCheckpointManager)(run, engine, keep)
