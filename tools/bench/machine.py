"""What the processor reaches where there is nothing to do but that: a pass over memory, reading, a matrix product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.bench.sizes import Sizes
from tools.bench.timer import Call, Clock, Row
from tools.cli import backends

PASS, READING, PRODUCT = "memory pass", "reading", "float32 product"
Ways = dict[str, Call]


def machine(clock: Clock, sizes: Sizes) -> list[Row]:
    """Each of the three, in every way that is installed: GB/s, GFLOP/s; the fastest way is what others are held to."""
    rows: list[tuple[Row, Call]] = []
    shape, side = (sizes.large // 4,), sizes.square
    for name, ways, work in (
        (PASS, pass_ways(shape), {"bytes": 3 * sizes.large}),
        (READING, read_ways(sizes.large), {"bytes": sizes.large}),
        (PRODUCT, _product_ways(side), {"flops": 2.0 * side**3}),
    ):
        rows += [({"name": name, "way": way, **work}, call) for way, call in ways.items()]
    clock.steps(rows)
    for row, _ in rows:
        if "milliseconds" in row:
            if "bytes" in row:
                row["gb_per_s"] = row["bytes"] / row["milliseconds"] / 1e6
            else:
                row["gflops"] = row["flops"] / row["milliseconds"] / 1e6
    return [row for row, _ in rows]


def fastest(rows: list[Row], name: str) -> Row:
    """The row of this name that took least; an empty one where none ran."""
    return min((row for row in rows if row["name"] == name and "milliseconds" in row),
               key=lambda row: row["milliseconds"], default={})  # fmt: skip


def pass_ways(shape: tuple[int, ...]) -> Ways:
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


def _torch() -> Any:
    # By way of the backend, which tells OpenMP how to wait before anything starts it.
    backends.load("torch", "layers")
    import torch

    return torch


def _ready(program: Callable[..., Any], *arguments: Any) -> Call:
    import jax

    return lambda: jax.block_until_ready(program(*arguments))
