"""The training engine. Twin: jax_impl. Truth: spec/optimizer.py and spec/data.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spec.checkpoint.sharded import named_arrays
from spec.checkpoint.tensors import Arrays
from spec.config import ModelConfig, TrainingConfig, require_integer
from spec.data import Batch, BatchShard, check_batch
from spec.inputs import IGNORED_LABEL
from spec.mixers import family
from spec.runtime.engine import ExtraState, Moments
from spec.runtime.memory import keep_freed_memory
from spec.sampling import Step
from torch_impl.checkpoint.native import dump_parameters, from_numpy, load_parameters, named_parameters, to_numpy
from torch_impl.mixers import capabilities
from torch_impl.model import build, choose_method
from torch_impl.ops.decode import make_step
from torch_impl.ops.devices import default_device
from torch_impl.ops.matmul import libraries
from torch_impl.ops.scan.context_parallel import time_sharded
from torch_impl.training.data import to_device
from torch_impl.training.distributed import ParallelContext, gradient_sync, replicate, reshard, shard
from torch_impl.training.optimizer import (
    clip_by_global_norm,
    dump_moments,
    load_moments,
    make_optimizer,
    named_moments,
    set_steps,
)

if TYPE_CHECKING:
    from spec.runtime import engine as runtime
    from torch_impl.checkpoint.sharded import AsyncSave

MIN_GRAD_SCALE = 1.0
"""Gradients that overflow although they are scaled by no more than this are not finite."""

_MAX_GRAD_SCALE = 2.0**127


class Engine:
    """The training engine of PyTorch; spec/runtime/engine.py says what its methods promise.

    Args:
        config, training, method, remat, micro_batch, context: as there.
        compile: compile the loss and its gradient, without a graph break; evaluation and optimizer stay as they are.

    Raises:
        ValueError: a process would be left without work, or `compile` where processes share a row; either of the two
            where the mixer is not capable of it.
    """

    name = "torch"

    def __init__(
        self,
        config: ModelConfig,
        training: TrainingConfig,
        method: str = "auto",
        remat: bool = False,
        compile: bool = False,
        micro_batch: int | None = None,
        context: ParallelContext | None = None,
    ):
        keep_freed_memory()
        self.device, self.context = default_device(), context or ParallelContext()
        self.states: Tensor | None = None
        self.training, self.compile, self.micro_batch = training, compile, micro_batch
        _require_work(config, training, micro_batch, self.context, compile)
        self.method = choose_method(config, training.batch_size, training.seq_len) if method == "auto" else method
        options = {"seed": training.seed, "compute_dtype": training.compute_dtype, "method": method, "remat": remat}
        self.model = build(config, **options)
        self._loss = self._distributed()
        self.optimizer = make_optimizer(self.model, training, self.context)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.compute_dtype == "float16")
        if self.context.size > 1:
            self._settle_buckets()

    def _distributed(self) -> Any:
        """Put the model where it is trained; its loss, as every process calls it."""
        # Training batches have few shapes: nothing is gained by a program that takes others too.
        whole: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        if self.context.sharded and self.context.size > 1:
            if self.compile:
                for block in self.model.blocks:
                    block.compile(**whole)
            return shard(self.model, self.context).loss
        self.model.to(self.device)
        loss = torch.compile(self.model.loss, **whole) if self.compile else self.model.loss
        return loss if self.context.size == 1 else replicate(self.model, loss, self.context)

    def _settle_buckets(self) -> None:
        """DDP orders its buckets anew after its first pass: from here on all steps of all segments sum in one order."""
        zeros = np.zeros((self.training.batch_size, self.training.seq_len), np.int32)
        self._gradients(Batch(zeros, zeros, zeros > 0).part(self.context.shard))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update(self.scaler.get_scale())

    def train_step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the global gradient norm before clipping.

        Where either is not finite, parameters, moments and states stay as they were. In float16 a step whose gradients
        overflow is made again at half the scale: what it does depends on weights, batch and scale alone, and every step
        counts.
        """
        check_batch(batch, self.model.config)
        while True:
            loss, norm, states = self._gradients(batch)
            if np.isfinite(loss) and np.isfinite(norm):
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.optimizer.step()
                self.scaler.update()
                self.states = states if self.training.stream else None
                return loss, norm
            scale = self.scaler.get_scale()
            if not self.scaler.is_enabled() or not np.isfinite(loss) or scale <= MIN_GRAD_SCALE:
                return loss, norm
            # By the norm, which is everyone's: a process may have a part of the gradients that overflows alone.
            self.scaler.update(scale * self.scaler.get_backoff_factor())
            self.scaler.load_state_dict({**self.scaler.state_dict(), "_growth_tracker": 0})

    def _gradients(self, batch: Batch) -> tuple[float, float, Tensor]:
        """Leave clipped gradients with the parameters; the loss, the norm before clipping, and the last states."""
        counted = max(1.0, self.context.total(_counted_labels(batch)))
        self.optimizer.zero_grad(set_to_none=True)
        loss, last_states = torch.zeros((), dtype=torch.float32, device=self.device), []
        rows = len(batch.tokens)
        pieces = min(rows, _num_micro_batches(self.training, self.micro_batch, self.context))
        cuts = [BatchShard(i, pieces) for i in range(pieces)]
        parts = [batch.part(cut) for cut in cuts]
        states = [None if self.states is None else self.states[:, cut.of_rows(rows)] for cut in cuts]
        with time_sharded(self.context.sequence_group):
            for part, state in zip(parts, states, strict=True):
                with gradient_sync(self.model, self._loss, last=part is parts[-1]):
                    mean, last = self._loss(**to_device(part, self.device, self.model.config), states=state)
                    nats = mean * (_counted_labels(part) / counted)
                    self.scaler.scale(nats).backward()
                loss, last_states = loss + nats.detach(), [*last_states, last.detach()]
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = clip_by_global_norm(gradients, self.training.grad_clip)
        # The one time a step that the host waits for the device.
        numbers = torch.stack([self.context.all_reduce(loss), norm]).tolist()
        return numbers[0], numbers[1], torch.cat(last_states, dim=1)

    # Not inference_mode: FSDP gathers parameters for the next step too.
    @torch.no_grad()
    def evaluate(self, batch: Batch, states: Tensor | None = None) -> tuple[float, Tensor]:
        check_batch(batch, self.model.config)
        with time_sharded(self.context.sequence_group):
            loss, states = self.model.loss(**to_device(batch, self.device, self.model.config), states=states)
        reshard(self.model)
        return loss.item(), states

    def load(self, parameters: Arrays, moments: Moments, step: int) -> None:
        load_parameters(self.model, parameters)
        if moments:
            load_moments(self.model, self.optimizer, moments, step)

    def dump(self) -> tuple[Arrays, Moments]:
        return dump_parameters(self.model), dump_moments(self.model, self.optimizer)

    def dump_states(self) -> np.ndarray | None:
        if self.states is None:
            return None
        rows = self.context.all_gather(self.states.cpu())
        # Processes that share a row have the same states.
        return to_numpy(torch.cat(rows[:: self.context.shard.columns], dim=1))

    def load_states(self, states: np.ndarray | None) -> None:
        rows = self.context.shard.of_rows(self.training.batch_size)
        self.states = None if states is None else from_numpy(states[:, rows]).to(self.device)

    def save_shards(self, directory: Path) -> AsyncSave:
        from torch_impl.checkpoint.sharded import AsyncSave

        return AsyncSave(self._shards(), directory, self.context)

    def load_shards(self, directory: Path, step: int) -> None:
        from torch_impl.checkpoint.sharded import read_shards

        read_shards(self._shards(), directory, self.context)
        set_steps(self.optimizer, step)

    def _shards(self) -> dict[str, Tensor]:
        parameters = {path: parameter.detach() for path, parameter in named_parameters(self.model).items()}
        return named_arrays(parameters, named_moments(self.model, self.optimizer))

    def extra_state(self) -> ExtraState:
        return {"grad_scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        stored = state.get("grad_scaler")
        if not self.scaler.is_enabled() or stored is None:
            return
        usual = self.scaler.state_dict()
        numbers = isinstance(stored, dict) and stored.keys() == usual.keys()
        if not numbers or not all(
            type(stored[name]) in (int, float) and 0 <= stored[name] <= _MAX_GRAD_SCALE for name in usual
        ):
            raise ValueError(f"state.json: grad_scaler needs a number each for {', '.join(usual)}, got {stored!r}")
        self.scaler.load_state_dict(stored)

    def sampler(self) -> Step:
        """The current model as a step of generation; where processes have parts of it, in the first one alone."""
        if not self.context.sharded:
            return make_step(self.model)
        parameters = dump_parameters(self.model)
        replica = build(self.model.config, compute_dtype=self.training.compute_dtype)
        if self.context.rank == 0:
            load_parameters(replica, parameters)
        # On the host, where there may be room for all of it.
        return make_step(replica)

    def environment(self) -> dict[str, str | int | bool]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "torch": torch.__version__.split("+")[0],
            "numpy": np.__version__,
            "device": name,
            "threads": torch.get_num_threads(),
            "method": self.method,
            "compile": self.compile,
            "layout": self.layout(),
            **libraries(self.device),
        }

    def layout(self) -> str:
        size, columns = self.context.size, self.context.shard.columns
        parts = ["1 process" if size == 1 else f"{size} processes, {'fsdp' if self.context.sharded else 'ddp'}"]
        parts += [f"{columns} a row"] * (columns > 1)
        parts += [f"{self.micro_batch} rows at a time"] * (self.micro_batch is not None)
        return ", ".join(parts)

    @contextmanager
    def profile(self, directory: Path) -> Iterator[None]:
        """Write a trace of what runs inside to the directory, as Chrome and Perfetto read it."""
        with torch.profiler.profile() as profiler:
            yield
        directory.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(directory / "trace.json"))


if TYPE_CHECKING:  # so that the type checker compares every signature
    _: type[runtime.Engine[Tensor]] = Engine


def _num_micro_batches(training: TrainingConfig, micro_batch: int | None, context: ParallelContext) -> int:
    """How many micro-batches a step has: as many in each process, since FSDP gathers for all of them together."""
    return 1 if micro_batch is None else -(-training.batch_size // (context.shard.rows * micro_batch))


def _counted_labels(batch: Batch) -> int:
    return int((batch.labels != IGNORED_LABEL).sum())


def _require_work(
    config: ModelConfig, training: TrainingConfig, micro_batch: int | None, context: ParallelContext, compile: bool
) -> None:
    able = capabilities(config)
    if (compile and not able.compile) or (context.shard.columns > 1 and not able.context_parallel):
        own = family(config)
        named = f"{own.article} {own.title}"
        raise ValueError(f"{named} is neither compiled nor cut in time; leave out --compile and --context-parallel")
    if micro_batch is not None:
        require_integer("micro_batch", micro_batch, 1)
    for name, count in (("batch_size", context.shard.rows), ("seq_len", context.shard.columns)):
        if getattr(training, name) < count:
            raise ValueError(
                f"{name} {getattr(training, name)} leaves some of {count} processes without work; "
                f"raise --{name.replace('_', '-')} or start fewer"
            )
    fewest = training.batch_size // context.shard.rows
    if context.sharded and _num_micro_batches(training, micro_batch, context) > fewest:
        raise ValueError(
            f"fsdp cannot cut the {fewest} rows of one process into as many micro-batches of {micro_batch} as another "
            f"has; give a --batch-size that is a multiple of {context.shard.rows}"
        )
    if compile and context.shard.columns > 1:
        raise ValueError("--context-parallel does not go with a compiled step so far; add --no-compile")
