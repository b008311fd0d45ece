"""torch_impl in NumPy. Twin: parity/jax_face.py."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import torch_impl
from parity.backends import SCAN_RESULTS, chunk_logits, real
from spec.config import LiquidNetConfig
from torch_impl import generate as generation
from torch_impl import loss as losses
from torch_impl import mixer
from torch_impl import optimizer as optimizers
from torch_impl.scan import METHODS

NAME = "torch"
SCAN_METHODS = tuple(METHODS)


def scan(decay, drive, state=None, method="auto", resets=None, padding=None):
    """(states, last state); None is passed on as None."""
    return _arrays(*torch_impl.scan(*_tensors(decay, drive, state), method, *_tensors(resets, padding)))


def scan_vjp(decay, drive, state, method, resets, padding, states_gradient, final_gradient):
    """SCAN_RESULTS: both outputs of the scan and the gradients of its three inputs."""
    inputs = [x.requires_grad_() for x in _tensors(decay, drive, state)]
    outputs = torch_impl.scan(*inputs, method, *_tensors(resets, padding))
    gradients = torch.autograd.grad(outputs, inputs, _tensors(states_gradient, final_gradient))
    return dict(zip(SCAN_RESULTS, _arrays(*outputs, *gradients), strict=True))


def decay_gates(p, delta_min):
    """(alpha, 1 - alpha) in the dtype of p."""
    return _arrays(*mixer.decay_gates(*_tensors(p), delta_min))


def gates_gradient(p, delta_min, alpha_gradient, fresh_gradient):
    """Gradient of p from those of alpha and 1 - alpha."""
    (inner,) = _tensors(p)
    outputs = mixer.decay_gates(inner.requires_grad_(), delta_min)
    return _arrays(*torch.autograd.grad(outputs, inner, _tensors(alpha_gradient, fresh_gradient)))[0]


def model(params, config, tokens, states=None, resets=None, padding=None, method="auto", compute_dtype="float32"):
    """(logits, final states)."""
    net = _model(params, config, compute_dtype=compute_dtype, method=method)
    with torch.no_grad():
        return _arrays(*net(*_tensors(tokens, real(states, compute_dtype), resets, padding)))


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
):
    """(loss, gradients by path, gradient of the initial states, final states).

    The gradients are those of loss + sum(final_state_gradient * final states). `chunk` is the most logits a chunk.
    """
    net = _model(params, config, compute_dtype=compute_dtype, method=method, remat=remat, loss_method=loss_method)
    initial, final_gradient = _tensors(real(states, compute_dtype), real(final_state_gradient, compute_dtype))
    named = {**dict(net.named_parameters()), "": initial.requires_grad_()}
    with chunk_logits(losses, chunk):
        loss, last = net.loss(*_tensors(tokens, labels), initial, *_tensors(resets, padding))
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
    net = torch_impl.LiquidNet(config, seed)
    return torch_impl.dump_parameters(net), net.num_parameters()


def generate(params, config, prompt, max_length, **sampling):
    """The prompt and what follows it, by `LiquidNet.generate`."""
    return _model(params, config).generate(*_tensors(prompt), max_length, **sampling).numpy()


def make_step(params, config):
    """The model as a step of generation."""
    return generation.make_step(_model(params, config))


def _tensors(*arrays: np.ndarray | None) -> list[Tensor | None]:
    return [None if array is None else torch.tensor(array) for array in arrays]


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(x.detach().numpy() for x in tensors)


@cache
def _cached(config: LiquidNetConfig, **options: Any) -> torch_impl.LiquidNet:
    return torch_impl.LiquidNet(config, **options)


def _model(params: Mapping[str, np.ndarray], config: LiquidNetConfig, **options: Any) -> torch_impl.LiquidNet:
    net = _cached(config, **options)
    torch_impl.load_parameters(net, params)
    return net
