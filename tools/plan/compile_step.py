"""A train step compiled for a TPU slice that is not here, and what the program says of memory, traffic and time.

Times are a model, the sum of rooflines: each instruction takes the longest of FLOPs / peak, HBM bytes / bandwidth and
received bytes / interconnect, one after the other, at 100 % of the chip's peaks. Nothing here was measured on a TPU.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from spec.config import ModelConfig, TrainingConfig
from tools.bench.roofline import step_flops
from tools.cli.json_file import Json
from tools.plan.topology import Chip, Topology, abstract_devices
from tools.xla import hlo
from tools.xla.count import Cost, ProgramCost, count

if TYPE_CHECKING:
    from jax.stages import Compiled

WHAT = "a model, not a measurement: the sum of rooflines at 100 % of peak"


class DoesNotFit(ValueError):
    """The compiler found no way to run the step in the memory of a chip."""


@dataclass(frozen=True)
class StepSpec:
    """What is compiled: the run, and how it is spread over a slice."""

    topology: Topology
    config: ModelConfig
    training: TrainingConfig
    mesh: str | None = None
    method: str = "auto"
    remat: bool = False
    micro_batch: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens a step and chip."""
        return self.training.batch_size * self.training.seq_len // self.topology.chips


@dataclass(frozen=True)
class CompiledStep:
    """A compiled step: its memory in bytes a chip, what was counted, and the seconds that the compiler took."""

    memory: dict[str, int]
    counted: ProgramCost
    seconds: float
    sizes: tuple[int, int, int]
    """Devices along data, fsdp and sequence."""


def compiled_step(spec: StepSpec) -> CompiledStep:
    """The step compiled by the TPU's own compiler; in a process that called `topology.compile_only`.

    Raises:
        DoesNotFit: it needs more memory than a chip has.
        ValueError: the mesh, the batch or the sequence do not fit one another.
    """
    import jax

    from jax_impl.training.distributed import mesh_sizes, on_mesh
    from jax_impl.training.step import abstract_step

    devices = abstract_devices(spec.topology)
    sizes = mesh_sizes(len(devices), "ddp", 1, spec.mesh)
    began = time.perf_counter(), time.process_time()
    update, arguments = abstract_step(
        spec.config, spec.training, on_mesh(devices, *sizes), spec.method, spec.remat, spec.micro_batch
    )
    try:
        program = update.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_memory_message(str(error))) from error
    # Beside other work a clock shows more than the compiler takes; its processor seconds are no less than that.
    seconds = min(time.perf_counter() - began[0], time.process_time() - began[1])
    return CompiledStep(memory_bytes(program), count(hlo.parse(program.as_text())), seconds, sizes)


def memory_bytes(program: Compiled) -> dict[str, int]:
    """Bytes that a program needs, as the compiler says: in, out, shared by both, in between, and all together."""
    report = program.memory_analysis()
    assert report is not None
    arguments, outputs = report.argument_size_in_bytes, report.output_size_in_bytes
    aliased, temporary = report.alias_size_in_bytes, report.temp_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": aliased,
        "temporary": temporary,
        "peak": arguments + outputs + temporary - aliased,
    }


def _memory_message(message: str) -> str:
    """The compiler's message in a line."""
    needs = next(iter(message.splitlines()), "")
    for pattern in (r"Used (\S+) of (\S+) hbm", r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)"):
        found = re.search(pattern, message)
        needs = f"it needs {found[1]}, the compiler has {found[2]}" if found else needs
    return f"the step does not fit a chip: {needs}"


def roofline_seconds(cost: Cost, chip: Chip) -> float:
    """The roofline of an instruction, all its runs together."""
    received = cost.collective.received if cost.collective else 0.0
    moved = cost.read + cost.written
    return cost.times * max(cost.passes / chip.flops, moved / chip.bandwidth, received / chip.interconnect)


def summary(spec: StepSpec, done: CompiledStep) -> Json:
    """Everything that is printed and written, a chip: memory, traffic, FLOPs, collectives, and the model of time.

    The model is the roofline of Williams, Waterman and Patterson (2009), a ceiling an instruction; MFU, the share of
    peak that the model's own FLOPs are, is as in Chowdhery et al. (2022), PaLM, appendix B.
    """
    chip, counted = spec.topology.peaks, done.counted
    seconds = sum(roofline_seconds(cost, chip) for cost in counted.costs)
    # Neither recomputation nor the recurrence counts: what the model needs, not what the program does.
    model_flops = step_flops(spec.config, spec.tokens)
    return {
        "what": WHAT,
        "topology": spec.topology.name,
        "chips": spec.topology.chips,
        "mesh": dict(zip(("data", "fsdp", "sequence"), done.sizes, strict=True)),
        "batch_size": spec.training.batch_size,
        "seq_len": spec.training.seq_len,
        "tokens_per_chip": spec.tokens,
        "dtype": spec.training.compute_dtype,
        "method": spec.method,
        "remat": spec.remat,
        "micro_batch_size": spec.micro_batch,
        "compile_seconds": round(done.seconds, 1),
        "memory": {**done.memory, "capacity": int(chip.memory)},
        "hbm_bytes": counted.bytes,
        "flops": counted.flops,
        "model_flops": model_flops,
        "collectives": counted.collectives(),
        "milliseconds": 1e3 * seconds,
        "bound_milliseconds": 1e3 * max(counted.total(lambda c: c.passes) / chip.flops, counted.bytes / chip.bandwidth),
        "tokens_per_second": spec.topology.chips * spec.tokens / seconds,
        "mfu": model_flops / seconds / chip.flops,
        "uncertain": counted.uncertain,
        "peaks": {name: value for name, value in asdict(chip).items() if name not in ("options", "axes", "most")},
    }


def costliest(counted: ProgramCost, chip: Chip, most: int) -> list[Json]:
    """The instructions that the model gives most time, all runs of each together, costliest first."""
    costs = sorted(counted.costs, key=lambda cost: -roofline_seconds(cost, chip))[:most]
    return [
        {
            "name": cost.name,
            "opcode": cost.opcode,
            "times": cost.times,
            "milliseconds": 1e3 * roofline_seconds(cost, chip),
            "read": cost.times * cost.read,
            "written": cost.times * cost.written,
            "flops": cost.times * cost.flops,
            "source": cost.op_name,
            "note": cost.note,
        }
        for cost in costs
    ]


def by_kind(counted: ProgramCost, chip: Chip) -> list[Json]:
    """Time, traffic and FLOPs by kind of instruction, costliest first."""
    rows: dict[str, Json] = {}
    for cost in counted.costs:
        kind = "Pallas kernels" if cost.opcode == "custom-call" else "products" if cost.flops else cost.opcode
        row = rows.setdefault(kind, {"kind": kind, "milliseconds": 0.0, "bytes": 0.0, "flops": 0.0})
        row["milliseconds"] += 1e3 * roofline_seconds(cost, chip)
        row["bytes"] += cost.times * (cost.read + cost.written)
        row["flops"] += cost.times * cost.flops
    return sorted(rows.values(), key=lambda row: -row["milliseconds"])
