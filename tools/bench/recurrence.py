"""Every method of scan and mixer of both backends, in turns with one pass over memory of the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from parity.proof.interpreted_kernels import is_slow
from tools.bench.machine import PASS, pass_ways
from tools.bench.sections import SCAN_BYTES, differentiated
from tools.bench.sizes import Sizes
from tools.bench.timer import Call, Clock, NotRun, Row, guarded
from tools.cli import backends

MIXER_BYTES = (16, 28)
"""float32, a token and channel: twice those of `bench_sections.MIXER_BYTES`."""
PASS_BYTES = 12
MORE_ROUNDS = 4
FORWARD, BOTH = "forward", "forward + backward"
Arrays = tuple[np.ndarray, ...]
Passes = Callable[[Callable[..., Any], Arrays, Any], tuple[Call, Call]]


def scans(clock: Clock, sizes: Sizes) -> list[Row]:
    """Every scan method in float32."""
    random = np.random.default_rng(0)
    arrays = random.random(sizes.shape, np.float32), random.standard_normal(sizes.shape, np.float32)

    def function(backend: str, method: str) -> Callable[..., Any]:
        scan = backends.load(backend, "ops.scan").scan
        return lambda decay, drive: scan(decay, drive, method=method)[0]

    return _table(clock, sizes, "scan", SCAN_BYTES, arrays, function)


def mixers(clock: Clock, sizes: Sizes) -> list[Row]:
    """Every mixer method, float32 pre-activations, half-lives from 1 to 4096 tokens."""
    b, t, d = sizes.shape
    pre_btx = np.random.default_rng(0).standard_normal((b, t, 3 * d), np.float32)
    bias_d = np.log(np.expm1(np.log(2.0) / np.logspace(0.0, np.log10(4096.0), d))).astype(np.float32)

    def function(backend: str, method: str) -> Callable[..., Any]:
        mixer = backends.load(backend, "ops.gated_scan").mixer
        return lambda pre_btx, bias_d: mixer(pre_btx, bias_d, 1e-6, method=method)[0]

    return _table(clock, sizes, "mixer", MIXER_BYTES, (pre_btx, bias_d), function)


def _table(
    clock: Clock, sizes: Sizes, module: str, least: tuple[int, int], arrays: Arrays, function: Callable[..., Any]
) -> list[Row]:
    """Rows with `passes`: how often a pass over memory, at the bytes that the job must move at least, fits in."""
    elements = int(np.prod(sizes.shape))
    calls: list[tuple[Row, Call]] = [
        ({"name": f"{PASS}, {way}", "pass": "", "bytes": PASS_BYTES * elements}, call)
        for way, call in pass_ways(sizes.shape).items()
    ]
    of_passes, rows = [row for row, _ in calls], [row for row, _ in calls]
    for backend in backends.installed():
        chosen = backends.load(backend, "ops.scan").choose_method(sizes.shape)
        for method in backends.load(backend, module).METHODS:
            if method == "auto":
                continue
            row: Row = {"name": f"{backend} {method}", "backend": backend, "auto": method == chosen}
            made = guarded(row, partial(_passes, backend, method, function, arrays))
            both = zip((FORWARD, BOTH), made or (None, None), (least[0], sum(least)), strict=True)
            for what, call, each in both:
                one = {**row, "pass": what, "bytes": each * elements}
                rows.append(one)
                calls += [(one, call)] if call else []
    # Milliseconds each: what is measured in a moment wants more of them.
    Clock(clock.device, MORE_ROUNDS * clock.rounds).steps(calls)
    fastest = min((row["milliseconds"] for row in of_passes if "milliseconds" in row), default=None)
    for row in rows:
        if "milliseconds" in row and fastest:
            row["passes"] = row["milliseconds"] / (fastest * row["bytes"] / (PASS_BYTES * elements))
    return rows


def _passes(backend: str, method: str, function: Callable[..., Any], arrays: Arrays) -> tuple[Call, Call]:
    """The method forward, and with the gradients of all its inputs."""
    if is_slow(backend, method):
        raise NotRun("interpreted here, which says nothing of the device it is for")
    if backend == "torch":
        import torch

        return differentiated((function("torch", method), [torch.from_numpy(x).requires_grad_() for x in arrays]))
    return _of_jax(function("jax", method), arrays)


def _of_jax(function: Callable[..., Any], arrays: Arrays) -> tuple[Call, Call]:
    import jax

    given = [jax.device_put(array) for array in arrays]
    forward = jax.jit(function)
    like = jax.eval_shape(function, *given)
    gradient = jax.device_put(np.random.default_rng(1).standard_normal(like.shape, np.float32))

    @jax.jit
    def both(gradient: Any, *given: Any) -> Any:
        output, pull_back = jax.vjp(function, *given)
        return output, pull_back(gradient)

    return (
        lambda: jax.block_until_ready(forward(*given)),
        lambda: jax.block_until_ready(both(gradient, *given)),
    )
