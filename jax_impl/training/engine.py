"""The training engine. Twin: torch_impl. Truth: spec/optimizer.py and spec/data.py."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jaxlib
import numpy as np
from flax import nnx
from jaxtyping import Array

from jax_impl.layers import accumulate_dtype
from jax_impl.mixers import capabilities
from jax_impl.model import LanguageModel, build, choose_method
from jax_impl.ops.decode import make_step
from jax_impl.training.data import fill_rows, padded_rows, to_device
from jax_impl.training.distributed import AXES, ROWS, ParallelContext, put, to_host
from jax_impl.training.optimizer import dump_moments, load_moments, make_optimizer, named_moments, with_moments
from jax_impl.training.step import make_programs, with_parameters
from spec.checkpoint.sharded import PARAMETERS, by_kind, named_arrays
from spec.checkpoint.tensors import Arrays
from spec.config import ModelConfig, TrainingConfig, require_integer
from spec.data import Batch, BatchShard, check_batch
from spec.init import initial_parameters
from spec.mixers import family, state_shape
from spec.parameters import check_parameters
from spec.runtime.engine import ExtraState, Moments
from spec.runtime.memory import keep_freed_memory
from spec.sampling import Step

if TYPE_CHECKING:
    from jax_impl.checkpoint.sharded import AsyncSave
    from spec.runtime import engine as runtime


class Engine:
    """The training engine of JAX; spec/runtime/engine.py says what its methods promise.

    Args:
        config, training, method, remat, micro_batch, context: as there.
        compile: the whole step, which JAX always does.

    Raises:
        ValueError: `compile` is false, or `micro_batch` is no number of rows.
    """

    name = "jax"

    def __init__(
        self,
        config: ModelConfig,
        training: TrainingConfig,
        method: str = "auto",
        remat: bool = False,
        compile: bool = True,
        micro_batch: int | None = None,
        context: ParallelContext | None = None,
    ):
        if not compile:
            raise ValueError("JAX always compiles its steps; leave --no-compile out, or train with torch")
        if micro_batch is not None:
            require_integer("micro_batch", micro_batch, 1)
        # Before the first device is asked for: XLA's threads choose where they allocate when they start.
        keep_freed_memory()
        self.context = context or ParallelContext()
        self.config, self.training, self.micro_batch = config, training, micro_batch
        _require_work(config, training, self.context, method)
        self.method = choose_method(config, training.batch_size, training.seq_len) if method == "auto" else method
        options = {"seed": training.seed, "compute_dtype": training.compute_dtype, "method": method, "remat": remat}
        # Its graph alone: a device has room for its part of the parameters, and perhaps for no more.
        self.model: LanguageModel = nnx.eval_shape(lambda: build(config, **options))
        self.optimizer = make_optimizer(config, training, self.context)
        self._programs = make_programs(self.model, self.optimizer, training, self.context, micro_batch)
        self._set_parameters(initial_parameters(config, training.seed))
        like = jax.eval_shape(self.optimizer.init, self.parameters)
        self._set_moments(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like))
        self.states: Array | None = None

    def train_step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the global gradient norm before clipping.

        Where either is not finite, parameters, moments and states stay as they were. Where the run streams each row
        goes on from the state in which the step before left it; no gradient goes back there.
        """
        check_batch(batch, self.config)
        if self.training.stream and self.states is None:
            self.load_states(np.zeros(state_shape(self.config, self.training.batch_size)))
        states = self.states if self.training.stream else None
        self.parameters, self.optimizer_state, self.states, loss, norm = self._programs.update(
            self.parameters, self.optimizer_state, states, to_device(batch, self.context, self._rows_per_process()), lr
        )
        return float(loss), float(norm)

    def evaluate(self, batch: Batch, states: Array | None = None) -> tuple[float, Array]:
        check_batch(batch, self.config)
        rows = max(self.context.all_gather(len(batch.tokens)))
        loss, last = self._programs.loss(self.parameters, to_device(batch, self.context, rows), states)
        return float(loss), last

    def load(self, parameters: Arrays, moments: Moments, step: int) -> None:
        check_parameters(self.config, parameters)
        self._set_parameters(parameters)
        if moments:
            self._set_moments(load_moments(self.optimizer_state, moments, step))

    def dump(self) -> tuple[Arrays, Moments]:
        return {path: to_host(array) for path, array in self.parameters.items()}, dump_moments(self.optimizer_state)

    def dump_states(self) -> np.ndarray | None:
        if self.states is None:
            return None
        count, shard = self.training.batch_size, self.context.shard
        parts = np.split(to_host(self.states), shard.rows, axis=1)
        cuts = (BatchShard(row, shard.rows).of_rows(count) for row in range(shard.rows))
        return np.concatenate([part[:, : cut.stop - cut.start] for part, cut in zip(parts, cuts, strict=True)], axis=1)

    def load_states(self, states: np.ndarray | None) -> None:
        if states is None:
            self.states = None
            return
        count, shard = self.training.batch_size, self.context.shard
        filled = [
            fill_rows(states.swapaxes(0, 1)[BatchShard(row, shard.rows).of_rows(count)], self._rows_per_process(), 0)
            for row in range(shard.rows)
        ]
        array = np.concatenate(filled).swapaxes(0, 1).astype(accumulate_dtype(self.training.compute_dtype))
        self.states = put(array, self.context.sharding(None, ROWS))

    def save_shards(self, directory: Path) -> AsyncSave:
        from jax_impl.checkpoint.sharded import AsyncSave

        return AsyncSave(self._shards(), directory, self.context)

    def load_shards(self, directory: Path, step: int) -> None:
        from jax_impl.checkpoint.sharded import read_shards

        like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in self._shards().items()}
        groups = by_kind(read_shards(like, directory, self.context))
        self.parameters = groups.pop(PARAMETERS)
        self.optimizer_state = with_moments(self.optimizer_state, groups, put(np.int32(step), self.context.sharding()))

    def _shards(self) -> dict[str, Array]:
        return named_arrays(self.parameters, named_moments(self.optimizer_state))

    def extra_state(self) -> ExtraState:
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        pass

    def sampler(self) -> Step:
        """The current model as a step of generation; where devices have parts of it, on the host."""
        parameters = {path: to_host(array) for path, array in self.parameters.items()}
        place = _host() if self.context.sharded else jax.local_devices()[0]
        graph, variables = nnx.split(self.model, nnx.Param)
        return make_step(with_parameters(graph, variables, jax.device_put(parameters, place)))

    def environment(self) -> dict[str, str | int | bool]:
        return {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
            "device": jax.devices()[0].device_kind,
            "threads": len(os.sched_getaffinity(0)),
            "method": self.method,
            "layout": self.layout(),
        }

    def layout(self) -> str:
        size, devices = self.context.size, self.context.mesh.size
        parts = ["1 process" if size == 1 else f"{size} processes"]
        parts += [", ".join(f"{axis}={n}" for axis, n in zip(AXES, self.context.shape(), strict=True))] * (devices > 1)
        parts += [f"{self.micro_batch} rows at a time"] * (self.micro_batch is not None)
        return ", ".join(parts)

    @contextmanager
    def profile(self, directory: Path) -> Iterator[None]:
        """Write a trace of what runs inside to the directory, as XProf and Perfetto read it."""
        with jax.profiler.trace(directory):
            yield

    def _rows_per_process(self) -> int:
        """The rows that each process has in a step, filled up."""
        return padded_rows(-(-self.training.batch_size // self.context.shard.rows), self.context)

    def _set_parameters(self, arrays: Arrays) -> None:
        wide = accumulate_dtype(self.training.compute_dtype)
        self.parameters: dict[str, Array] = {
            path: put(np.asarray(arrays[path], wide), place) for path, place in self._programs.parameters.items()
        }

    def _set_moments(self, state: Any) -> None:
        self.optimizer_state = jax.tree.map(put, state, self._programs.optimizer_state)


if TYPE_CHECKING:  # so that the type checker compares every signature
    _: type[runtime.Engine[Array]] = Engine


def _host() -> Any:
    """The processor, or the first device where JAX was told to see no processor (JAX_PLATFORMS=tpu)."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def _require_work(config: ModelConfig, training: TrainingConfig, context: ParallelContext, method: str) -> None:
    columns = context.shape()[2]
    if columns > 1 and not capabilities(config).context_parallel:
        own = family(config)
        named = f"{own.article} {own.title}"
        raise ValueError(f"{named} is not cut in time; leave out --context-parallel, or sequence in --mesh")
    if method == "pallas" and columns > 1:
        raise ValueError("--method pallas has each row whole; leave it out, or leave out sequence in --mesh")
    if training.seq_len % columns:
        raise ValueError(f"seq_len {training.seq_len} is not a multiple of the {columns} devices that share a row")
    if training.batch_size < context.shard.rows:
        raise ValueError(
            f"batch_size {training.batch_size} leaves some of {context.shard.rows} processes without work; "
            "raise --batch-size or start fewer"
        )
