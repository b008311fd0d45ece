"""Every method of scan, mixer and loss, in turns with a pass over memory or a copy of the same arrays, beside peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from parity.proof.interpreted_kernels import is_slow
from tools.bench.machine import COPY, PASS, pass_ways, torch_copy
from tools.bench.sizes import Sizes
from tools.bench.timer import Call, NotRun, Row, Shape, Timer, bandwidth, guarded
from tools.cli import backends

if TYPE_CHECKING:
    import jax
    import torch

PASS_ARRAYS = 3
DELTA_MIN = 1e-6
FORWARD, BOTH = "forward", "forward + backward"
Passes = tuple[Call, Call]
"""Forward alone, and with the gradients of all inputs."""


@dataclass(frozen=True)
class Operation:
    """An operation that carries a state over time.

    Args:
        name: of the function in its module.
        module: of a backend.
        arrays: how many numbers a token and channel the forward pass must read and write at least, and the backward.
        inputs: makes its inputs for a shape [b, t, d].
    """

    name: str
    module: str
    arrays: tuple[int, int]
    inputs: Callable[[Shape], list[np.ndarray]]


def _scan_inputs(shape: Shape) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.random(shape, np.float32), random.standard_normal(shape, np.float32)]


def _mixer_inputs(shape: Shape) -> list[np.ndarray]:
    """Pre-activations, and the decay bias of half-lives from 1 to 4096 tokens."""
    b, t, d = shape
    pre_btx = np.random.default_rng(0).standard_normal((b, t, 3 * d), np.float32)
    bias_d = np.log(np.expm1(np.log(2.0) / np.logspace(0.0, np.log10(4096.0), d))).astype(np.float32)
    return [pre_btx, bias_d]


# Forward: decay, drive read; states written. Backward: decay, states and gradient read; two written.
SCAN = Operation("scan", "ops.scan", (3, 5), _scan_inputs)
# Forward: 3 pre-activations read, 1 output written. Backward: 3 and a gradient read, 3 written.
MIXER = Operation("gated_scan", "ops.gated_scan", (4, 7), _mixer_inputs)


def methods(operation: Operation, timer: Timer, sizes: Sizes) -> list[Row]:
    """Every method of it in float32; on a GPU the mixer's pre-activations are bfloat16."""
    return [row for shape in sizes.shapes for row in _measured(timer, sizes, operation, shape)]


def _measured(timer: Timer, sizes: Sizes, operation: Operation, shape: Shape) -> list[Row]:
    """Two rows a method, forward and forward + backward, with the bytes that it must move at least.

    On a processor `passes`: how often a pass over memory fits in, for the same bytes. On a GPU GB/s, beside a copy that
    moves as many bytes as the forward pass must: what is left in the cache at the end is left for both.
    """
    narrow = sizes.gpu and operation is MIXER
    elements, size = int(np.prod(shape)), 2 if narrow else 4
    least = tuple(size * count * elements for count in (operation.arrays[0], sum(operation.arrays)))
    if sizes.gpu:
        moved, call = torch_copy(least[0] // 2, timer.device)
        calls: list[tuple[Row, Call]] = [({"name": COPY, "pass": "", "shape": shape, "bytes": moved}, call)]
    else:
        moved = 4 * PASS_ARRAYS * elements
        calls = [({"name": f"{PASS}, {way}", "pass": "", "bytes": moved}, call)
                 for way, call in pass_ways(shape).items()]  # fmt: skip
    rows = [row for row, _ in calls]
    references = list(rows)
    for row, make in _candidates(timer, sizes, operation, shape, narrow):
        made = guarded(row, make)
        for what, call, each in zip((FORWARD, BOTH), made or (None, None), least, strict=True):
            one: Row = {**row, "pass": what, "bytes": each}
            rows.append(one)
            calls += [(one, call)] if call else []
    timer.kernels(calls)
    if sizes.gpu:
        bandwidth(rows, references[0])
        return rows
    fastest = min((row["milliseconds"] for row in references if "milliseconds" in row), default=None)
    for row in rows:
        if "milliseconds" in row and "bytes" in row and fastest:
            row["passes"] = row["milliseconds"] / (fastest * row["bytes"] / moved)
    return rows


def _candidates(
    timer: Timer, sizes: Sizes, operation: Operation, shape: Shape, narrow: bool
) -> list[tuple[Row, Callable[[], Passes]]]:
    """Every method of every backend, and on a GPU the kernels of others; each is made when it is asked for."""
    arrays, extra = operation.inputs(shape), (DELTA_MIN,) if operation is MIXER else ()

    def inputs() -> list[torch.Tensor]:
        import torch

        tensors = [torch.from_numpy(array).to(timer.device) for array in arrays]
        if narrow:
            tensors[0] = tensors[0].to(torch.bfloat16)
        return [tensor.detach().requires_grad_() for tensor in tensors]

    def passes(backend: str, method: str) -> Passes:
        if is_slow(backend, method):
            raise NotRun("interpreted here, which says nothing of the device it is for")
        call = getattr(backends.load(backend, operation.module), operation.name)

        def function(*given):
            return call(*given, *extra, method=method)[0]

        return torch_passes(function, inputs()) if backend == "torch" else _jax_passes(function, arrays)

    found: list[tuple[Row, Callable[[], Passes]]] = []
    for backend in sizes.backends:
        chosen = backends.load(backend, "ops.scan").choose_method(shape)
        for method in backends.load(backend, operation.module).METHODS:
            if method != "auto":
                row: Row = {"name": f"{backend} {method}", "backend": backend, "auto": method == chosen}
                row = {"name": method, "shape": shape} if sizes.gpu else row
                found.append((row, partial(passes, backend, method)))
    if sizes.gpu and sizes.peers:
        from tools.bench import peers

        for name, make in (peers.SCANS if operation is SCAN else peers.MIXERS).items():
            row = {"name": name, "shape": shape, "peer": True}
            found.append((row, lambda make=make: torch_passes(*make(inputs(), *extra))))
    return found


def torch_passes(function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> Passes:
    """The function forward, and with the gradients of all its inputs."""
    import torch

    gradient: list[torch.Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    def both() -> None:
        output = function(*inputs)
        if not gradient:
            gradient.append(torch.randn_like(output))
        torch.autograd.grad(output, inputs, gradient[0])

    return forward, both


def _jax_passes(function: Callable[..., jax.Array], arrays: Sequence[np.ndarray]) -> Passes:
    import jax

    given = [jax.device_put(array) for array in arrays]
    forward = jax.jit(function)
    like = jax.eval_shape(function, *given)
    gradient = jax.device_put(np.random.default_rng(1).standard_normal(like.shape, np.float32))

    @jax.jit
    def both(gradient: jax.Array, *given: jax.Array):
        output, pull_back = jax.vjp(function, *given)
        return output, pull_back(gradient)

    return (lambda: jax.block_until_ready(forward(*given)), lambda: jax.block_until_ready(both(gradient, *given)))


def losses(timer: Timer, sizes: Sizes) -> list[Row]:
    """Every loss method, forward + backward, for a step's tokens: milliseconds, and memory beyond the inputs'."""
    import torch

    from torch_impl.layers import COMPUTE
    from torch_impl.ops.cross_entropy import METHODS, cross_entropy

    config, recipe = sizes.training[0].config, sizes.training[0].recipe
    b, t, d, v = recipe.batch_size, recipe.seq_len, config.d_model, config.vocab_size
    generator = torch.Generator(timer.device).manual_seed(0)
    hidden = torch.randn(b, t, d, device=timer.device, generator=generator).requires_grad_()
    embedding = (0.02 * torch.randn(v, d, device=timer.device, generator=generator)).requires_grad_()
    labels = torch.randint(v, (b, t), device=timer.device, generator=generator)

    def run(method: str) -> None:
        nats, _ = cross_entropy(hidden, embedding, labels, COMPUTE[recipe.compute_dtype], method)
        torch.autograd.grad(nats, (hidden, embedding))

    def extra_mib(method: str) -> float | None:
        run(method)
        timer.wait()
        if not timer.cuda:
            return None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(method)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    calls: list[tuple[Row, Call]] = []
    for name in (name for name in METHODS if name != "auto"):
        row: Row = {"name": name, "shape": (b * t, v), "float32_logits_mib": 4 * b * t * v / 2**20}
        row["extra_mib"] = guarded(row, partial(extra_mib, name))
        calls.append((row, partial(run, name)))
        if timer.cuda:
            torch.cuda.empty_cache()
    timer.kernels(calls)
    return [row for row, _ in calls]
