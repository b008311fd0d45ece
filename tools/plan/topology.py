"""TPU slices by name, what their chips can do, and how to compile for them where there is none."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spec.config import require_known
from tools.cli.errors import first_line

if TYPE_CHECKING:
    from jaxlib._jax import Device

MISSING = (
    "sizing a TPU run needs JAX and libtpu, the TPU's compiler; "
    "pip install 'liquidnet-dual[tpu]' in an environment of its own"
)
ENVIRONMENT = {
    # No TPU is here, and none is to be asked for: neither by JAX nor by libtpu at the cloud's metadata server.
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v6e-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # Another process may compile at the same time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Chip:
    """Peaks of one chip, per second: bfloat16 products in FLOP/s, HBM and interconnect in bytes/s each way."""

    flops: float
    bandwidth: float
    memory: float
    """HBM in bytes that the compiler has to give: a program that needs more is refused with this number."""
    interconnect: float
    """All links of a chip together, one direction."""
    axes: int
    """Dimensions of its torus."""
    most: int
    """Chips of a pod."""
    source: str
    options: Mapping[str, str] = field(default_factory=dict)
    """What the topology's description is asked for besides."""


CHIPS = {name: Chip(**row) for name, row in tomllib.loads(Path(__file__).with_name("chips.toml").read_text()).items()}


@dataclass(frozen=True)
class Topology:
    """A slice: its name as libtpu spells it, the chip's name, and the sides of the grid of chips."""

    name: str
    chip: str
    sides: tuple[int, ...]

    @property
    def peaks(self) -> Chip:
        return CHIPS[self.chip]

    @property
    def chips(self) -> int:
        return math.prod(self.sides)


def topology(name: str) -> Topology:
    """The slice that a name such as `v6e:4x4` or `v5p:2x2x4` stands for.

    Raises:
        ValueError: an unknown chip, or no grid of its dimensions; with the right spelling where there is one.
    """
    found = re.fullmatch(r"(v\d+[a-z]*?)(litepod)?([:=_-])(\d+(?:x\d+)*)", name.strip().lower())
    if not found:
        raise ValueError(f"unknown topology {name!r}; write chip and grid, as in v6e:4x4 or v5p:2x2x4")
    chip = "v5e" if found[2] else found[1]
    require_known("chip", chip, CHIPS)
    sides, peaks = tuple(map(int, found[4].split("x"))), CHIPS[chip]
    if found[3] != ":" or found[2] or len(sides) != peaks.axes:
        chips = math.prod(sides)
        # v4 and v5p are sold by the TensorCore, two a chip.
        chips //= 2 if found[3] == "-" and peaks.axes == 3 else 1
        grid = sorted(_grid(max(1, chips), peaks.axes), key=lambda side: (side == 1 and chips > 1, side))
        right = f"{chip}:{'x'.join(map(str, grid))}"
        raise ValueError(f"unknown topology {name!r}; did you mean {right!r}? Give the sides of its grid of chips")
    if not 0 < math.prod(sides) <= peaks.most or (max(sides) > 1 and sum(side % 2 for side in sides[:2])):
        raise ValueError(
            f"no {chip} slice is {found[4]}: its sides are even, its chips {peaks.most} at most, or it is one"
        )
    return Topology(f"{chip}:{found[4]}", chip, sides)


def _grid(chips: int, axes: int) -> tuple[int, ...]:
    """The grid nearest to a square or a cube, shortest side first."""
    if axes == 1:
        return (chips,)
    side = max(i for i in range(1, chips + 1) if chips % i == 0 and i**axes <= chips)
    return (side, *_grid(chips // side, axes - 1))


def compile_only() -> None:
    """Make this process one that only compiles; before JAX is imported for the first time.

    Raises:
        ValueError: libtpu or JAX is not installed.
    """
    if any(importlib.util.find_spec(module) is None for module in ("jax", "flax", "libtpu")):
        raise ValueError(MISSING)
    os.environ.update(ENVIRONMENT)


def abstract_devices(what: Topology) -> list[Device]:
    """The slice's devices, those of one process side by side; nothing runs on them.

    Raises:
        ValueError: libtpu knows no such slice.
    """
    import jax
    from jax.experimental import topologies

    options: dict[str, str | tuple[int, ...]] = dict(what.peaks.options)
    if what.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(topology_name=what.name, platform="tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu has no slice {what.name}: {first_line(error)}") from error
    return sorted(found.devices, key=lambda device: (device.process_index, device.id))
