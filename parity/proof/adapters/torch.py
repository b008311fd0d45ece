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
    GATES_RESULTS,
    LIQUID_RESULTS,
    LOSS_RESULTS,
    MIXER_RESULTS,
    SCAN_RESULTS,
    chunk_logits,
    real,
)
from spec.config import ModelConfig
from torch_impl import layers
from torch_impl import model as models
from torch_impl.mixers import liquid_ssm
from torch_impl.mixers.liquid_ssm import solvers
from torch_impl.ops import cross_entropy as losses
from torch_impl.ops import decode, gated_scan, rowwise
from torch_impl.ops.devices import default_device
from torch_impl.ops.gated_scan import unfused
from torch_impl.ops.scan import METHODS as SCANS
from torch_impl.training import optimizer as optimizers

NAME = "torch"
METHODS = {
    "rowwise": tuple(rowwise.METHODS),
    "scan": tuple(SCANS),
    "mixer": ("auto", *gated_scan.METHODS),
    "liquid_ssm": tuple(solvers.METHODS),
    "loss": tuple(losses.METHODS),
    "decode": tuple(decode.METHODS),
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
    "ssm_block": lambda config, dtype, method: models.Block(config, dtype, method),
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
    return _arrays(*unfused.decay_gates(*_tensors(p), delta_min))


def elementary(name, x):
    """A function of the framework's library, one of ELEMENTARY."""
    return _arrays(ELEMENTARY[name](*_tensors(x)))[0]


def gates_vjp(pre, bias, delta_min, *gradients):
    """GATES_RESULTS: decay, drive and output gate, and the gradients of pre-activations and bias."""
    return dict(zip(GATES_RESULTS, _vjp(lambda *x: unfused.gates(*x, delta_min), (pre, bias), gradients), strict=True))


def mixer_vjp(pre, bias, delta_min, state, method, resets, padding, *gradients):
    """MIXER_RESULTS: gated states and last state, and the gradients of pre-activations, bias and initial state."""
    masks = _tensors(resets, padding)

    def run(pre, bias, state):
        return gated_scan.gated_scan(pre, bias, delta_min, state, *masks, method)

    return dict(zip(MIXER_RESULTS, _vjp(run, (pre, bias, state), gradients), strict=True))


def liquid_states_vjp(config, pre, state, weights, method, masks, gradients):
    """LIQUID_RESULTS and the gradients of the weights by field of Dynamics; masks: resets, padding, noise, gaps."""
    given = _tensors(*masks)

    def run(pre, state, *of):
        dynamics = liquid_ssm.Dynamics(**{"frequency": None, **dict(zip(weights, of, strict=True))})
        return liquid_ssm.liquid_states(pre, dynamics, config, state, *given, method)

    results = _vjp(run, (pre, state, *weights.values()), gradients)
    return dict(zip((*LIQUID_RESULTS, *weights), results, strict=True))


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
    masks = _tensors(*masks)

    def run(*values):
        given = dict(zip(weights, values[len(inputs) :], strict=True))
        results = torch.func.functional_call(layer, given, (*values[: len(inputs)], *masks))
        return results if isinstance(results, tuple) else (results,)

    arrays = [real(x, compute_dtype) for x in (*inputs, *weights.values())]
    with mock.patch.object(rowwise, "choose_method", return_value=method) if name in ROWS else nullcontext():
        results = _vjp(run, arrays, [real(x, compute_dtype) for x in gradients])
    outputs, found = results[: len(gradients)], results[len(gradients) :]
    return outputs, found[: len(inputs)], dict(zip(weights, found[len(inputs) :], strict=True))


def model(
    params, config, tokens, states=None, resets=None, padding=None, method="auto", compute_dtype="float32", of_ssm=()
):
    """(logits, final states); `of_ssm` are noise and gaps."""
    net = _model(params, config, compute_dtype=compute_dtype, method=method)
    with torch.no_grad():
        return _arrays(
            *net.logits(*_tensors(tokens, real(states, compute_dtype), resets, padding, *_real(of_ssm, compute_dtype)))
        )


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
    of_ssm=(),
):
    """(loss, gradients by path, gradient of the initial states, final states).

    The gradients are those of loss + sum(final_state_gradient * final states). `chunk` is the most logits a chunk.
    """
    net = _model(params, config, compute_dtype=compute_dtype, method=method, remat=remat, loss_method=loss_method)
    initial, final_gradient = _tensors(real(states, compute_dtype), real(final_state_gradient, compute_dtype))
    named = {**dict(net.named_parameters()), "": initial.requires_grad_()}
    with chunk_logits(losses, chunk):
        more = _tensors(resets, padding, *_real(of_ssm, compute_dtype))
        loss, last = net.loss(*_tensors(tokens, labels), initial, *more)
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
    return decode.make_step(_model(params, config), method)


def _real(arrays: Sequence[np.ndarray], compute_dtype: str) -> list[np.ndarray | None]:
    return [real(x, compute_dtype) for x in arrays]


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
