"""One model trained by JAX on eight devices: what each mesh of them computes, for a test to compare.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m parity.suite.runs.distributed_jax OUT [short]

With JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID several processes share the eight.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_impl.ops.scan import METHODS as SCANS
from jax_impl.ops.scan import scan
from jax_impl.ops.scan.context_parallel import time_sharded
from jax_impl.training.distributed import (
    FSDP,
    SEQUENCE,
    ParallelContext,
    exit_if_initialized,
    initialize,
    on_mesh,
    product_of_parts,
)
from jax_impl.training.engine import Engine
from jax_impl.training.step import abstract_step
from parity.proof.adapters import SCAN_RESULTS
from parity.proof.operations.base import cast
from parity.proof.problems.cases import ScanCase
from parity.suite.runs.segment import (
    MUON,
    MUON_MODELS,
    SCAN_CASES,
    TRAINING,
    Results,
    Segment,
    evaluated,
    repeats_after_a_restart,
    save,
)
from parity.suite.runs.trajectory_drift import OTHERS, SMALL, SMALL_SSM
from spec.config import ModelConfig, TrainingConfig
from spec.optimizer import MOMENTS
from tools.xla import hlo
from tools.xla.count import count

DEVICES, STEPS, SSM_STEPS, FEW = 8, 20, 6, 4
UNEVEN = replace(TRAINING, batch_size=10, stream=True)
"""Rows that neither four nor eight devices share evenly, and states that belong to them."""


@dataclass(frozen=True)
class Layout:
    """Devices along each axis of a mesh, and rows that a device takes at a time."""

    data: int = 1
    fsdp: int = 1
    sequence: int = 1
    micro_batch: int | None = None

    @property
    def name(self) -> str:
        micro = f", {self.micro_batch} rows at a time" if self.micro_batch else ""
        return f"data={self.data},fsdp={self.fsdp},sequence={self.sequence}{micro}"

    def context(self) -> ParallelContext:
        """The first devices, as many as it needs, those of one process side by side."""
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        return on_mesh(devices[: self.data * self.fsdp * self.sequence], self.data, self.fsdp, self.sequence)

    def segment(self, training: TrainingConfig = TRAINING, model: ModelConfig = SMALL, method: str = "auto") -> Segment:
        """The engine of this layout, from perturbed weights."""
        return Segment(Engine(model, training, method, micro_batch=self.micro_batch, context=self.context()), model)


ALONE = Layout()
SHORT = (Layout(2, 2, 2), Layout(1, 4, 1, 2))
LAYOUTS = (Layout(8), Layout(1, 8), Layout(2, 4), Layout(2, 2, 2), Layout(1, 1, 8), Layout(2, 1, 2), Layout(1, 4, 1, 2))
TOGETHER = (Layout(8), Layout(2, 4), Layout(2, 2, 2), Layout(1, 1, 8))
OTHER_LAYOUTS = (Layout(1, 1, 2), Layout(2, 2, 2))
SSM_LAYOUTS = (Layout(8), Layout(2, 4, 1, 1))
MUON_LAYOUTS = (Layout(2, 4), Layout(2, 2, 2))
NARROW = replace(TRAINING, compute_dtype="bfloat16", grad_clip=0.0)
NARROW_LAYOUTS = (Layout(1, 2), Layout(1, 8), Layout(2, 4), Layout(1, 2, 2))
CHAIN = (Layout(2, 2, 2), ALONE, Layout(8), Layout(1, 4, 2), Layout(1, 2))


def curves(found: Results, layouts: tuple[Layout, ...]) -> None:
    """Twenty steps in every layout."""
    for layout in layouts:
        losses, digests = layout.segment().train(STEPS)
        found[layout.name] = {"losses": losses.tolist(), "digests": digests}


def with_noise(found: Results) -> None:
    """A few steps of a model that explores, with noise, in some layouts."""
    for layout in (ALONE, *SSM_LAYOUTS):
        found[f"ssm {layout.name}"] = {"losses": layout.segment(model=SMALL_SSM).train(SSM_STEPS)[0].tolist()}


def with_muon(found: Results) -> None:
    """A few steps of Muon of two models, and whether a restart repeats their bits, in some layouts."""
    for name, model in MUON_MODELS.items():
        for layout in (ALONE, *MUON_LAYOUTS):
            losses, _ = layout.segment(MUON, model).train(SSM_STEPS)
            found[f"muon {name} {layout.name}"] = {"losses": losses.tolist()}
    for layout in MUON_LAYOUTS:
        found.setdefault("muon restarts", {})[layout.name] = repeats_after_a_restart(partial(layout.segment, MUON))


def others(found: Results) -> None:
    """A few steps of every other family, time cut in two, alone and beside copies and parts of the parameters."""
    for name, model in OTHERS.items():
        for layout in (ALONE, *OTHER_LAYOUTS):
            found[f"{name} {layout.name}"] = {"losses": layout.segment(model=model).train(SSM_STEPS)[0].tolist()}


def chain(found: Results, stream: bool) -> None:
    """One run that changes its mesh every four steps, handing over what a checkpoint holds."""
    losses, digests, snapshot = [], [], None
    for layout in CHAIN:
        segment = layout.segment(replace(TRAINING, stream=stream))
        if snapshot is not None:
            segment.restore(snapshot)
        more, seen = segment.train(STEPS // len(CHAIN))
        losses, digests, snapshot = [*losses, *more.tolist()], [*digests, *seen], segment.snapshot()
    found["stream chain" if stream else "chain"] = {"losses": losses, "digests": digests}


def restart(found: Results, layout: Layout) -> None:
    """Whether a restart repeats the bits."""
    found.setdefault("restarts", {})[layout.name] = repeats_after_a_restart(layout.segment)


def validation(found: Results, layouts: tuple[Layout, ...]) -> None:
    """The mean loss over text in windows, and as one sequence, in batches that do not divide between devices."""
    for layout in layouts:
        found.setdefault("validation", {})[layout.name] = evaluated(layout.segment())


def scans(out: Path) -> None:
    """The scan and all its gradients with the time cut between two and four devices."""
    for size in (2, 4):
        for number, case in enumerate(SCAN_CASES):
            for method in ("sequential", "chunked"):
                results = cut_scan(case, method, Layout(1, 1, size).context())
                save(out / f"scan_{size}_{number}_{method}.npz", results)


def cut_scan(case: ScanCase, method: str, context: ParallelContext) -> dict[str, np.ndarray]:
    """States, last state and gradients of a scan between the devices of `sequence`; padding fills up the time."""
    arrays, size = case.arrays(), context.shape()[2]
    fill = -case.shape[1] % size
    timed = [np.pad(x, ((0, 0), (0, fill), (0, 0))) for x in (arrays.decay, arrays.drive, arrays.states_gradient)]
    resets = None if arrays.resets is None else np.pad(arrays.resets, ((0, 0), (0, fill)))
    padding = np.zeros(case.shape[:2], bool) if arrays.padding is None else arrays.padding
    padding = np.pad(padding, ((0, 0), (0, fill)), constant_values=True)
    decay, drive, grad_states = (cast(x, "float32") for x in timed)
    # The objective is the sum of all devices'; a power of two divides without rounding.
    state, grad_last = cast(arrays.state, "float32"), cast(arrays.final_gradient, "float32") / size
    cut, whole = jax.P(None, SEQUENCE), jax.P()

    def local(decay, drive, state, resets, padding, grad_states, grad_last):
        def run(decay, drive, state):
            return scan(decay, drive, state, method, resets, padding)

        with time_sharded(SEQUENCE):
            outputs, pull_back = jax.vjp(run, decay, drive, state)
            *grad_inputs, grad_state = pull_back((grad_states, grad_last))
        return *outputs, *grad_inputs, jax.lax.psum(grad_state, SEQUENCE)

    specs = cut, cut, whole, cut, cut, cut, whole
    run = jax.shard_map(
        local, mesh=context.mesh, in_specs=specs, out_specs=(cut, whole, cut, cut, whole), check_vma=False
    )
    found = jax.jit(run)(decay, drive, state, resets, padding, grad_states, grad_last)
    results = dict(zip(SCAN_RESULTS, (np.asarray(x) for x in found), strict=True))
    return {name: x[:, : case.shape[1]] if x.ndim == 3 else x for name, x in results.items()}


def collectives(found: Results) -> None:
    """What the compiled step sends, by kind: of parts of the parameters, and of a sequence that devices share."""
    for layout in (Layout(1, 8), Layout(2, 1, 4)):
        training = replace(TRAINING, batch_size=16)
        update, arguments = abstract_step(SMALL, training, layout.context(), "chunked")
        rows = count(hlo.parse(update.lower(*arguments).compile().as_text())).collectives()
        found.setdefault("collectives", {})[layout.name] = rows


def bytes_held(found: Results) -> None:
    """Bytes that each device holds of an engine whose parameters are in parts; nothing else is there yet."""
    context = Layout(1, 8).context()
    engine = Engine(replace(SMALL, d_model=64), TRAINING, context=context)
    gc.collect()
    counted = dict.fromkeys((device.id for device in context.mesh.devices.flat), 0)
    for array in jax.live_arrays():
        for part in array.addressable_shards:
            counted[part.device.id] += part.data.nbytes
    found["held"] = {"devices": list(counted.values()), "parameters": sum(x.nbytes for x in engine.parameters.values())}


def product_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, weight and the gradient of their product, each a number of bfloat16: what is multiplied is exact."""
    random = np.random.default_rng(0)
    drawn = (random.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((64, 24), (16, 24), (64, 16)))
    x, weight, grad_y = (array.astype(np.float32) for array in drawn)
    return x, weight, grad_y


def cut_product(axis: int, context: ParallelContext) -> np.ndarray:
    """The gradient of a weight that lies in parts along `axis`, of rows that the devices share, in bfloat16."""
    x, weight, grad_y = product_problem()
    place = jax.P(*(FSDP if i == axis else None for i in range(2)))

    def local(x, part, grad_y):
        _, pull_back = jax.vjp(partial(product_of_parts, axis=axis, dtype=jnp.bfloat16), x.astype(jnp.bfloat16), part)
        return pull_back(grad_y.astype(jnp.bfloat16))[1]

    specs = jax.P(FSDP), place, jax.P(FSDP)
    run = jax.shard_map(local, mesh=context.mesh, in_specs=specs, out_specs=place, check_vma=False)
    # Else XLA may leave a rounding out that the program asks for.
    return np.asarray(jax.jit(run, compiler_options={"xla_allow_excess_precision": False})(x, weight, grad_y))


def products(out: Path) -> None:
    """The gradients of weights in parts along either axis."""
    found = {str(axis): cut_product(axis, Layout(1, 8).context()) for axis in range(2)}
    save(out / "products.npz", found)


def in_bfloat16(out: Path) -> None:
    """Loss and gradients of a step in bfloat16 in several layouts; without a clip the first moment tells them."""
    for layout in NARROW_LAYOUTS:
        segment = layout.segment(NARROW)
        losses, _ = segment.train(1)
        moments = segment.snapshot()["moments"][MOMENTS[0]]
        gradients = {path: x.astype(np.float64) / (1.0 - NARROW.beta1) for path, x in moments.items()}
        save(out / f"bfloat16 {layout.name}.npz", {"loss": losses[0, 0], **gradients})


def few_steps(found: Results, out: Path) -> None:
    """What takes seconds: a few steps of two meshes, in two segments, and one scan."""
    for layout in (ALONE, *SHORT):
        first, second = layout.segment(UNEVEN), layout.segment(UNEVEN)
        losses, digests = first.train(FEW // 2)
        snapshot = first.snapshot()
        second.restore(snapshot)
        more, seen = second.train(FEW // 2)
        found[layout.name] = {"losses": [*losses.tolist(), *more.tolist()], "digests": [*digests, *seen]}
        found[layout.name]["evaluated"] = evaluated(second)
        save(out / f"states {layout.name}.npz", {"states": snapshot["states"]})
    products(out)
    save(out / "scan.npz", cut_scan(SCAN_CASES[1], "sequential", Layout(1, 1, 4).context()))


def main(out: Path, short: bool) -> None:
    """Write what was found into `out`: results.json, and arrays beside it."""
    context = initialize()
    assert len(jax.devices()) == DEVICES and set(SCANS) >= {"sequential", "chunked"}
    found: Results = {}
    if short:
        bytes_held(found)
        few_steps(found, out)
    elif context.size > 1:
        curves(found, TOGETHER)
        validation(found, (Layout(2, 4), Layout(1, 1, 8)))
        restart(found, Layout(2, 4))
    else:
        curves(found, (ALONE, *LAYOUTS))
        with_noise(found)
        with_muon(found)
        others(found)
        for stream in (False, True):
            chain(found, stream)
        restart(found, Layout(2, 2, 2))
        validation(found, (ALONE, Layout(8), Layout(2, 2, 2)))
        scans(out)
        in_bfloat16(out)
        collectives(found)
    if context.rank == 0:
        (out / f"results_{context.size}.json").write_text(json.dumps(found))
    exit_if_initialized(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "short" in sys.argv[2:])
