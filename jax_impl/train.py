"""The training engine. Twin: torch_impl/train.py. Truth: spec/optimizer.py and spec/data.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from flax import nnx

from jax_impl.checkpoint import dump_parameters, load_parameters, named_parameters
from jax_impl.data import to_device
from jax_impl.generate import make_step
from jax_impl.model import LiquidNet
from jax_impl.optimizer import clip_by_global_norm, dump_moments, load_moments, make_optimizer
from jax_impl.scan import choose_method
from spec.config import LiquidNetConfig, TrainingConfig
from spec.data import Batch
from spec.sampling import Step


class Engine:
    """What the trainer shell needs of a backend: init, step, evaluate, load, dump.

    Args:
        config: the model.
        training: the run.
        method: mixer method.
        remat: make activations again in the backward pass.
        compile: the whole step, which JAX always does.

    Raises:
        ValueError: `compile` is false.
    """

    name = "jax"

    def __init__(
        self,
        config: LiquidNetConfig,
        training: TrainingConfig,
        method: str = "auto",
        remat: bool = False,
        compile: bool = True,
    ):
        if not compile:
            raise ValueError("JAX always compiles its steps; leave --no-compile out, or train with torch")
        self.training = training
        shape = (training.batch_size, training.seq_len, config.d_model)
        self.method = choose_method(shape) if method == "auto" else method
        self.model = LiquidNet(config, training.seed, training.compute_dtype, method, remat)
        self.optimizer = make_optimizer(config, training)
        self._take(named_parameters(self.model))
        self.optimizer_state = self.optimizer.init(self.parameters)
        graph, variables = nnx.split(self.model, nnx.Param)

        def loss_of(parameters, tokens, labels, resets):
            state = nnx.map_state(
                lambda path, variable: variable.replace(parameters[".".join(map(str, path))]), variables
            )
            return nnx.merge(graph, state).loss(tokens, labels, resets=resets)[0]

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(parameters, optimizer_state, tokens, labels, resets, lr):
            loss, gradients = jax.value_and_grad(loss_of)(parameters, tokens, labels, resets)
            gradients, norm = clip_by_global_norm(gradients, training.grad_clip)
            steps, new_state = self.optimizer.update(gradients, optimizer_state, parameters)
            new_parameters = jax.tree.map(lambda parameter, step: parameter - lr * step, parameters, steps)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            kept = jax.tree.map(partial(jnp.where, finite), (new_parameters, new_state), (parameters, optimizer_state))
            return *kept, loss, norm

        self._update = update
        self._loss = jax.jit(loss_of)

    def train_step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the gradient norm before clipping.

        Where either is not finite the parameters are left as they were.
        """
        tokens, labels, resets = to_device(batch)
        self.parameters, self.optimizer_state, loss, norm = self._update(
            self.parameters, self.optimizer_state, tokens, labels, resets, lr
        )
        return float(loss), float(norm)

    def evaluate(self, batch: Batch) -> float:
        """Mean nats a counted label, each row from a zero state."""
        return float(self._loss(self.parameters, *to_device(batch)))

    def load(self, parameters: dict[str, np.ndarray], moments: dict[str, dict[str, np.ndarray]], step: int) -> None:
        """Take over parameters and, where there are any, moments after `step` steps."""
        load_parameters(self.model, parameters)
        self._take(named_parameters(self.model))
        if moments:
            self.optimizer_state = load_moments(self.optimizer_state, moments, step)

    def dump(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        """Parameters and moments as NumPy."""
        return dump_parameters(self._current()), dump_moments(self.optimizer_state)

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
        return {**versions, "device": jax.devices()[0].device_kind, "threads": threads, "method": self.method}

    @contextmanager
    def profile(self, directory: Path) -> Iterator[None]:
        """Write a trace of what runs inside to the directory, as XProf and Perfetto read it."""
        with jax.profiler.trace(directory):
            yield

    def _take(self, variables: dict[str, nnx.Param]) -> None:
        """The step donates its parameters: they are a pure dict of the engine's own, never the model's arrays."""
        self.parameters = {path: jnp.array(variable[...], copy=True) for path, variable in variables.items()}

    def _current(self) -> LiquidNet:
        for path, variable in named_parameters(self.model).items():
            variable[...] = jnp.array(self.parameters[path], copy=True)
        return self.model


if __name__ == "__main__":
    from tools.cli import main

    main(["train", "jax", *sys.argv[1:]])
