"""jax_impl in NumPy, jitted once a shape. Twin: parity/proof/adapters/torch.py, which has the docstrings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_impl
from jax_impl import model as models
from jax_impl.ops import cross_entropy as losses
from jax_impl.ops import decode
from jax_impl.ops.gated_scan import unfused
from jax_impl.training import optimizer as optimizers
from parity.proof.adapters import RESULTS, chunk_logits, float64_elsewhere, real, tables
from spec.config import ModelConfig, TrainingConfig
from spec.mixers.base import Masks, Side

NAME = "jax"
ELEMENTARY = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "exp": jnp.exp, "log": jnp.log, "rsqrt": jax.lax.rsqrt}
METHODS, LAYERS, OPERATIONS = tables(NAME)
METHODS["rowwise"] = ("plain",)


@float64_elsewhere
def scan(decay, drive, state=None, method="auto", resets=None, padding=None):
    return _arrays(*_scan(decay, drive, state, method, resets, padding))


@float64_elsewhere
def vjp(operation, inputs, constants, output_gradients, chunk=None, **options):
    given = tuple(inputs), tuple(constants), tuple(output_gradients)
    outputs, gradients = _operation_vjp(operation, chunk, tuple(sorted(options.items())), *given)
    return dict(zip(RESULTS[operation], _arrays(*outputs, *gradients), strict=True))


@float64_elsewhere
def decay_gates(p, delta_min):
    return _arrays(*_gates(p, delta_min))


def elementary(name, x):
    return np.asarray(jax.jit(ELEMENTARY[name])(x))


@float64_elsewhere
def function_vjp(function, static, constants, output_gradients, *inputs):
    outputs, gradients = _function_vjp(function, static, tuple(constants), inputs, tuple(output_gradients))
    return _arrays(*outputs, *gradients)


@float64_elsewhere
def layer_vjp(name, config, weights, inputs, masks, gradients, method="auto", compute_dtype="float32", side=None):
    run = _layer_vjp(name, config, method, compute_dtype)
    arrays = _real(inputs, compute_dtype)
    more = (masks, _side(side, compute_dtype)) if masks else ()
    given = _in(weights, compute_dtype), arrays, more, _real(gradients, compute_dtype)
    outputs, (grad_weights, grad_inputs) = run(*given)
    return _arrays(*outputs), _arrays(*grad_inputs), {path: np.asarray(grad_weights[path]) for path in weights}


@float64_elsewhere
def model(
    params, config, tokens, states=None, resets=None, padding=None, compute_dtype="float32", side=None, **options
):
    forward, _ = _functions(config, compute_dtype=compute_dtype, **options)
    more = resets, padding, _side(side, compute_dtype)
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
    compute_dtype="float32",
    chunk=None,
    side=None,
    **options,
):
    _, gradients_of = _functions(config, chunk, compute_dtype=compute_dtype, **options)
    initial, final_gradient = _real((states, final_state_gradient), compute_dtype)
    (_, (loss, last)), (gradients, state_gradient) = gradients_of(
        _in(params, compute_dtype),
        initial,
        tokens,
        labels,
        (resets, padding, _side(side, compute_dtype)),
        final_gradient,
    )
    return float(loss), {path: np.asarray(gradients[path]) for path in params}, *_arrays(state_gradient, last)


def adamw_steps(config, training, parameters, moments, steps_taken, gradients, rates):
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


def initialize(config, seed=0):
    net = models.build(config, seed=seed)
    return jax_impl.dump_parameters(net), net.num_parameters()


def generate(params, config, prompt, max_length, **sampling):
    return np.asarray(_model(params, config).generate(jnp.asarray(prompt), max_length, **sampling))


def make_step(params, config, method="auto"):
    return decode.make_step(_model(params, config), method)


@partial(jax.jit, static_argnums=3)
def _scan(decay, drive, state, method, resets, padding):
    return jax_impl.scan(decay, drive, state, method, resets, padding)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _operation_vjp(operation, chunk, options, inputs, constants, output_gradients):
    with chunk_logits(losses, chunk):
        return _vjp(lambda *x: OPERATIONS[operation](*x, *constants, **dict(options)), inputs, output_gradients)


def _vjp(function, inputs, output_gradients):
    """The outputs of a function, and the gradients of its inputs."""
    outputs, pull_back = jax.vjp(function, *inputs)
    return outputs, pull_back(tuple(output_gradients))


_gates = jax.jit(unfused.decay_gates, static_argnums=1)


@partial(jax.jit, static_argnums=(0, 1))
def _function_vjp(function, static, constants, inputs, output_gradients):
    return _vjp(partial(function, NAME, static, constants), inputs, output_gradients)


@cache
def _layer_vjp(name: str, config: ModelConfig, method: str, compute_dtype: str) -> Callable:
    graph, variables = nnx.split(LAYERS[name](config, compute_dtype, method), nnx.Param)

    @jax.jit
    def run(weights, inputs, more, output_gradients):
        def forward(weights, inputs):
            state = nnx.map_state(lambda path, x: x.replace(weights[".".join(map(str, path))]), variables)
            outputs = nnx.merge(graph, state)(*inputs, *((Masks(*more[0]), more[1]) if more else ()))
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return _vjp(forward, (weights, inputs), output_gradients)

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


def _real(arrays: Iterable[np.ndarray | None], compute_dtype: str) -> list[Any]:
    return [real(x, compute_dtype) for x in arrays]


def _side(side: Side | None, compute_dtype: str) -> dict[str, Any]:
    return {name: real(x, compute_dtype) for name, x in (side or {}).items()}


def _in(params: Mapping[str, np.ndarray], compute_dtype: str) -> dict[str, Any]:
    return {path: jnp.asarray(real(array, compute_dtype)) for path, array in params.items()}


def _arrays(*arrays: jax.Array) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(x) for x in arrays)


def _model(params: Mapping[str, np.ndarray], config: ModelConfig) -> models.LanguageModel:
    net = models.build(config)
    jax_impl.load_parameters(net, params)
    return net
