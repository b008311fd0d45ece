"""A train step compiled for a TPU slice that is not here, and what the program says of memory, traffic and time.

Times are a model, the sum of rooflines: each instruction takes the longest of FLOPs / peak, HBM bytes / bandwidth and
received bytes / interconnect, one after the other, at 100 % of the chip's peaks. Nothing here was measured on a TPU.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from spec.config import ModelConfig, TrainingConfig
from tools.bench.roofline import step_flops
from tools.plan.topology import Chip, Topology, described
from tools.xla import hlo
from tools.xla.count import Cost, Counted, count

WHAT = "a model, not a measurement: the sum of rooflines at 100 % of peak"


class DoesNotFit(ValueError):
    """The compiler found no way to run the step in the memory of a chip."""


@dataclass(frozen=True)
class Asked:
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
class Compiled:
    """A compiled step: its memory in bytes a chip, what was counted, and the seconds that the compiler took."""

    memory: dict[str, int]
    counted: Counted
    seconds: float
    sizes: tuple[int, int, int]
    """Devices along data, fsdp and sequence."""


def compiled_step(asked: Asked) -> Compiled:
    """The step compiled by the TPU's own compiler; in a process that called `topology.without_hardware`.

    Raises:
        DoesNotFit: it needs more memory than a chip has.
        ValueError: the mesh, the batch or the sequence do not fit one another.
    """
    import jax

    from jax_impl.training.distributed import mesh_sizes, on_mesh
    from jax_impl.training.step import abstract_step

    devices = described(asked.topology)
    sizes = mesh_sizes(len(devices), "ddp", 1, asked.mesh)
    began = time.perf_counter(), time.process_time()
    update, arguments = abstract_step(
        asked.config, asked.training, on_mesh(devices, *sizes), asked.method, asked.remat, asked.micro_batch
    )
    try:
        done = update.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_short_of_memory(str(error))) from error
    # Beside other work a clock shows more than the compiler takes; its processor seconds are no less than that.
    seconds = min(time.perf_counter() - began[0], time.process_time() - began[1])
    return Compiled(memory_of(done), count(hlo.parse(done.as_text())), seconds, sizes)


def memory_of(done: Any) -> dict[str, int]:
    """Bytes a chip: what goes in and out, what is shared by both, what is needed in between, and all together."""
    told = done.memory_analysis()
    parts = {
        "arguments": told.argument_size_in_bytes,
        "outputs": told.output_size_in_bytes,
        "aliased": told.alias_size_in_bytes,
        "temporary": told.temp_size_in_bytes,
    }
    return {**parts, "peak": parts["arguments"] + parts["outputs"] + parts["temporary"] - parts["aliased"]}


def _short_of_memory(message: str) -> str:
    """The compiler's message in a line."""
    needs = next(iter(message.splitlines()), "")
    for pattern in (r"Used (\S+) of (\S+) hbm", r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)"):
        found = re.search(pattern, message)
        needs = f"it needs {found[1]}, the compiler has {found[2]}" if found else needs
    return f"the step does not fit a chip: {needs}"


def seconds_of(cost: Cost, chip: Chip) -> float:
    """The roofline of an instruction, all its runs together."""
    received = cost.collective.received if cost.collective else 0.0
    moved = cost.read + cost.written
    return cost.times * max(cost.passes / chip.flops, moved / chip.bandwidth, received / chip.interconnect)


def summary(asked: Asked, done: Compiled) -> dict[str, Any]:
    """Everything that is printed and written, a chip: memory, traffic, FLOPs, collectives, and the model of time."""
    chip, counted = asked.topology.peaks, done.counted
    seconds = sum(seconds_of(cost, chip) for cost in counted.costs)
    model_flops = model_flops_of(asked)
    return {
        "what": WHAT,
        "topology": asked.topology.name,
        "chips": asked.topology.chips,
        "mesh": dict(zip(("data", "fsdp", "sequence"), done.sizes, strict=True)),
        "batch_size": asked.training.batch_size,
        "seq_len": asked.training.seq_len,
        "tokens_per_chip": asked.tokens,
        "dtype": asked.training.compute_dtype,
        "method": asked.method,
        "remat": asked.remat,
        "micro_batch_size": asked.micro_batch,
        "compile_seconds": round(done.seconds, 1),
        "memory": {**done.memory, "capacity": int(chip.memory)},
        "hbm_bytes": counted.bytes,
        "flops": counted.flops,
        "model_flops": model_flops,
        "collectives": counted.collectives(),
        "milliseconds": 1e3 * seconds,
        "bound_milliseconds": 1e3 * max(counted.total(lambda c: c.passes) / chip.flops, counted.bytes / chip.bandwidth),
        "tokens_per_second": asked.topology.chips * asked.tokens / seconds,
        "mfu": model_flops / seconds / chip.flops,
        "uncertain": counted.uncertain,
        "peaks": {name: value for name, value in asdict(chip).items() if name not in ("options", "axes", "most")},
    }


def model_flops_of(asked: Asked) -> float:
    """FLOPs of the dense products of a step, forward and backward, a chip: 6 a weight of a matrix and token.

    Neither recomputation nor the recurrence counts: what the model needs, not what the program does.
    """
    config: Any = asked.config
    return step_flops(config, asked.tokens)


def dearest(counted: Counted, chip: Chip, most: int) -> list[dict[str, Any]]:
    """The instructions that the model gives most time, all runs of each together, dearest first."""
    costs = sorted(counted.costs, key=lambda cost: -seconds_of(cost, chip))[:most]
    return [
        {
            "name": cost.name,
            "opcode": cost.opcode,
            "times": cost.times,
            "milliseconds": 1e3 * seconds_of(cost, chip),
            "read": cost.times * cost.read,
            "written": cost.times * cost.written,
            "flops": cost.times * cost.flops,
            "source": cost.op_name,
            "note": cost.note,
        }
        for cost in costs
    ]


def by_kind(counted: Counted, chip: Chip) -> list[dict[str, Any]]:
    """Time, traffic and FLOPs by kind of instruction, dearest first."""
    rows: dict[str, dict[str, Any]] = {}
    for cost in counted.costs:
        kind = "Pallas kernels" if cost.opcode == "custom-call" else "products" if cost.flops else cost.opcode
        row = rows.setdefault(kind, {"kind": kind, "milliseconds": 0.0, "bytes": 0.0, "flops": 0.0})
        row["milliseconds"] += 1e3 * seconds_of(cost, chip)
        row["bytes"] += cost.times * (cost.read + cost.written)
        row["flops"] += cost.times * cost.flops
    return sorted(rows.values(), key=lambda row: -row["milliseconds"])
