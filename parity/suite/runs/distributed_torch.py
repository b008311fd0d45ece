"""One model trained by several processes at once: what each layout of them computes, for a test to compare.

    python -m torch.distributed.run --standalone --nproc-per-node 4 -m parity.suite.runs.distributed_torch OUT

Four processes are started once; the smaller groups are made of the first of them, while the others wait.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

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
    same_bits,
    save,
)
from parity.suite.runs.trajectories import MODEL
from parity.suite.runs.trajectory_drift import OTHERS, SMALL, SMALL_SSM
from spec.config import ModelConfig, TrainingConfig
from torch_impl.mixers import capabilities
from torch_impl.ops.scan import METHODS as SCANS
from torch_impl.ops.scan.context_parallel import time_sharded
from torch_impl.training.distributed import ParallelContext, exit_if_initialized, on_ranks
from torch_impl.training.engine import Engine

PROCESSES = 4
STEPS = 30
HUGE = 2.0**30


@dataclass(frozen=True)
class Layout:
    """Who computes what.

    Args:
        size: processes.
        parallel: `ddp` or `fsdp`.
        columns: processes that share a row.
        micro_batch: rows at a time.
    """

    size: int
    parallel: str = "ddp"
    columns: int = 1
    micro_batch: int | None = None

    @property
    def name(self) -> str:
        micro = f", {self.micro_batch} rows at a time" if self.micro_batch else ""
        return f"{self.size} {self.parallel}, {self.columns} a row{micro}"

    def context(self) -> ParallelContext:
        """Its processes; every process of the default group calls this."""
        return ParallelContext() if self.size == 1 else on_ranks(list(range(self.size)), self.parallel, self.columns)


ALONE = Layout(1)
LAYOUTS = (
    *(Layout(size, parallel) for parallel in ("ddp", "fsdp") for size in (2, 3, 4)),
    *(Layout(size, "ddp", size) for size in (2, 4)),
    Layout(4, "ddp", 2),
    Layout(4, "fsdp", 2),
    Layout(2, "ddp", 1, 4),
    Layout(2, "fsdp", 1, 4),
    Layout(1, "ddp", 1, 5),
)
OTHER_LAYOUTS = (Layout(2), Layout(2, "ddp", 2), Layout(2, "fsdp"))
SSM_LAYOUTS, SSM_STEPS = (Layout(2), Layout(3, "fsdp"), Layout(2, "fsdp", 1, 4)), 6
MUON_LAYOUTS = (Layout(2), Layout(3), Layout(2, "fsdp"), Layout(4, "fsdp", 2))
CHAIN = (Layout(4, "fsdp"), ALONE, Layout(3), Layout(2, "ddp", 2), Layout(2, "fsdp"))


def taking_part(layouts: Iterable[Layout]) -> Iterator[tuple[Layout, ParallelContext]]:
    """The layouts that this process is part of, each with its processes; groups are made by every process."""
    for layout in layouts:
        context = layout.context()
        if dist.get_rank() < layout.size:
            yield layout, context


def segment(
    layout: Layout, context: ParallelContext, training: TrainingConfig = TRAINING, model: ModelConfig = SMALL
) -> Segment:
    """The engine of a layout, from perturbed weights."""
    method = "chunked" if capabilities(model).scan_methods else "auto"
    return Segment(Engine(model, training, method, micro_batch=layout.micro_batch, context=context), model)


def curves(found: Results) -> None:
    """30 steps in every layout, and in each, from the same weights, with `--stream`."""
    for stream in (False, True):
        training = replace(TRAINING, stream=stream)
        for layout, context in taking_part((ALONE, *(LAYOUTS if not stream else CHAIN))):
            losses, digests = segment(layout, context, training).train(STEPS)
            found[f"{'stream ' if stream else ''}{layout.name}"] = {"losses": losses.tolist(), "digests": digests}


def with_noise(found: Results) -> None:
    """A few steps of a model that explores, with noise, in some layouts."""
    for layout, context in taking_part((ALONE, *SSM_LAYOUTS)):
        losses, _ = segment(layout, context, TRAINING, SMALL_SSM).train(SSM_STEPS)
        found[f"ssm {layout.name}"] = {"losses": losses.tolist()}


def with_muon(found: Results) -> None:
    """A few steps of Muon of two models, and whether a restart repeats their bits, in some layouts."""
    for name, model in MUON_MODELS.items():
        for layout, context in taking_part((ALONE, *MUON_LAYOUTS)):
            losses, _ = segment(layout, context, MUON, model).train(SSM_STEPS)
            found[f"muon {name} {layout.name}"] = {"losses": losses.tolist()}
    for layout, context in taking_part(MUON_LAYOUTS):
        make = partial(segment, layout, context, MUON, SMALL)
        found.setdefault("muon restarts", {})[layout.name] = repeats_after_a_restart(make)


def others(found: Results) -> None:
    """A few steps of every other family, streams among them, in some layouts."""
    for name, model in OTHERS.items():
        for stream in (False, True):
            training = replace(TRAINING, stream=stream)
            for layout, context in taking_part((ALONE, *OTHER_LAYOUTS)):
                losses, _ = segment(layout, context, training, model).train(SSM_STEPS)
                found[f"{name} {'stream ' if stream else ''}{layout.name}"] = {"losses": losses.tolist()}


def chain(found: Results, stream: bool) -> None:
    """One run that changes its layout every six steps, handing over what a checkpoint holds."""
    losses, digests, snapshot = [], [], None
    for layout in CHAIN:
        context = layout.context()
        if dist.get_rank() < layout.size:
            one = segment(layout, context, replace(TRAINING, stream=stream))
            if snapshot is not None:
                one.restore(snapshot)
            more, seen = one.train(STEPS // len(CHAIN))
            losses, digests, snapshot = [*losses, *more.tolist()], [*digests, *seen], one.snapshot()
        # Those who wait have an older state: the next layout may need them.
        box = [snapshot]
        dist.broadcast_object_list(box, src=0)
        (snapshot,) = box
    found["stream chain" if stream else "chain"] = {"losses": losses, "digests": digests}


def restarts(found: Results) -> None:
    """Whether a restart repeats the bits: DDP of a model that needs several buckets; FSDP; time cut in two."""
    models = {Layout(4): MODEL, Layout(3, "fsdp"): SMALL, Layout(4, "ddp", 2): SMALL}
    for layout, context in taking_part(models):
        model = models[layout]
        training = replace(TRAINING, seq_len=64 if model is MODEL else 16)
        make = partial(segment, layout, context, training, model)
        found.setdefault("restarts", {})[layout.name] = repeats_after_a_restart(make)


def shards(found: Results, out: Path) -> None:
    """Shards of four processes that keep training meanwhile, read by three, by two with copies, and by one."""
    writers = Layout(4, "fsdp")
    writer = segment(writers, writers.context())
    writer.train(3)
    snapshot = writer.snapshot()
    if writer.context.rank == 0:
        (out / "shards").mkdir()
    dist.barrier()
    writing = writer.engine.save_shards(out / "shards")
    writer.train(2)
    writing.result()
    if writer.context.rank == 0:
        flat = {f"parameters.{path}": x for path, x in snapshot["parameters"].items()}
        flat |= {f"{kind}.{path}": x for kind, group in snapshot["moments"].items() for path, x in group.items()}
        save(out / "whole.npz", flat)
    for layout in (Layout(3, "fsdp"), Layout(2), ALONE):
        context = layout.context()
        if dist.get_rank() < layout.size:
            reader = segment(layout, context)
            reader.engine.load_shards(out / "shards", 3)
            reader.step = 3
            found.setdefault("shards", {})[layout.name] = same_bits(reader.snapshot(), snapshot)
        dist.barrier()


def scans(found: Results, out: Path) -> None:
    """The scan and all its gradients with the time cut between two and four processes, lengths that do not divide."""
    for layout, context in taking_part(Layout(size, "ddp", size) for size in (2, 4)):
        for number, case in enumerate(SCAN_CASES):
            for method in ("sequential", "chunked"):
                for dtype in ("float32", "float64"):
                    results = _scan(case, method, dtype, context)
                    if context.rank == 0:
                        save(out / f"scan_{layout.size}_{number}_{method}_{dtype}.npz", results)


def _scan(case: ScanCase, method: str, dtype: str, context: ParallelContext) -> dict[str, np.ndarray]:
    from parity.proof.adapters import torch as torch_adapter

    arrays = case.arrays()
    cut = context.shard.of_columns(case.shape[1])
    decay, drive, resets, padding, grad_states = (
        cast(x, dtype)[:, cut]
        for x in (arrays.decay, arrays.drive, arrays.resets, arrays.padding, arrays.states_gradient)
    )
    # The objective is the sum of all processes'; a power of two divides without rounding.
    grad_last = cast(arrays.final_gradient, dtype) / context.size
    with time_sharded(context.sequence_group):
        inputs = decay, drive, cast(arrays.state, dtype)
        found = torch_adapter.vjp("scan", inputs, (resets, padding), (grad_states, grad_last), method=method)
    parts = {name: context.all_gather(x) for name, x in found.items()}
    lasts, grad_state = parts.pop("last"), parts.pop("state gradient")
    assert all(np.array_equal(last, lasts[0]) for last in lasts), "one last state for all"
    whole = {name: np.concatenate(pieces, axis=1) for name, pieces in parts.items()}
    return {**whole, "last": lasts[0], "state gradient": np.sum(grad_state, axis=0)}


def validation(found: Results) -> None:
    """The mean loss over text in windows, and as one sequence, in batches that do not divide between processes."""
    layouts = ALONE, Layout(3, "fsdp"), Layout(4), Layout(4, "ddp", 2), Layout(4, "ddp", 4)
    for layout, context in taking_part(layouts):
        one = segment(layout, context)
        # After an evaluation the parameters must be the parts again that the optimizer knows.
        windows, stream = evaluated(one)
        (loss_and_norm,) = one.train(1)[0].tolist()
        found.setdefault("validation", {})[layout.name] = [windows, stream, *loss_and_norm]


def half_precision(found: Results) -> None:
    """float16 from a scale at which gradients overflow, and bfloat16: the first losses, the scale after three steps."""
    for dtype in ("float16", "bfloat16"):
        for layout, context in taking_part((ALONE, Layout(2, micro_batch=2), Layout(2, "fsdp"), Layout(2, "ddp", 2))):
            one = segment(layout, context, replace(TRAINING, compute_dtype=dtype))
            scaler = one.engine.extra_state().get("grad_scaler", {})
            one.engine.load_extra_state({"grad_scaler": {**scaler, "scale": HUGE}})
            losses = one.train(3)[0].tolist()
            found.setdefault(dtype, {})[layout.name] = {"losses": losses, **one.engine.extra_state()}


def saved_bytes(found: Results) -> None:
    """What one step keeps for the backward pass of a long sequence, alone and with the time cut in four."""
    training = replace(TRAINING, batch_size=1, seq_len=4096)
    model = replace(SMALL, d_model=32, d_ff=48, vocab_size=257)
    for layout in (ALONE, Layout(4, "ddp", 4)):
        context = layout.context()
        one = segment(layout, context, training, model)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += 0 if tensor.is_leaf and tensor.requires_grad else tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            one.train(1)
        found.setdefault("saved bytes", {})[layout.name] = kept


def main(out: Path) -> None:
    """Write what was found into `out`: results.json, and arrays beside it."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    assert dist.get_world_size() == PROCESSES and set(SCANS) >= {"sequential", "chunked"}
    found: Results = {}
    curves(found)
    with_noise(found)
    with_muon(found)
    others(found)
    for stream in (False, True):
        chain(found, stream)
    restarts(found)
    shards(found, out)
    scans(found, out)
    validation(found)
    half_precision(found)
    saved_bytes(found)
    if dist.get_rank() == 0:
        (out / "results.json").write_text(json.dumps(found))
    dist.barrier()
    exit_if_initialized(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
