"""What a device reaches where there is nothing to do but that: a pass over memory, reading, products of matrices.

The products of a train step and nothing else are each weight forward, its gradient, and that of its input. What a step
takes above them is everything that is not a product. They are made three times: as the model of torch_impl multiplies,
by torch.mm, and by JAX, so that a gap between the backends shows where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from spec.config import ModelConfig
from tools.bench.sizes import Sizes, TrainStep
from tools.bench.timer import Call, Row, Shape, Timer, add_gb_per_s, bandwidth
from tools.cli import backends

if TYPE_CHECKING:
    import jax

COPY, PASS, READING, PRODUCT = "measured copy", "memory pass", "reading", "float32 product"
TORCH_PRODUCTS = "torch products, as the model multiplies"
MM_PRODUCTS = "torch products, torch.mm"
JAX_PRODUCTS = "jax products"
BLOCK_LOGITS = 2**21
"""As many as torch_impl.ops.cross_entropy.numba makes at a time, which needs Numba to be imported."""
Ways = dict[str, Call]


def machine(timer: Timer, sizes: Sizes) -> list[Row]:
    """A pass, reading and a product, in every way that is installed: GB/s, GFLOP/s; others are held to the fastest."""
    calls: list[tuple[Row, Call]] = []
    shape, side = (sizes.large // 4,), sizes.square
    planned: list[tuple[str, Ways, Row]] = [
        (PASS, pass_ways(shape), {"bytes": 3 * sizes.large}),
        (READING, read_ways(sizes.large), {"bytes": sizes.large}),
        (PRODUCT, _product_ways(side), {"flops": 2.0 * side**3}),
    ]
    for name, ways, work in planned:
        for way, call in ways.items():
            calls.append(({"name": name, "way": way, **work}, call))
    timer.steps(calls)
    add_gb_per_s(row for row, _ in calls)
    for row, _ in calls:
        if "milliseconds" in row and "flops" in row:
            row["gflops"] = row["flops"] / row["milliseconds"] / 1e6
    return [row for row, _ in calls]


def peak(timer: Timer, sizes: Sizes) -> list[Row]:
    """A large copy and a large bfloat16 product on a GPU."""
    import torch

    moved, call = torch_copy(sizes.large, timer.device)
    left, right = (torch.randn(sizes.square, sizes.square, device=timer.device).to(torch.bfloat16) for _ in range(2))
    copy: Row = {"name": COPY, "bytes": moved}
    product: Row = {"name": f"bfloat16 product of {sizes.square} x {sizes.square}", "flops": 2.0 * sizes.square**3}
    timer.kernels([(copy, call), (product, lambda: left @ right)])
    bandwidth([], copy)
    if "milliseconds" in product and "flops" in product:
        product["tflops"] = product["flops"] / product["milliseconds"] / 1e9
    return [copy, product]


def torch_copy(size: int, device: str) -> tuple[int, Call]:
    """The bytes that a copy of an array of so many bytes reads and writes, and the copy."""
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size, lambda: target.copy_(source)


def pass_ways(shape: Shape) -> Ways:
    """Two float32 arrays read and one written; each way has its own, or the one before would fill the cache for it."""
    left, right, out = (np.ones(shape, np.float32) for _ in range(3))
    ways: Ways = {"numpy": lambda: np.add(left, right, out=out)}
    if "torch" in backends.installed():
        torch = _torch()
        a, b, c = (torch.ones(shape) for _ in range(3))
        ways["torch"] = lambda: torch.add(a, b, out=c)
    return ways


def read_ways(size: int) -> Ways:
    """The sum of an array of so many bytes."""
    # Ones: pages that were never written are all one page, which a cache holds.
    array = np.ones(size // 4, np.float32)
    ways: Ways = {"numpy": array.sum}
    if "torch" in backends.installed():
        ways["torch"] = _torch().from_numpy(array).sum
    if "jax" in backends.installed():
        import jax

        ways["jax"] = _ready(jax.jit(lambda x: x.sum()), jax.device_put(array))
    return ways


def _product_ways(side: int) -> Ways:
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((side, side), np.float32) for _ in range(2))
    ways: Ways = {"numpy": lambda: left @ right}
    if "torch" in backends.installed():
        torch = _torch()
        a, b = torch.from_numpy(left), torch.from_numpy(right)
        rows, kernel = a.T[None, :, :, None], b.T[:, :, None, None].contiguous()
        rows = rows.to(memory_format=torch.channels_last)
        ways["torch.mm"] = lambda: a @ b
        # What a convolution over single points computes is a product, by another library than torch.mm's.
        ways["torch conv2d 1 x 1"] = lambda: torch.nn.functional.conv2d(rows, kernel)
    if "jax" in backends.installed():
        import jax
        import jax.numpy as jnp

        ways["jax"] = _ready(
            jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest")), jax.device_put(left), jax.device_put(right)
        )
    return ways


def _torch() -> ModuleType:
    # By way of the backend, which tells OpenMP how to wait before anything starts it.
    backends.load("torch", "layers")
    import torch

    return torch


def _ready(program: Callable[..., jax.Array], *arguments: jax.Array) -> Call:
    import jax

    return lambda: jax.block_until_ready(program(*arguments))


def step_products(step: TrainStep) -> dict[str, Callable[[], Call]]:
    """What makes the call of each way to multiply the matrices of a train step, by name."""
    found: dict[str, Callable[[], Call]] = {}
    if "torch" in backends.installed():
        found |= {TORCH_PRODUCTS: lambda: _as_the_model(step), MM_PRODUCTS: lambda: _by_mm(step)}
    if "jax" in backends.installed():
        found[JAX_PRODUCTS] = lambda: _by_jax(step)
    return found


def layer_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix in the blocks, block by block."""
    d, f = config.d_model, config.d_ff
    return [(d, 3 * d), (d, d), (d, 2 * f), (f, d)] * config.n_layers


def chunk_sizes(tokens: int, most: int) -> list[int]:
    """How many tokens each chunk of the LM head has, at most `most` of them."""
    return [min(most, tokens - start) for start in range(0, tokens, most)]


def _arrays(step: TrainStep) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(input, weight (out, in), gradient of the output) of each product, the embedding's last."""
    random, c = np.random.default_rng(0), step.config
    arrays: dict[Shape, np.ndarray] = {}

    def array(*shape: int) -> np.ndarray:
        # Activations of one shape are one array: there are layers enough to drive it out of a cache.
        return arrays.setdefault(shape, random.standard_normal(shape, np.float32))

    return [
        (array(step.tokens, i), 0.02 * random.standard_normal((o, i), np.float32), array(step.tokens, o))
        for i, o in (*layer_shapes(c), (c.d_model, c.vocab_size))
    ]


def _as_the_model(step: TrainStep) -> Call:
    """Through `layers.Linear` with autograd; the LM head by `product`, block by block as the loss makes it."""
    import torch

    from torch_impl.layers import Linear
    from torch_impl.ops.matmul import matmul, matmul_gradients

    *layers, (hidden, embedding, grad_logits) = _arrays(step)
    jobs = []
    for x, weight, grad_y in layers:
        linear = Linear(x.shape[1], len(weight))
        linear.load_state_dict({"weight": torch.from_numpy(weight)})
        # Batch and time apart, as the model has them.
        x_btd, grad_y_btd = (
            torch.from_numpy(array).view(step.recipe.batch_size, step.recipe.seq_len, -1) for array in (x, grad_y)
        )
        jobs.append((linear, x_btd.requires_grad_(), grad_y_btd))
    h_nd, words = torch.from_numpy(hidden), max(1, BLOCK_LOGITS // step.tokens)
    blocks = [
        (
            torch.from_numpy(embedding[start : start + words]),
            torch.from_numpy(grad_logits[:, start : start + words].copy()),
        )
        for start in range(0, len(embedding), words)
    ]

    def call() -> None:
        for linear, x_btd, grad_y_btd in jobs:
            torch.autograd.grad(linear(x_btd), (x_btd, linear.weight), grad_y_btd)
        with torch.no_grad():
            for weight, grad_z in blocks:
                matmul(h_nd, weight)
                matmul_gradients(h_nd, weight, grad_z)

    return call


def _by_mm(step: TrainStep) -> Call:
    """torch.mm into arrays that are there; gradients of the embedding are added up by addmm."""
    import torch

    from torch_impl.ops.cross_entropy import CHUNK_LOGITS

    *layers, (h, table, grad_z) = [tuple(torch.from_numpy(array) for array in one) for one in _arrays(step)]
    outs = [tuple(torch.empty_like(one) for one in (grad_y, x, weight)) for x, weight, grad_y in layers]
    most = max(1, CHUNK_LOGITS // len(table))
    z, grad_h = torch.empty(min(most, step.tokens), len(table)), torch.empty_like(h)
    grad_table = torch.zeros_like(table)

    def call() -> None:
        for (x, weight, grad_y), (y, grad_x, grad_weight) in zip(layers, outs, strict=True):
            torch.mm(x, weight.T, out=y)
            torch.mm(grad_y, weight, out=grad_x)
            torch.mm(grad_y.T, x, out=grad_weight)
        start = 0
        for rows in chunk_sizes(step.tokens, most):
            here = slice(start, start + rows)
            torch.mm(h[here], table.T, out=z[:rows])
            torch.mm(grad_z[here], table, out=grad_h[here])
            torch.addmm(grad_table, grad_z[here].T, h[here], out=grad_table)
            start += rows

    return call


def _by_jax(step: TrainStep) -> Call:
    """One compiled program a shape, called for each layer: in one program XLA would make equal products once."""
    import jax
    import jax.numpy as jnp

    from jax_impl.ops.cross_entropy import CHUNK_LOGITS
    from jax_impl.ops.cross_entropy.fused_linear import CHUNK_FACTOR

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision="highest")

    @jax.jit
    def three(x: jax.Array, weight: jax.Array, grad_y: jax.Array):
        return multiply(x, weight.T), multiply(grad_y, weight), multiply(grad_y.T, x)

    *layers, (h, table, grad_z) = [tuple(jax.device_put(array) for array in one) for one in _arrays(step)]
    start, chunks = 0, []
    for rows in chunk_sizes(step.tokens, max(1, CHUNK_LOGITS * CHUNK_FACTOR // len(table))):
        chunks.append((h[start : start + rows], table, grad_z[start : start + rows]))
        start += rows

    def call() -> None:
        for one in (*layers, *chunks):
            jax.block_until_ready(three(*one))

    return call
