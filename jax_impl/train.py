"""The training engine. Twin: torch_impl/train.py. Truth: spec/optimizer.py and spec/data.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax import nnx
from jaxtyping import Array

from jax_impl.checkpoint import dump_parameters, load_parameters, named_parameters, to_numpy
from jax_impl.data import to_device
from jax_impl.generate import make_step
from jax_impl.layers import accumulate_dtype
from jax_impl.model import LanguageModel, build, choose_method
from jax_impl.optimizer import clip_by_global_norm, dump_moments, load_moments, make_optimizer
from jax_impl.parallel import World
from spec.config import ModelConfig, TrainingConfig, require_integer
from spec.data import IGNORED_LABEL, Batch
from spec.sampling import Step


class Engine:
    """What the trainer shell needs of a backend: init, step, evaluate, load, dump.

    Args:
        config: the model.
        training: the run.
        method: mixer method.
        remat: make activations again in the backward pass.
        compile: the whole step, which JAX always does.
        micro_batch: rows taken at a time, their gradients added up; None takes all.
        world: the processes of the run; None is this one alone.

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
        world: World | None = None,
    ):
        if not compile:
            raise ValueError("JAX always compiles its steps; leave --no-compile out, or train with torch")
        if micro_batch is not None:
            require_integer("micro_batch", micro_batch, 1)
        self.config, self.training, self.micro_batch, self.world = config, training, micro_batch, world or World()
        self.method = choose_method(config, training.batch_size, training.seq_len) if method == "auto" else method
        options = {"seed": training.seed, "compute_dtype": training.compute_dtype, "method": method, "remat": remat}
        self.model = build(config, **options)
        self.optimizer = make_optimizer(config, training)
        self._take(named_parameters(self.model))
        self.optimizer_state = self.optimizer.init(self.parameters)
        self.states: Array | None = None
        graph, variables = nnx.split(self.model, nnx.Param)

        def loss_of(parameters, batch, states):
            state = nnx.map_state(
                lambda path, variable: variable.replace(parameters[".".join(map(str, path))]), variables
            )
            noise_btln = batch["noise"]
            noise = None if noise_btln is None else noise_btln.transpose(2, 0, 1, 3)
            return nnx.merge(graph, state).loss(**{**batch, "noise": noise}, states=states)

        gradients_of = _in_micro_batches(jax.value_and_grad(loss_of, has_aux=True), micro_batch)

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(parameters, optimizer_state, states, batch, lr):
            (loss, last), gradients = gradients_of(parameters, batch, states)
            gradients, norm = clip_by_global_norm(gradients, training.grad_clip)
            steps, new_state = self.optimizer.update(gradients, optimizer_state, parameters)
            new_parameters = jax.tree.map(lambda parameter, step: parameter - lr * step, parameters, steps)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            made = new_parameters, new_state, None if states is None else last
            kept = jax.tree.map(partial(jnp.where, finite), made, (parameters, optimizer_state, states))
            return *kept, loss, norm

        self._update = update
        self._loss = jax.jit(loss_of)

    def train_step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the gradient norm before clipping.

        Where the run streams each row goes on from the state in which the step before left it; no gradient goes back
        there. Where loss or norm is not finite everything is left as it was.

        Args:
            batch: the global batch.
            lr: learning rate of the step.
        """
        if self.training.stream and self.states is None:
            shape = (self.config.n_layers, len(batch.tokens), self.config.d_state)
            self.states = jnp.zeros(shape, accumulate_dtype(self.training.compute_dtype))
        states = self.states if self.training.stream else None
        self.parameters, self.optimizer_state, self.states, loss, norm = self._update(
            self.parameters, self.optimizer_state, states, to_device(batch), lr
        )
        return float(loss), float(norm)

    def evaluate(self, batch: Batch, states: Array | None = None) -> tuple[float, Array]:
        """Mean nats a counted label, each row from `states`, and the final states.

        Args:
            batch: tokens, labels and resets.
            states: [l, b, n], as an evaluation before gave them; None is zero.
        """
        loss, last = self._loss(self.parameters, to_device(batch), states)
        return float(loss), last

    def load(self, parameters: dict[str, np.ndarray], moments: dict[str, dict[str, np.ndarray]], step: int) -> None:
        """Take over parameters and, where there are any, moments after `step` steps."""
        load_parameters(self.model, parameters)
        self._take(named_parameters(self.model))
        if moments:
            self.optimizer_state = load_moments(self.optimizer_state, moments, step)

    def dump(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Parameters and moments as NumPy."""
        return dump_parameters(self._current()), dump_moments(self.optimizer_state)

    def dump_states(self) -> np.ndarray | None:
        """The carried states [l, b, n], or None where there are none."""
        return None if self.states is None else to_numpy(self.states)

    def load_states(self, states: np.ndarray | None) -> None:
        """Go on from carried states [l, b, n]; None is zero."""
        dtype = accumulate_dtype(self.training.compute_dtype)
        self.states = None if states is None else jnp.array(states, dtype)

    def extra_state(self) -> dict[str, Any]:
        """What else a checkpoint's state.json needs for the next step to repeat its bits."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `extra_state` gave, from the whole of state.json; what is not there stays as it is."""

    def sampler(self) -> Step:
        """The current model as a step of generation."""
        return make_step(self._current())

    def environment(self) -> dict[str, Any]:
        """What bit-exact resume depends on besides the checkpoint."""
        versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "numpy": np.__version__}
        threads = len(os.sched_getaffinity(0))
        how = {"method": self.method, "layout": self.layout()}
        return {**versions, "device": jax.devices()[0].device_kind, "threads": threads, **how}

    def layout(self) -> str:
        """Who computes what: in another layout the same mathematics is summed in another order."""
        rows = "" if self.micro_batch is None else f", {self.micro_batch} rows at a time"
        return f"1 process{rows}"

    @contextmanager
    def profile(self, directory: Path) -> Iterator[None]:
        """Write a trace of what runs inside to the directory, as XProf and Perfetto read it."""
        with jax.profiler.trace(directory):
            yield

    def _take(self, variables: dict[str, nnx.Param]) -> None:
        """The step donates its parameters: they are a pure dict of the engine's own, never the model's arrays."""
        self.parameters = {path: jnp.array(variable[...], copy=True) for path, variable in variables.items()}

    def _current(self) -> LanguageModel:
        for path, variable in named_parameters(self.model).items():
            variable[...] = jnp.array(self.parameters[path], copy=True)
        return self.model


_FILL = {"labels": IGNORED_LABEL}


def _in_micro_batches(gradients_of: Callable[..., Any], size: int | None) -> Callable[..., Any]:
    """`gradients_of` for `size` rows at a time, as if for all of them; a batch of no more rows than that stays whole.

    loss = sum_m loss_m n_m / n over micro-batches m of n_m counted labels, n in all, and so are the gradients.
    """
    if size is None:
        return gradients_of

    def of_all(parameters, batch, states):
        rows = len(batch["tokens"])
        if rows <= size:
            return gradients_of(parameters, batch, states)
        count = jnp.maximum((batch["labels"] != IGNORED_LABEL).sum(), 1)

        def cut(array, fill=0):
            widths = ((0, -rows % size), *((0, 0) for _ in array.shape[1:]))
            return jnp.pad(array, widths, constant_values=fill).reshape(-1, size, *array.shape[1:])

        def add(total, part):
            of_part, states_bld = part
            states_lbd = None if states_bld is None else states_bld.swapaxes(0, 1)
            (loss, last), gradients = gradients_of(parameters, of_part, states_lbd)
            weight = (of_part["labels"] != IGNORED_LABEL).sum().astype(loss.dtype) / count
            total = jax.tree.map(lambda so_far, more: so_far + weight * more, total, (loss, gradients))
            return total, last.swapaxes(0, 1)

        zero = jax.tree.map(jnp.zeros_like, parameters)
        parts = {name: None if x is None else cut(x, _FILL.get(name, 0)) for name, x in batch.items()}
        states_bld = None if states is None else cut(states.swapaxes(0, 1))
        total = jnp.zeros((), next(iter(zero.values())).dtype), zero
        (loss, gradients), last = jax.lax.scan(add, total, (parts, states_bld))
        return (loss, last.reshape(-1, *last.shape[2:])[:rows].swapaxes(0, 1)), gradients

    return of_all


if __name__ == "__main__":
    from tools.cli import main

    main(["train", "jax", *sys.argv[1:]])
