"""The states of a Liquid SSM one after another against all at once, forward and backward, over the length of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from parity.proof.problems.cases import perturbed_parameters
from spec.config import TrainingConfig
from spec.init import initial_parameters
from spec.mixers.liquid_ssm import LiquidSSMConfig
from tools.bench.timer import Row, Timer
from tools.bench.train_step import random_batch
from tools.cli import backends
from tools.cli.json_file import Json

if TYPE_CHECKING:
    import jax
    import torch

T = TypeVar("T", "torch.Tensor", "jax.Array")
METHODS = ("sequential", "parallel")
MODEL = LiquidSSMConfig(257, 128, 344, 4, 1024, d_state=16, state="diagonal")
Arrays = dict[str, np.ndarray]
Runs = tuple[Callable[[str], None], Json]
"""Forward and backward by a method, and the iterations of `parallel`."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is: rows, tokens a row, and the layer, whose state is diagonal."""

    rows: int = 12
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    model: LiquidSSMConfig = MODEL


def compare(rounds: int, sizes: Sizes, report: Callable[[str], None] = lambda line: None) -> Json:
    """Medians of both methods in turn, their ratio, and the iterations of `parallel`; then of a whole train step.

    Weights as they are at the start, and `perturbed` by normal noise of 0.3 on each: the more the step depends on the
    state, the more iterations.
    """
    found: Json = {"states": [], "train": []}
    for backend in backends.installed():
        for weights in ("initial", "perturbed"):
            for length in sizes.lengths:
                report(f"{backend}, {weights} weights, T {length}")
                run, iterations = _RUNS[backend](*_problem(sizes, length, weights))
                problem = {"backend": backend, "weights": weights, "length": length}
                found["states"].append({**problem, **_medians(run, rounds), **iterations})
        report(f"{backend}, train step, T {sizes.model.max_seq_len}")
        steps = {method: _train_step(backend, method, sizes) for method in METHODS}
        found["train"].append({"backend": backend, **_medians(lambda method, steps=steps: steps[method](), rounds)})
    return found


def show(result: Json, sizes: Sizes) -> None:
    """The result as two tables."""
    columns = ("ms, sequential", "ms, parallel", "ratio")
    title = f"states of a Liquid SSM, forward + backward, b {sizes.rows}, n {sizes.model.d_state}, diagonal, float32"
    states = Table("backend", "weights", "T", *columns, "iterations", title=title)
    for row in result["states"]:
        iterations = f"{row['forward_iterations']} + {row['backward_iterations']}"
        states.add_row(row["backend"], row["weights"], str(row["length"]), *_numbers(row), iterations)
    model = sizes.model
    title = f"train step, {sizes.rows} x {model.max_seq_len} tokens, d {model.d_model}, {model.n_layers} layers"
    steps = Table("backend", *columns, title=title)
    for row in result["train"]:
        steps.add_row(row["backend"], *_numbers(row))
    for table in (states, steps):
        Console().print(table)


def _medians(run: Callable[[str], object], rounds: int) -> Json:
    """Milliseconds of both methods; raises RuntimeError where one fails."""
    rows: list[Row] = [{"name": method} for method in METHODS]
    Timer("cpu", rounds).steps([(row, partial(run, method)) for method, row in zip(METHODS, rows, strict=True)])
    for row in rows:
        if "milliseconds" not in row:
            raise RuntimeError(row.get("error") or row.get("not_run"))
    sequential, parallel = (row["milliseconds"] for row in rows)
    times = {f"{row['name']}_milliseconds": row["milliseconds"] for row in rows}
    return {**times, "ratio": sequential / parallel}


def _numbers(row: Json) -> tuple[str, ...]:
    return *(f"{row[f'{method}_milliseconds']:.1f}" for method in METHODS), f"{row['ratio']:.2f}"


def _problem(sizes: Sizes, length: int, weights: str) -> tuple[LiquidSSMConfig, Arrays, np.ndarray, np.ndarray]:
    """Configuration, weights of the first layer by their names in Dynamics, pre-activations, gradient of the states."""
    config, random = replace(sizes.model, n_layers=1, max_seq_len=length), np.random.default_rng(0)
    params = initial_parameters(config) if weights == "initial" else perturbed_parameters(config, 0)
    prefix = "blocks.0.mixer."
    layer = {path.removeprefix(prefix).removesuffix(".weight"): x for path, x in params.items() if prefix in path}
    u = random.standard_normal((sizes.rows, length, config.d_model), dtype=np.float32)
    gradient = random.standard_normal((sizes.rows, length, config.d_state), dtype=np.float32)
    return config, layer, u @ layer["input"].T, gradient


def _torch_run(config: LiquidSSMConfig, layer: Arrays, pre: np.ndarray, gradient: np.ndarray) -> Runs:
    import torch

    from torch_impl.mixers import liquid_ssm

    weights = liquid_ssm.Dynamics(*(torch.from_numpy(layer[name]) for name in liquid_ssm.Dynamics._fields))
    given, back = torch.from_numpy(pre).requires_grad_(), torch.from_numpy(gradient)

    def run(method: str) -> None:
        torch.autograd.grad(liquid_ssm.liquid_states(given, weights, config, method=method)[0], given, back)

    with torch.no_grad():
        forward, backward = _iterations(liquid_ssm, config, weights, given.detach(), back, torch.zeros_like(back[:, 0]))
    return run, {"forward_iterations": forward, "backward_iterations": backward}


def _jax_run(config: LiquidSSMConfig, layer: Arrays, pre: np.ndarray, gradient: np.ndarray) -> Runs:
    import jax
    import jax.numpy as jnp

    from jax_impl.mixers import liquid_ssm

    weights = liquid_ssm.Dynamics(*(jnp.asarray(layer[name]) for name in liquid_ssm.Dynamics._fields))

    @partial(jax.jit, static_argnums=0)
    def both(method: str, pre: jax.Array):
        states, pull_back = jax.vjp(lambda x: liquid_ssm.liquid_states(x, weights, config, method=method)[0], pre)
        return states, pull_back(jnp.asarray(gradient))

    def run(method: str) -> None:
        jax.block_until_ready(both(method, pre))

    count = jax.jit(lambda pre, back: _iterations(liquid_ssm, config, weights, pre, back, jnp.zeros_like(back[:, 0])))
    forward, backward = count(pre, gradient)
    return run, {"forward_iterations": int(forward), "backward_iterations": int(backward)}


def _iterations(module: ModuleType, config: LiquidSSMConfig, weights: tuple, pre: T, gradient: T, zero: T):
    """How often `parallel` goes over all of time, in either direction; for a module liquid_ssm of either backend."""
    n = config.d_state
    inputs = module.Inputs(pre[..., :n], pre[..., n:], None, None, None)
    forward, backward = module.METHODS["parallel"]
    solved = forward(inputs, weights, config, zero)
    at = module.clock(module.shifted(solved.values, zero, inputs), inputs, weights, config)
    kept = module.Trajectory(inputs, weights, config, solved.values, at)
    return solved.iterations, backward(kept, gradient, zero).iterations


def _train_step(backend: str, method: str, sizes: Sizes) -> Callable[[], None]:
    training = TrainingConfig(batch_size=sizes.rows, seq_len=sizes.model.max_seq_len)
    engine = backends.load(backend, "training.engine").Engine(sizes.model, training, method)
    batch = random_batch(sizes.model, sizes.rows, training.seq_len)
    return lambda: engine.train_step(batch, training.peak_lr)


_RUNS = {"torch": _torch_run, "jax": _jax_run}
