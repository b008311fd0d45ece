"""The matrix products of a train step and nothing else: each weight forward, its gradient, and that of its input.

What a step takes above them is everything that is not a product. They are made three times: as the model of torch_impl
multiplies, by torch.mm, and by JAX, so that a gap between the backends shows where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spec.config import ModelConfig
from tools.bench.sizes import Training
from tools.bench.timer import Call
from tools.cli import backends

OURS = "torch products, as the model multiplies"
MM = "torch products, torch.mm"
JAX = "jax products"
BLOCK_LOGITS = 2**21
"""As many as torch_impl.ops.cross_entropy.numba makes at a time, which needs Numba to be imported."""


def step_products(training: Training) -> dict[str, Callable[[], Call]]:
    """What makes each way's call, by name."""
    found: dict[str, Callable[[], Call]] = {}
    if "torch" in backends.installed():
        found |= {OURS: lambda: _as_the_model(training), MM: lambda: _by_mm(training)}
    if "jax" in backends.installed():
        found[JAX] = lambda: _by_jax(training)
    return found


def layer_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix in the blocks, block by block."""
    d, f = config.d_model, config.d_ff
    return [(d, 3 * d), (d, d), (d, 2 * f), (f, d)] * config.n_layers


def chunk_sizes(tokens: int, most: int) -> list[int]:
    """How many tokens each chunk of the read-out has, at most `most` of them."""
    return [min(most, tokens - start) for start in range(0, tokens, most)]


def _arrays(training: Training) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], int]:
    """(input, weight (out, in), gradient of the output) of each product, the embedding's last, and the tokens."""
    random, tokens = np.random.default_rng(0), training.rows * training.length
    c = training.config
    arrays: dict[tuple[int, ...], np.ndarray] = {}

    def array(*shape: int) -> np.ndarray:
        # Activations of one shape are one array: there are layers enough to drive it out of a cache.
        return arrays.setdefault(shape, random.standard_normal(shape, np.float32))

    every = [*layer_shapes(c), (c.d_model, c.vocab_size)]
    return [
        (array(tokens, i), 0.02 * random.standard_normal((o, i), np.float32), array(tokens, o)) for i, o in every
    ], tokens


def _as_the_model(training: Training) -> Call:
    """Through `layers.Linear` with autograd; the read-out by `products`, block by block as the loss makes it."""
    import torch

    from torch_impl.layers import Linear
    from torch_impl.ops.matmul import gradients, product

    arrays, tokens = _arrays(training)
    *layers, (hidden, embedding, of_logits) = arrays
    jobs = []
    for x, weight, of_y in layers:
        linear = Linear(x.shape[1], len(weight))
        linear.load_state_dict({"weight": torch.from_numpy(weight)})
        # Batch and time apart, as the model has them.
        x_btd, of_y_btd = (torch.from_numpy(a).view(training.rows, training.length, -1) for a in (x, of_y))
        jobs.append((linear, x_btd.requires_grad_(), of_y_btd))
    h_nd, words = torch.from_numpy(hidden), max(1, BLOCK_LOGITS // tokens)
    blocks = [
        (
            torch.from_numpy(embedding[start : start + words]),
            torch.from_numpy(of_logits[:, start : start + words].copy()),
        )
        for start in range(0, len(embedding), words)
    ]

    def call() -> None:
        for linear, x_btd, of_y_btd in jobs:
            torch.autograd.grad(linear(x_btd), (x_btd, linear.weight), of_y_btd)
        with torch.no_grad():
            for weight, of_z in blocks:
                product(h_nd, weight)
                gradients(h_nd, weight, of_z)

    return call


def _by_mm(training: Training) -> Call:
    """torch.mm into arrays that are there; gradients of the embedding are added up by addmm."""
    import torch

    from torch_impl.ops.cross_entropy import CHUNK_LOGITS

    arrays, tokens = _arrays(training)
    *layers, (h, table, of_z) = [tuple(torch.from_numpy(array) for array in one) for one in arrays]
    outs = [tuple(torch.empty_like(one) for one in (of_y, x, weight)) for x, weight, of_y in layers]
    most = max(1, CHUNK_LOGITS // len(table))
    z, of_h, of_table = torch.empty(min(most, tokens), len(table)), torch.empty_like(h), torch.zeros_like(table)

    def call() -> None:
        for (x, weight, of_y), (y, of_x, of_weight) in zip(layers, outs, strict=True):
            torch.mm(x, weight.T, out=y)
            torch.mm(of_y, weight, out=of_x)
            torch.mm(of_y.T, x, out=of_weight)
        start = 0
        for rows in chunk_sizes(tokens, most):
            here = slice(start, start + rows)
            torch.mm(h[here], table.T, out=z[:rows])
            torch.mm(of_z[here], table, out=of_h[here])
            torch.addmm(of_table, of_z[here].T, h[here], out=of_table)
            start += rows

    return call


def _by_jax(training: Training) -> Call:
    """One compiled program a shape, called for each layer: in one program XLA would make equal products once."""
    import jax
    import jax.numpy as jnp

    from jax_impl.ops.cross_entropy import CHUNK_LOGITS
    from jax_impl.ops.cross_entropy.fused_linear_cross_entropy import MORE

    def multiply(a: Any, b: Any) -> Any:
        return jnp.matmul(a, b, precision="highest")

    @jax.jit
    def three(x: Any, weight: Any, of_y: Any) -> Any:
        return multiply(x, weight.T), multiply(of_y, weight), multiply(of_y.T, x)

    arrays, tokens = _arrays(training)
    *layers, (h, table, of_z) = [tuple(jax.device_put(array) for array in one) for one in arrays]
    start, chunks = 0, []
    for rows in chunk_sizes(tokens, max(1, CHUNK_LOGITS * MORE // len(table))):
        chunks.append((h[start : start + rows], table, of_z[start : start + rows]))
        start += rows

    def call() -> None:
        for one in (*layers, *chunks):
            jax.block_until_ready(three(*one))

    return call
