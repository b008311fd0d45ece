"""What is measured on a device: a copy, the matrix peak, and every method of scan, mixer and loss beside peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from spec.config import ModelConfig, TrainingConfig
from spec.presets import PRESETS, RECIPES
from tools.bench import peers
from tools.bench.peers import Job, Shape
from tools.bench.timer import Call, Clock, Row, bandwidth, guarded

SCAN_BYTES = (12, 20)
"""float32. Forward: decay, drive read; states written. Backward: decay, states and gradient read; two written."""
MIXER_BYTES = (8, 14)
"""bfloat16. Forward: 3 pre-activations read, 1 output written. Backward: 3 and a gradient read, 3 written."""
COPY = "measured copy"
RECIPE = replace(RECIPES["small"], compute_dtype="bfloat16")


@dataclass(frozen=True)
class Sizes:
    """How large everything is that is measured.

    Args:
        config: the model that is trained and decoded.
        training: its recipe, compute dtype included.
        shapes: [b, t, d] of scan and mixer: the recipe's, and few channels over a long time.
        copied: bytes of the array that is copied.
        square: side of the matrices whose product gives the peak.
        decoded: batches of the decode step.
        steps: tokens that each stream decodes in one measurement.
        compiled: whether train steps run eagerly, compiled, or one after the other.
    """

    config: ModelConfig = PRESETS["small"]
    training: TrainingConfig = RECIPE
    shapes: tuple[Shape, ...] = ((48, 512, 384), (1, 16384, 384))
    copied: int = 2**29
    square: int = 8192
    decoded: tuple[int, ...] = (1, 64)
    steps: int = 32
    compiled: tuple[bool, ...] = (False, True)


def peak(clock: Clock, sizes: Sizes) -> list[Row]:
    """A large copy and a large bfloat16 product: what this device reaches when there is nothing to do but that."""
    import torch

    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    left, right = (torch.randn(sizes.square, sizes.square, device=clock.device).to(torch.bfloat16) for _ in range(2))
    copy: Row = {"name": COPY, "bytes": 2 * sizes.copied}
    product: Row = {"name": f"bfloat16 product of {sizes.square} x {sizes.square}", "flops": 2.0 * sizes.square**3}
    clock.kernels([(copy, lambda: target.copy_(source)), (product, lambda: left @ right)])
    bandwidth([copy], copy)
    if "milliseconds" in product:
        product["tflops"] = product["flops"] / product["milliseconds"] / 1e9
    return [copy, product]


def differentiated(job: Job) -> tuple[Call, Call]:
    """The job's forward alone, and with the gradients of all its inputs."""
    import torch

    function, inputs = job
    gradient: list[Any] = []

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    def both() -> None:
        output = function(*inputs)
        if not gradient:
            gradient.append(torch.randn_like(output))
        torch.autograd.grad(output, inputs, gradient[0])

    return forward, both


def _table(clock: Clock, shape: Shape, least: tuple[int, int], jobs: dict[str, Callable[[], Job]]) -> list[Row]:
    """Two rows a job, forward and forward + backward, in turns with a copy, in GB/s of the bytes it must move.

    The copy moves as many bytes as the forward pass must: what is left in the cache at the end is left for both.
    """
    import torch

    b, t, d = shape
    source = torch.zeros(least[0] * b * t * d // 2, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy: Row = {"name": COPY, "pass": "", "shape": shape, "bytes": 2 * source.numel()}
    calls: list[tuple[Row, Call]] = [(copy, lambda: target.copy_(source))]
    rows = [copy]
    for name, make in jobs.items():
        row: Row = {"name": name, "shape": shape}
        if name in peers.SCANS or name in peers.MIXERS:
            row["peer"] = True
        made = guarded(row, lambda make=make: differentiated(make()))
        passes = zip(("forward", "forward + backward"), made or (None, None), (least[0], sum(least)), strict=True)
        for what, call, each in passes:
            one = {**row, "pass": what, "bytes": each * b * t * d}
            rows.append(one)
            if call is not None:
                calls.append((one, call))
    clock.kernels(calls)
    bandwidth(rows, copy)
    return rows


def scans(clock: Clock, sizes: Sizes) -> list[Row]:
    """Every scan method and the peers', float32."""
    import torch

    from torch_impl.ops.scan import METHODS, scan

    def job(shape: Shape, method: str) -> Job:
        generator = torch.Generator(clock.device).manual_seed(0)
        decay = torch.rand(shape, device=clock.device, generator=generator).requires_grad_()
        drive = torch.randn(shape, device=clock.device, generator=generator).requires_grad_()
        return lambda decay, drive: scan(decay, drive, method=method)[0], [decay, drive]

    rows = []
    for shape in sizes.shapes:
        jobs: dict[str, Callable[[], Job]] = {name: partial(job, shape, name) for name in METHODS if name != "auto"}
        jobs |= {name: partial(make, shape, clock.device) for name, make in peers.SCANS.items()}
        rows += _table(clock, shape, SCAN_BYTES, jobs)
    return rows


def mixers(clock: Clock, sizes: Sizes) -> list[Row]:
    """Every mixer method and the peers', bfloat16 pre-activations."""
    from torch_impl.ops.gated_scan import METHODS, mixer

    def job(shape: Shape, method: str) -> Job:
        def run(pre_btx, decay_bias_d):
            return mixer(pre_btx, decay_bias_d, 1e-6, method=method)[0]

        return run, peers.mixer_inputs(shape, clock.device)

    rows = []
    for shape in sizes.shapes:
        jobs: dict[str, Callable[[], Job]] = {name: partial(job, shape, name) for name in METHODS if name != "auto"}
        jobs |= {name: partial(make, shape, clock.device, 1e-6) for name, make in peers.MIXERS.items()}
        rows += _table(clock, shape, MIXER_BYTES, jobs)
    return rows


def losses(clock: Clock, sizes: Sizes) -> list[Row]:
    """Every loss method, forward + backward, for a step's tokens: milliseconds, and memory beyond the inputs'."""
    import torch

    from torch_impl.layers import COMPUTE
    from torch_impl.ops.cross_entropy import METHODS, cross_entropy

    b, t, d, v = sizes.training.batch_size, sizes.training.seq_len, sizes.config.d_model, sizes.config.vocab_size
    generator = torch.Generator(clock.device).manual_seed(0)
    hidden = torch.randn(b, t, d, device=clock.device, generator=generator).requires_grad_()
    embedding = (0.02 * torch.randn(v, d, device=clock.device, generator=generator)).requires_grad_()
    labels = torch.randint(v, (b, t), device=clock.device, generator=generator)

    def run(method: str) -> None:
        nats, _ = cross_entropy(hidden, embedding, labels, COMPUTE[sizes.training.compute_dtype], method)
        torch.autograd.grad(nats, (hidden, embedding))

    def extra_mib(method: str) -> float | None:
        run(method)
        clock.wait()
        if not clock.cuda:
            return None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(method)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    calls: list[tuple[Row, Call]] = []
    for name in (name for name in METHODS if name != "auto"):
        row: Row = {"name": name, "shape": (b * t, v), "float32_logits_mib": 4 * b * t * v / 2**20}
        extra = guarded(row, partial(extra_mib, name))
        row["extra_mib"] = extra
        calls.append((row, partial(run, name)))
        if clock.cuda:
            torch.cuda.empty_cache()
    clock.kernels(calls)
    return [row for row, _ in calls]
