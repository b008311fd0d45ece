"""The Pallas kernels compiled for TPUs that are not here, their bytes counted; as a program, JSON.

Each row is forward and backward of one kernel pair in one program, masks and gradients of both states included.

* `bytes`, of the mixer: HBM bytes a (token, channel), the larger of the next two.
* `compiled`: what the entry computation of the compiled program reads and writes in HBM. The compiler may keep an array
  in VMEM from one kernel to the next; that moves nothing.
* `blocks`: what the kernels' blocks move wherever the arrays lie (their cost estimates), and all other instructions.
* `arrays`, of the scan: `compiled` in units of one array [b, t, d]; its `blocks` are in the same unit.
* `spilled`: stores of vector registers to VMEM and loads back, in the compiled schedule of both kernels.
* `bundles`: instructions of that schedule, of both kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tools.plan import topology
from tools.xla import hlo
from tools.xla.count import FREE
from tools.xla.traffic import Traffic

if TYPE_CHECKING:
    import jax

Shapes = list[tuple[tuple[int, ...], np.dtype]]

CHIPS = ("v5e:2x4", "v6e:4x4")
DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_html=false"
SCHEDULE = "*-{}.*-final_hlo-static-per-bundle-utilization.txt"
"""What libtpu writes of a kernel: for each instruction how many of each unit it uses, spills among them."""
PREFETCHES = {"copy-start", "slice-start"}
"""What brings an operand of a kernel to VMEM before it is asked for, or a result back: the kernel's blocks count it."""


class Problem(NamedTuple):
    """What is compiled.

    Args:
        shape: b, t, d.
        dtype: of pre-activations and gated states, or of the scan.
        resets, padding: whether there is such a mask.
    """

    shape: tuple[int, int, int]
    dtype: str
    resets: bool = False
    padding: bool = False


# As `small` and `base` train; "masked" has padding too, "odd" a length that no block divides, and of "large" no array
# fits into VMEM.
PROBLEMS = {
    "mixer bfloat16": Problem((64, 512, 384), "bfloat16", resets=True),
    "mixer bfloat16 base": Problem((8, 8192, 768), "bfloat16", resets=True),
    "mixer bfloat16 masked": Problem((8, 512, 384), "bfloat16", resets=True, padding=True),
    "mixer bfloat16 odd": Problem((5, 1000, 384), "bfloat16", padding=True),
    "mixer float32": Problem((64, 512, 384), "float32", resets=True),
    "scan float32": Problem((64, 512, 384), "float32"),
    "scan float32 large": Problem((256, 512, 384), "float32"),
}


def measure() -> dict[str, dict[str, float]]:
    """A row for each kernel pair, dtype and chip, from a process of its own: libtpu learns of dumps as it is loaded."""
    with tempfile.TemporaryDirectory() as dump:
        environment = os.environ | topology.ENVIRONMENT | {"LIBTPU_INIT_ARGS": DUMP.format(dump)}
        command = [sys.executable, "-m", "parity.suite.compiled.tpu.kernels", dump]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"the kernels do not compile:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(dump: Path) -> dict[str, dict[str, float]]:
    import jax

    rows = {}
    for name in CHIPS:
        chip = topology.topology(name)
        sharding = jax.sharding.SingleDeviceSharding(topology.abstract_devices(chip)[0])
        for kind, problem in PROBLEMS.items():
            rows[f"{kind} {chip.chip}"] = _row(kind, problem, sharding, dump)
            for path in dump.iterdir():
                path.unlink()
    return rows


def _row(kind: str, problem: Problem, sharding: jax.sharding.Sharding, dump: Path) -> dict[str, float]:
    import jax

    function, shapes = _mixer(problem) if kind.startswith("mixer") else _scan(problem)
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
    start = time.perf_counter()
    text = jax.jit(function).lower(*arrays).compile().as_text()
    seconds = time.perf_counter() - start
    assert text is not None
    b, t, d = problem.shape
    compiled, blocks = (x / (b * t * d) for x in counted(text))
    row = {"bytes": max(compiled, blocks), "compiled": compiled, "blocks": blocks}
    if kind.startswith("scan"):
        row = {"arrays": compiled / 4, "blocks": blocks / 4}
    row = {name: round(x, 3) for name, x in row.items()}
    kernel = "gated_scan" if kind.startswith("mixer") else "scan"
    used = [schedule(path) for name in ("forward", "backward")
            for path in dump.glob(SCHEDULE.format(f"{kernel}_{name}"))]  # fmt: skip
    if len(used) != 2:
        raise AssertionError(f"libtpu wrote {len(used)} schedules of {kind}, not one of each kernel")
    spilled, bundles = (sum(column) for column in zip(*used, strict=True))
    return {**row, "spilled": spilled, "bundles": bundles, "compile_seconds": round(seconds, 1)}


def _mixer(problem: Problem) -> tuple[Callable, Shapes]:
    import jax.numpy as jnp

    from jax_impl.ops.gated_scan import gated_scan

    b, t, d = problem.shape
    dtype, wide = jnp.dtype(problem.dtype), jnp.dtype("float32")
    masks = [((b, t), jnp.dtype(bool))] * (problem.resets + problem.padding)
    inputs = [((b, t, 3 * d), dtype), ((d,), wide), ((b, d), wide)]

    def run(masks, pre, bias, state):
        given = iter(masks)
        resets, padding = (next(given) if there else None for there in (problem.resets, problem.padding))
        return gated_scan(pre, bias, 1e-6, state, resets, padding)

    return _both(run, 3), [*inputs, ((b, t, d), dtype), ((b, d), wide), *masks]


def _scan(problem: Problem) -> tuple[Callable, Shapes]:
    import jax.numpy as jnp

    from jax_impl.ops.scan import scan

    b, t, d = problem.shape
    whole, row = ((b, t, d), jnp.dtype(problem.dtype)), ((b, d), jnp.dtype(problem.dtype))
    return _both(lambda masks, *inputs: scan(*inputs), 3), [whole, whole, row, whole, row]


def _both(run: Callable, n: int) -> Callable:
    """Outputs and gradients, given n inputs, the gradients of two outputs, and masks."""

    def both(*arrays):
        import jax

        inputs, gradients, masks = arrays[:n], arrays[n : n + 2], arrays[n + 2 :]
        outputs, pull = jax.vjp(partial(run, masks), *inputs)
        return outputs, pull(gradients)

    return both


def counted(text: str) -> tuple[float, float]:
    """HBM bytes of a compiled program by its arrays alone, and by the blocks of its kernels."""
    program = hlo.parse(text)
    entry = program.computations[program.entry]
    if any(one.opcode in ("while", "conditional") for one in entry.instructions.values()):
        raise AssertionError("a loop or a branch, whose bytes this does not count")
    compiled = blocks = 0.0
    for one, moved in _moved(program, entry):
        compiled += moved
        if one.target == "tpu_custom_call":
            blocks += float(one.config["custom_call_config"]["cost_estimate"]["bytes_accessed"])
        elif one.opcode not in PREFETCHES:
            blocks += moved
    return compiled, blocks


def _moved(program: hlo.Program, entry: hlo.Computation) -> Iterator[tuple[hlo.Instruction, float]]:
    traffic = Traffic(program)
    for one in entry.instructions.values():
        if one.opcode not in FREE and not one.opcode.endswith("-done"):
            # An array that a kernel is given twice, for two kinds of blocks, is one array.
            operands = {operand: i for i, operand in enumerate(one.operands)}
            read = sum(traffic.read(entry, one, i) for i in operands.values())
            yield one, read + traffic.written(entry, one)


def schedule(path: Path) -> tuple[int, int]:
    """(spills and fills, bundles) of what libtpu writes about a kernel's schedule."""
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "UTILIZATION" in line)
    names = [name.strip() for name in next(line for line in lines if "VSTORE:SPILL" in line).split(",")]
    spills = [i for i, name in enumerate(names) if name.endswith((":SPILL", ":FILL"))]
    bundles = [[int(x) for x in line.split()] for line in lines[at + 1 :] if line.strip()]
    if not spills or any(len(bundle) != len(names) for bundle in bundles):
        raise AssertionError(f"{path.name} is not as it was")
    return sum(bundle[i] for bundle in bundles for i in spills), len(bundles)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_measure(Path(sys.argv[1]))))
    else:
        print(json.dumps(measure(), indent=2))
