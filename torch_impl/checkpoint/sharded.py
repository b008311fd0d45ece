"""Checkpoints of which every process writes and reads its part. Twin: jax_impl. Truth: spec/checkpoint/sharded.py."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from torch_impl.training.distributed import ParallelContext, to_local

# One process is meant to write alone, and a warning from DCP's thread would stand among the lines of progress.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)

try:
    from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
except ImportError:
    HuggingFaceStorageReader: Any = None
    HuggingFaceStorageWriter: Any = None


class AsyncSave:
    """Shards that are being written while training goes on.

    Args:
        tensors: by name, of this process; copied at once.
        directory: to write into; the same for every process.
        context: the processes of the run.

    Raises:
        NotImplementedError: this PyTorch cannot write shards as safetensors files.
    """

    def __init__(self, tensors: Mapping[str, Tensor], directory: Path, context: ParallelContext):
        require_safetensors()
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        alone = context.group is None
        future = dcp.async_save(dict(tensors), storage_writer=writer, process_group=context.saving_group, no_dist=alone)
        assert isinstance(future, Future), "DCP answers with one future where it stages by itself"
        self._future: Future[Any] = future

    def done(self) -> bool:
        """Whether this process has written its part."""
        return self._future.done()

    def result(self) -> None:
        try:
            self._future.result()
        except CheckpointException as error:
            raise OSError(f"a part of the checkpoint was not written: {_cause(error)}") from error


def read_shards(tensors: dict[str, Tensor], directory: Path, context: ParallelContext) -> None:
    """Fill each tensor, or this process's part of it, from the shards of any number of processes.

    Raises:
        ValueError: a tensor is missing, misshapen or not finite.
        NotImplementedError: this PyTorch cannot read shards that are safetensors files.
    """
    require_safetensors()
    reader = HuggingFaceStorageReader(str(directory))
    try:
        dcp.load(tensors, storage_reader=reader, process_group=context.saving_group, no_dist=context.group is None)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint {directory}: {_cause(error)}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(to_local(tensor)).all():
            raise ValueError(f"checkpoint {directory}: tensor {name} holds a value that is not finite")


def _cause(error: BaseException) -> BaseException:
    """What went wrong in the first of the processes that failed."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def require_safetensors() -> None:
    """Raises NotImplementedError where this PyTorch writes shards only with pickled metadata."""
    if HuggingFaceStorageWriter is None:
        raise NotImplementedError(
            f"sharded checkpoints need a newer torch than {torch.__version__}; use --checkpoint-format neutral"
        )
