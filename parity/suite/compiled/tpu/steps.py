"""Train steps and the context-parallel scan, compiled for TPU slices: what each needs a chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from parity.suite.compiled.tpu.budget import Row
from spec.presets import RECIPES, preset
from tools.plan import topology
from tools.plan.compile_step import StepSpec, compiled_step, summary
from tools.xla import hlo
from tools.xla.count import ProgramCost, count

if TYPE_CHECKING:
    import jax

TRAINED = {
    "base v6e:4x4 data=16": ("base", "v6e:4x4", "data=16", 65_536, 1),
    "base v6e:4x4 fsdp=16": ("base", "v6e:4x4", "fsdp=16", 65_536, 1),
    "small v5e:2x4 data=8": ("small", "v5e:2x4", "data=8", 24_576, None),
}
"""Preset, slice, mesh, tokens a chip and rows at a time, by the row's name; in bfloat16, sequences of the preset."""
SHARED = "context-parallel v6e:2x4 sequence=8"
SHARED_SHAPE = (4, 8192, 768)
"""b, t over all chips, d of the scan whose time eight chips share."""


def step_spec(name: str) -> StepSpec:
    """What a row of TRAINED compiles."""
    size, slice_name, mesh, tokens, micro_batch = TRAINED[name]
    where, training = topology.topology(slice_name), RECIPES[size]
    rows = tokens * where.chips // training.seq_len
    training = replace(training, batch_size=rows, compute_dtype="bfloat16")
    return StepSpec(where, preset(size), training, mesh, micro_batch=micro_batch)


def measure(progress: Callable[[str], None] = lambda name: None) -> dict[str, Row]:
    """A row for each program: bytes, milliseconds of the model, seconds of the compiler, kinds of collectives.

    Args:
        progress: called with each row's name before it is compiled.
    """
    rows: dict[str, Row] = {}
    for name in TRAINED:
        progress(name)
        rows[name] = trained(name)
    progress(SHARED)
    return {**rows, SHARED: shared_scan()}


def trained(name: str) -> Row:
    """The row of a train step."""
    found = summary(step_spec(name), compiled_step(step_spec(name)))
    if found["uncertain"]:
        raise AssertionError(found["uncertain"])
    return {
        "peak": found["memory"]["peak"],
        "hbm_bytes": round(found["hbm_bytes"]),
        "milliseconds": round(found["milliseconds"], 2),
        "mfu": round(found["mfu"], 3),
        "compile_seconds": found["compile_seconds"],
        "collectives": sorted({row["kind"] for row in found["collectives"]}),
    }


def shared_scan() -> Row:
    """What a device gives the others in the scan of a shared sequence, forward and backward: bytes, and in what."""
    forward = _compiled(lambda run, *inputs: run(*inputs))
    both = _compiled(_gradients)
    operands = [sum(row["operand"] for row in one.collectives()) for one in (forward, both)]
    return {
        "forward_operand": round(operands[0]),
        "backward_operand": round(operands[1] - operands[0]),
        "collectives": sorted({row["kind"] for one in (forward, both) for row in one.collectives()}),
    }


def shared_scan_limit() -> int:
    """2 b d float32 numbers in either direction, in bytes."""
    b, _, d = SHARED_SHAPE
    return 2 * b * d * 4


def _gradients(run: Callable, *inputs: jax.Array) -> tuple:
    import jax

    results, pull = jax.vjp(run, *inputs)
    # The results themselves: their gradients then depend on everything that was kept.
    return results, pull(results)


def _compiled(objective: Callable) -> ProgramCost:
    import jax
    import jax.numpy as jnp

    from jax_impl.ops.scan import scan
    from jax_impl.ops.scan.context_parallel import time_sharded
    from jax_impl.training.distributed import on_mesh

    devices = topology.abstract_devices(topology.topology(SHARED.split()[1]))
    context, (b, t, d) = on_mesh(devices, 1, 1, len(devices)), SHARED_SHAPE
    stretch, whole = jax.P(None, "sequence"), jax.P()

    def local(*inputs: jax.Array) -> tuple:
        with time_sharded("sequence"):
            return objective(scan, *inputs)

    states = stretch, whole
    results = states if objective is not _gradients else (states, (stretch, stretch, whole))
    program = jax.jit(
        partial(jax.shard_map, mesh=context.mesh, check_vma=False)(
            local, in_specs=(stretch, stretch, whole), out_specs=results
        )
    )
    like = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=context.sharding(*spec))
        for shape, spec in (((b, t, d), stretch), ((b, t, d), stretch), ((b, d), whole))
    ]
    text = program.lower(*like).compile().as_text()
    assert text is not None
    return count(hlo.parse(text))
