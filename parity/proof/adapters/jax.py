"""jax_impl in NumPy, jitted: each shape is compiled once. Twin: parity/proof/adapters/torch.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_impl
from jax_impl import generation, layers
from jax_impl import model as models
from jax_impl.mixers import mixer_module
from jax_impl.ops import cross_entropy as losses
from jax_impl.ops import gated_scan
from jax_impl.ops.scan import METHODS as SCANS
from jax_impl.training import optimizer as optimizers
from parity.proof.adapters import (
    LOSS_RESULTS,
    SCAN_RESULTS,
    chunk_logits,
    float64_elsewhere,
    real,
)
from spec.config import ModelConfig, TrainingConfig
from spec.mixers import families
from spec.mixers.base import Masks, Side

NAME = "jax"
METHODS = {
    "rows": ("plain",),
    "scan": tuple(SCANS),
    **{one.operation: tuple(mixer_module(name).METHODS) for name, one in families().items()},
    "loss": tuple(losses.METHODS),
    "decode": tuple(generation.METHODS),
}
ELEMENTARY = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "exp": jnp.exp,
    "log": jnp.log,
    "rsqrt": jax.lax.rsqrt,
}
LAYERS = {
    "rms_norm": lambda config, dtype, _: layers.RMSNorm(config.d_model, config.norm_eps, dtype),
    "swiglu": lambda config, dtype, _: layers.SwiGLU(config, dtype),
    "block": lambda config, dtype, method: models.Block(config, dtype, method),
}


@float64_elsewhere
def scan(decay, drive, state=None, method="auto", resets=None, padding=None):
    """(states, last state); None is passed on as None."""
    return _arrays(*_scan(decay, drive, state, method, resets, padding))


@float64_elsewhere
def scan_vjp(decay, drive, state, method, resets, padding, states_gradient, final_gradient):
    """SCAN_RESULTS: both outputs of the scan and the gradients of its three inputs."""
    results = _scan_vjp((decay, drive, state), method, resets, padding, (states_gradient, final_gradient))
    return dict(zip(SCAN_RESULTS, _arrays(*results), strict=True))


@float64_elsewhere
def decay_gates(p, delta_min):
    """(alpha, 1 - alpha) in the dtype of p."""
    return _arrays(*_gates(p, delta_min))


def elementary(name, x):
    """A function of the framework's library, one of ELEMENTARY."""
    return np.asarray(jax.jit(ELEMENTARY[name])(x))


@float64_elsewhere
def vjp(function, static, constants, gradients, *inputs):
    """The outputs of `function(backend, static, constants, *inputs)`, and the gradients of its inputs.

    Args:
        function: of a module, over the backend's arrays; its name is that of the backend.
        static: hashable values that a program is compiled for.
        constants: arrays that are not differentiated.
        gradients: of the outputs.
        inputs: arrays.
    """
    return _arrays(*_vjp(function, static, constants, inputs, gradients))


@float64_elsewhere
def loss_vjp(hidden, embedding, labels, method="auto", chunk=None):
    """LOSS_RESULTS: the sum of nats, and the gradients of hidden and embedding. `chunk` is the most logits a chunk."""
    return dict(zip(LOSS_RESULTS, _arrays(*_loss_vjp((hidden, embedding), labels, method, chunk)), strict=True))


@float64_elsewhere
def layer_vjp(name, config, weights, inputs, masks, gradients, method="auto", compute_dtype="float32"):
    """(outputs, gradients of the inputs, gradients of the weights by path) of one of LAYERS."""
    run = _layer_vjp(name, config, method, compute_dtype)
    arrays = [real(x, compute_dtype) for x in inputs]
    outputs, found, of_weights = run(
        _in(weights, compute_dtype), arrays, masks, [real(x, compute_dtype) for x in gradients]
    )
    return _arrays(*outputs), _arrays(*found), {path: np.asarray(of_weights[path]) for path in weights}


@float64_elsewhere
def model(
    params, config, tokens, states=None, resets=None, padding=None, method="auto", compute_dtype="float32", side=None
):
    """(logits, final states); `side` is what the mixer reads besides, by name."""
    forward, _ = _functions(config, compute_dtype=compute_dtype, method=method)
    more = resets, padding, _real(side, compute_dtype)
    return _arrays(*forward(_in(params, compute_dtype), tokens, real(states, compute_dtype), *more))


@float64_elsewhere
def loss_and_gradients(
    params,
    config,
    tokens,
    labels,
    states,
    resets=None,
    padding=None,
    final_state_gradient=None,
    method="auto",
    compute_dtype="float32",
    remat=False,
    loss_method="auto",
    chunk=None,
    side=None,
):
    """(loss, gradients by path, gradient of the initial states, final states).

    The gradients are those of loss + sum(final_state_gradient * final states). `chunk` is the most logits a chunk.
    """
    options = {"compute_dtype": compute_dtype, "method": method, "remat": remat, "loss_method": loss_method}
    _, gradients_of = _functions(config, chunk, **options)
    parameters, initial, final_gradient = _in(params, compute_dtype), states, final_state_gradient
    (_, (loss, last)), (gradients, state_gradient) = gradients_of(
        parameters,
        real(initial, compute_dtype),
        tokens,
        labels,
        (resets, padding, _real(side, compute_dtype)),
        real(final_gradient, compute_dtype),
    )
    return float(loss), {path: np.asarray(gradients[path]) for path in params}, *_arrays(state_gradient, last)


def adamw_steps(config, training, parameters, moments, steps_taken, gradients, rates):
    """(parameters, moments, norms) after one clipped step of AdamW for each set of gradients and learning rate."""
    optimizer, advance = _optimizer(config, training)
    parameters = _in(parameters, "float32")
    state = optimizer.init(parameters)
    if moments:
        state = optimizers.load_moments(state, moments, steps_taken)
    norms = []
    for arrays, rate in zip(gradients, rates, strict=True):
        parameters, state, norm = advance(parameters, state, dict(arrays), rate)
        norms.append(float(norm))
    return {path: np.asarray(parameters[path]) for path in parameters}, optimizers.dump_moments(state), norms


def fresh(config, seed=0):
    """(parameters, num_parameters) of a new model."""
    net = models.build(config, seed=seed)
    return jax_impl.dump_parameters(net), net.num_parameters()


def generate(params, config, prompt, max_length, **sampling):
    """The prompt and what follows it, by `LanguageModel.generate`."""
    return np.asarray(_model(params, config).generate(jnp.asarray(prompt), max_length, **sampling))


def make_step(params, config, method="auto"):
    """The model as a step of generation."""
    return generation.make_step(_model(params, config), method)


@partial(jax.jit, static_argnums=3)
def _scan(decay, drive, state, method, resets, padding):
    return jax_impl.scan(decay, drive, state, method, resets, padding)


@partial(jax.jit, static_argnums=1)
def _scan_vjp(inputs, method, resets, padding, output_gradients):
    outputs, pull_back = jax.vjp(lambda *inputs: jax_impl.scan(*inputs, method, resets, padding), *inputs)
    return *outputs, *pull_back(output_gradients)


_gates = jax.jit(gated_scan.decay_gates, static_argnums=1)


@partial(jax.jit, static_argnums=(0, 1))
def _vjp(function, static, constants, inputs, output_gradients):
    outputs, pull_back = jax.vjp(partial(function, NAME, static, constants), *inputs)
    return *outputs, *pull_back(tuple(output_gradients))


@partial(jax.jit, static_argnums=(2, 3))
def _loss_vjp(inputs, labels, method, chunk):
    def run(hidden, embedding):
        with chunk_logits(losses, chunk):
            return losses.cross_entropy(hidden, embedding, labels, embedding.dtype, method)[0]

    nats, gradients = jax.value_and_grad(run, (0, 1))(*inputs)
    return nats, *gradients


@cache
def _layer_vjp(name: str, config: ModelConfig, method: str, compute_dtype: str) -> Callable:
    graph, variables = nnx.split(LAYERS[name](config, compute_dtype, method), nnx.Param)

    @jax.jit
    def run(weights, inputs, masks, output_gradients):
        def forward(weights, inputs):
            state = nnx.map_state(lambda path, x: x.replace(weights[".".join(map(str, path))]), variables)
            outputs = nnx.merge(graph, state)(*inputs, *([Masks(*masks)] if masks else []))
            return outputs if isinstance(outputs, tuple) else (outputs,)

        outputs, pull_back = jax.vjp(forward, weights, inputs)
        of_weights, of_inputs = pull_back(tuple(output_gradients))
        return outputs, of_inputs, of_weights

    return run


@cache
def _functions(config: ModelConfig, chunk: int | None = None, **options: Any) -> tuple[Callable, Callable]:
    """The forward pass and the gradients of one model, as jitted functions of its parameters by path."""
    graph, variables = nnx.split(models.build(config, **options), nnx.Param)

    def merge(parameters):
        state = nnx.map_state(lambda path, variable: variable.replace(parameters[".".join(map(str, path))]), variables)
        return nnx.merge(graph, state)

    @jax.jit
    def forward(parameters, *inputs):
        return merge(parameters).logits(*inputs)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def gradients_of(parameters, states, tokens, labels, more, final_gradient):
        with chunk_logits(losses, chunk):
            loss, last = merge(parameters).loss(tokens, labels, states, *more)
        return loss + (0.0 if final_gradient is None else (final_gradient * last).sum()), (loss, last)

    return forward, gradients_of


@cache
def _optimizer(config: ModelConfig, training: TrainingConfig) -> tuple[Any, Callable]:
    optimizer = optimizers.make_optimizer(config, training)

    @jax.jit
    def advance(parameters, state, gradients, rate):
        # The same three lines as in jax_impl/training/engine.py, there in one jitted step with the model.
        gradients, norm = optimizers.clip_by_global_norm(gradients, training.grad_clip)
        steps, state = optimizer.update(gradients, state, parameters)
        return jax.tree.map(lambda parameter, step: parameter - rate * step, parameters, steps), state, norm

    return optimizer, advance


def _real(side: Side | None, compute_dtype: str) -> dict[str, Any]:
    return {name: real(x, compute_dtype) for name, x in (side or {}).items()}


def _in(params: Mapping[str, np.ndarray], compute_dtype: str) -> dict[str, Any]:
    return {path: jnp.asarray(real(array, compute_dtype)) for path, array in params.items()}


def _arrays(*arrays: jax.Array) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(x) for x in arrays)


def _model(params: Mapping[str, np.ndarray], config: ModelConfig) -> models.LanguageModel:
    net = models.build(config)
    jax_impl.load_parameters(net, params)
    return net
