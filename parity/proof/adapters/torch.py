"""torch_impl in NumPy. Twin: parity/proof/adapters/jax.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import torch_impl
from parity.proof.adapters import RESULTS, chunk_logits, real, tables
from spec.config import ModelConfig
from spec.mixers.base import Masks, Side
from torch_impl import model as models
from torch_impl.ops import cross_entropy as losses
from torch_impl.ops import decode, rowwise
from torch_impl.ops.devices import default_device
from torch_impl.ops.gated_scan import unfused
from torch_impl.training import optimizer as optimizers

NAME = "torch"
ELEMENTARY = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "exp": torch.exp, "log": torch.log, "rsqrt": torch.rsqrt}
METHODS, LAYERS, OPERATIONS = tables(NAME)
METHODS["rowwise"] = tuple(rowwise.METHODS)
_DEVICE = default_device()
# Of these a method says how rows are computed.
_ROWS = ("rms_norm", "swiglu")


def scan(decay, drive, state=None, method="auto", resets=None, padding=None):
    """(states, last state); None is passed on as None."""
    return _arrays(*OPERATIONS["scan"](*_tensors(decay, drive, state, resets, padding), method=method))


def vjp(operation, inputs, constants, output_gradients, chunk=None, **options):
    """RESULTS of one of OPERATIONS: its outputs, and the gradients of its inputs.

    Args:
        operation: `scan`, `gates`, `mixer` or `loss`.
        inputs: what it is differentiated by.
        constants: its other arrays; None is passed on as None.
        output_gradients: of its outputs.
        chunk: the most logits a chunk of the loss.
        options: its other arguments.
    """
    fixed = _tensors(*constants)
    with chunk_logits(losses, chunk):
        results = _vjp(lambda *x: OPERATIONS[operation](*x, *fixed, **options), inputs, output_gradients)
    return dict(zip(RESULTS[operation], results, strict=True))


def decay_gates(p, delta_min):
    """(decay, 1 - decay) in the dtype of p."""
    return _arrays(*unfused.decay_gates(_tensors(p)[0], delta_min))


def elementary(name, x):
    """A function of the framework's library, one of ELEMENTARY."""
    return _arrays(ELEMENTARY[name](*_tensors(x)))[0]


def function_vjp(function, static, constants, output_gradients, *inputs):
    """The outputs of `function(backend, static, constants, *inputs)`, and the gradients of its inputs.

    Args:
        function: of a module, over the backend's arrays; its first argument is the backend's name.
        static: hashable values that a program is compiled for.
        constants, output_gradients, inputs: as of `vjp`.
    """
    fixed = _tensors(*constants)
    return _vjp(lambda *x: function(NAME, static, fixed, *x), inputs, output_gradients)


def layer_vjp(name, config, weights, inputs, masks, gradients, method="auto", compute_dtype="float32", side=None):
    """(outputs, gradients of the inputs, gradients of the weights by path) of one of LAYERS."""
    layer = LAYERS[name](config, compute_dtype, method)
    more = [Masks(*_tensors(*masks)), _side(side, compute_dtype)] if masks else []

    def run(*values):
        given = dict(zip(weights, values[len(inputs) :], strict=True))
        results = torch.func.functional_call(layer, given, (*values[: len(inputs)], *more))
        return results if isinstance(results, tuple) else (results,)

    arrays = _real((*inputs, *weights.values()), compute_dtype)
    with mock.patch.object(rowwise, "choose_method", return_value=method) if name in _ROWS else nullcontext():
        results = _vjp(run, arrays, _real(gradients, compute_dtype))
    outputs, found = results[: len(gradients)], results[len(gradients) :]
    return outputs, found[: len(inputs)], dict(zip(weights, found[len(inputs) :], strict=True))


def model(
    params, config, tokens, states=None, resets=None, padding=None, compute_dtype="float32", side=None, **options
):
    """(logits, final states); `side` is what the mixer reads besides, `options` those of the model's `build`."""
    net = _model(params, config, compute_dtype=compute_dtype, **options)
    with torch.no_grad():
        inputs = _tensors(tokens, real(states, compute_dtype), resets, padding)
        return _arrays(*net.logits(*inputs, _side(side, compute_dtype)))


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
    """(loss, gradients by path, gradient of the initial states, final states).

    The gradients are those of loss + sum(final_state_gradient * final states). `chunk` is the most logits a chunk.
    """
    net = _model(params, config, compute_dtype=compute_dtype, **options)
    initial, final_gradient = _tensors(real(states, compute_dtype), real(final_state_gradient, compute_dtype))
    named = {**dict(net.named_parameters()), "": initial.requires_grad_()}
    with chunk_logits(losses, chunk):
        masks = _tensors(resets, padding)
        loss, last = net.loss(*_tensors(tokens, labels), initial, *masks, _side(side, compute_dtype))
        total = loss if final_gradient is None else loss + (final_gradient * last).sum()
        gradients = dict(zip(named, _arrays(*torch.autograd.grad(total, list(named.values()))), strict=True))
    return loss.item(), gradients, gradients.pop(""), *_arrays(last)


def adamw_steps(config, training, parameters, moments, steps_taken, gradients, rates):
    """(parameters, moments, norms) after a clipped step for each set of gradients and learning rate."""
    net = _model(parameters, config)
    optimizer = optimizers.make_optimizer(net, training)
    if moments:
        optimizers.load_moments(net, optimizer, moments, steps_taken)
    norms = []
    for arrays, rate in zip(gradients, rates, strict=True):
        for path, parameter in net.named_parameters():
            (parameter.grad,) = _tensors(arrays[path])
        norms.append(
            optimizers.clip_by_global_norm(
                [p.grad for p in net.parameters() if p.grad is not None], training.grad_clip
            ).item()
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return torch_impl.dump_parameters(net), optimizers.dump_moments(net, optimizer), norms


def initialize(config, seed=0):
    """(parameters, num_parameters) of a new model."""
    net = models.build(config, seed=seed)
    return torch_impl.dump_parameters(net), net.num_parameters()


def generate(params, config, prompt, max_length, **sampling):
    """The prompt and what follows it, by `LanguageModel.generate`."""
    return _model(params, config).generate(_tensors(prompt)[0], max_length, **sampling).cpu().numpy()


def make_step(params, config, method="auto"):
    """The model as a step of generation."""
    return decode.make_step(_model(params, config), method)


def _real(arrays: Sequence[np.ndarray | None], compute_dtype: str) -> list[Any]:
    return [real(x, compute_dtype) for x in arrays]


def _side(side: Side | None, compute_dtype: str) -> dict[str, Any]:
    given = side or {}
    return dict(zip(given, _tensors(*(real(x, compute_dtype) for x in given.values())), strict=True))


def _tensors(*arrays: np.ndarray | None) -> list[Any]:
    # Those that are given are tensors: which may be missing is the operation's to say.
    return [None if array is None else torch.tensor(array, device=_DEVICE) for array in arrays]


def _vjp(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[np.ndarray], output_gradients: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """The outputs of a function, then the gradients of its inputs."""
    leaves = [x.requires_grad_() for x in _tensors(*inputs)]
    outputs = function(*leaves)
    return _arrays(*outputs, *torch.autograd.grad(outputs, leaves, _tensors(*output_gradients)))


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(x.detach().cpu().numpy() for x in tensors)


@cache
def _cached(config: ModelConfig, **options: Any) -> models.LanguageModel:
    return models.build(config, **options).to(_DEVICE)


def _model(params: Mapping[str, np.ndarray], config: ModelConfig, **options: Any) -> models.LanguageModel:
    net = _cached(config, **options)
    torch_impl.load_parameters(net, params)
    return net
