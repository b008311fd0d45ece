"""torch_impl in NumPy. Twin: parity/proof/adapters/jax.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import torch_impl
from parity.proof.adapters import (
    LOSS_RESULTS,
    SCAN_RESULTS,
    chunk_logits,
    real,
)
from spec.config import ModelConfig
from spec.mixers import families
from spec.mixers.base import Masks, Side
from torch_impl import generation, layers
from torch_impl import model as models
from torch_impl.mixers import mixer_module
from torch_impl.ops import cross_entropy as losses
from torch_impl.ops import gated_scan
from torch_impl.ops.devices import default_device
from torch_impl.ops.scan import METHODS as SCANS
from torch_impl.training import optimizer as optimizers

NAME = "torch"
METHODS = {
    "rows": tuple(layers._ROWS),
    "scan": tuple(SCANS),
    **{one.operation: tuple(mixer_module(name).METHODS) for name, one in families().items()},
    "loss": tuple(losses.METHODS),
    "decode": tuple(generation.METHODS),
}
DEVICE = default_device()
ELEMENTARY = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "log": torch.log,
    "rsqrt": torch.rsqrt,
}
LAYERS = {
    "rms_norm": lambda config, dtype, _: layers.RMSNorm(config.d_model, config.norm_eps, dtype),
    "swiglu": lambda config, dtype, _: layers.SwiGLU(config, dtype),
    "block": lambda config, dtype, method: models.Block(config, dtype, method),
}
# Of these a method says how rows are computed.
ROWS = ("rms_norm", "swiglu")


def scan(decay, drive, state=None, method="auto", resets=None, padding=None):
    """(states, last state); None is passed on as None."""
    return _arrays(*torch_impl.scan(*_tensors(decay, drive, state), method, *_tensors(resets, padding)))


def scan_vjp(decay, drive, state, method, resets, padding, states_gradient, final_gradient):
    """SCAN_RESULTS: both outputs of the scan and the gradients of its three inputs."""
    masks = _tensors(resets, padding)
    gradients = states_gradient, final_gradient
    results = _vjp(lambda *x: torch_impl.scan(*x, method, *masks), (decay, drive, state), gradients)
    return dict(zip(SCAN_RESULTS, results, strict=True))


def decay_gates(p, delta_min):
    """(alpha, 1 - alpha) in the dtype of p."""
    return _arrays(*gated_scan.decay_gates(*_tensors(p), delta_min))


def elementary(name, x):
    """A function of the framework's library, one of ELEMENTARY."""
    return _arrays(ELEMENTARY[name](*_tensors(x)))[0]


def vjp(function, static, constants, gradients, *inputs):
    """The outputs of `function(backend, static, constants, *inputs)`, and the gradients of its inputs.

    Args:
        function: of a module, over the backend's arrays; its name is that of the backend.
        static: hashable values that a program is compiled for.
        constants: arrays that are not differentiated.
        gradients: of the outputs.
        inputs: arrays.
    """
    given = _tensors(*constants)
    return _vjp(lambda *x: function(NAME, static, given, *x), inputs, gradients)


def loss_vjp(hidden, embedding, labels, method="auto", chunk=None):
    """LOSS_RESULTS: the sum of nats, and the gradients of hidden and embedding. `chunk` is the most logits a chunk."""
    (targets,) = _tensors(labels)

    def run(hidden, embedding):
        return (losses.cross_entropy(hidden, embedding, targets, embedding.dtype, method)[0],)

    with chunk_logits(losses, chunk):
        return dict(zip(LOSS_RESULTS, _vjp(run, (hidden, embedding), (np.ones((), hidden.dtype),)), strict=True))


def layer_vjp(name, config, weights, inputs, masks, gradients, method="auto", compute_dtype="float32"):
    """(outputs, gradients of the inputs, gradients of the weights by path) of one of LAYERS."""
    layer = LAYERS[name](config, compute_dtype, method)
    more = [Masks(*_tensors(*masks))] if masks else []

    def run(*values):
        given = dict(zip(weights, values[len(inputs) :], strict=True))
        results = torch.func.functional_call(layer, given, (*values[: len(inputs)], *more))
        return results if isinstance(results, tuple) else (results,)

    arrays = [real(x, compute_dtype) for x in (*inputs, *weights.values())]
    with mock.patch.object(layers, "_choose", return_value=method) if name in ROWS else nullcontext():
        results = _vjp(run, arrays, [real(x, compute_dtype) for x in gradients])
    outputs, found = results[: len(gradients)], results[len(gradients) :]
    return outputs, found[: len(inputs)], dict(zip(weights, found[len(inputs) :], strict=True))


def model(
    params, config, tokens, states=None, resets=None, padding=None, method="auto", compute_dtype="float32", side=None
):
    """(logits, final states); `side` is what the mixer reads besides, by name."""
    net = _model(params, config, compute_dtype=compute_dtype, method=method)
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
    net = _model(params, config, compute_dtype=compute_dtype, method=method, remat=remat, loss_method=loss_method)
    initial, final_gradient = _tensors(real(states, compute_dtype), real(final_state_gradient, compute_dtype))
    named = {**dict(net.named_parameters()), "": initial.requires_grad_()}
    with chunk_logits(losses, chunk):
        masks = _tensors(resets, padding)
        loss, last = net.loss(*_tensors(tokens, labels), initial, *masks, _side(side, compute_dtype))
        total = loss if final_gradient is None else loss + (final_gradient * last).sum()
        gradients = dict(zip(named, _arrays(*torch.autograd.grad(total, list(named.values()))), strict=True))
    return loss.item(), gradients, gradients.pop(""), *_arrays(last)


def adamw_steps(config, training, parameters, moments, steps_taken, gradients, rates):
    """(parameters, moments, norms) after one clipped step of AdamW for each set of gradients and learning rate."""
    net = _model(parameters, config)
    optimizer = optimizers.make_optimizer(net, training)
    if moments:
        optimizers.load_moments(net, optimizer, moments, steps_taken)
    norms = []
    for arrays, rate in zip(gradients, rates, strict=True):
        for path, parameter in net.named_parameters():
            (parameter.grad,) = _tensors(arrays[path])
        norms.append(optimizers.clip_by_global_norm([p.grad for p in net.parameters()], training.grad_clip).item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return torch_impl.dump_parameters(net), optimizers.dump_moments(net, optimizer), norms


def fresh(config, seed=0):
    """(parameters, num_parameters) of a new model."""
    net = models.build(config, seed=seed)
    return torch_impl.dump_parameters(net), net.num_parameters()


def generate(params, config, prompt, max_length, **sampling):
    """The prompt and what follows it, by `LanguageModel.generate`."""
    return _model(params, config).generate(*_tensors(prompt), max_length, **sampling).cpu().numpy()


def make_step(params, config, method="auto"):
    """The model as a step of generation."""
    return generation.make_step(_model(params, config), method)


def _side(side: Side | None, compute_dtype: str) -> dict[str, Any]:
    given = side or {}
    return dict(zip(given, _tensors(*(real(x, compute_dtype) for x in given.values())), strict=True))


def _tensors(*arrays: np.ndarray | None) -> list[Tensor | None]:
    return [None if array is None else torch.tensor(array, device=DEVICE) for array in arrays]


def _vjp(run: Any, inputs: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The outputs of a function, then the gradients of its inputs."""
    leaves = [x.requires_grad_() for x in _tensors(*inputs)]
    outputs = run(*leaves)
    return _arrays(*outputs, *torch.autograd.grad(outputs, leaves, _tensors(*gradients)))


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(x.detach().cpu().numpy() for x in tensors)


@cache
def _cached(config: ModelConfig, **options: Any) -> models.LanguageModel:
    return models.build(config, **options).to(DEVICE)


def _model(params: Mapping[str, np.ndarray], config: ModelConfig, **options: Any) -> models.LanguageModel:
    net = _cached(config, **options)
    torch_impl.load_parameters(net, params)
    return net
