"""What a compiled XLA program moves and computes, counted from its text: HBM bytes, FLOPs of products, collectives.

Rules, and what each rests on:
* An instruction reads its operands and writes its result once: XLA fuses what it keeps in registers, so that what
  stands between two instructions of a computation is a buffer. Only buffers in HBM count, by their layout's `S(n)`.
* Whole tiles are moved: a buffer's bytes are those of its layout, padding included.
* A fusion reads a slice where only slices of an operand are used inside, and writes the update where the result is an
  operand updated in place; `aliasing_operands`, or no word of it, says that it may be in place.
* A loop's body counts by its trips: scalar arithmetic on its counter is carried out. A conditional counts its
  dearest branch. Both are listed where that is uncertain.
* An asynchronous pair counts at its start, and so does a collective that is spread over several fusions.
* Parameters, constants, tuples and bitcasts move nothing.
* A Pallas kernel moves and computes what its cost estimate says where it has one, less what of its operands and results
  lies elsewhere; without one it moves its operands and results.
* FLOPs are those of products, two a multiplication and addition. Elementwise work is not counted.
* A collective is counted with the bytes of its elements; in HBM it reads its operands and writes its results.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tools.xla.flops import product_flops
from tools.xla.hlo import HBM, Computation, Instruction, Program, arrays_of
from tools.xla.loops import trip_count
from tools.xla.traffic import ASYNC_DONE, COLLECTIVES, Traffic, continues_earlier, result_shape

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "domain", "get-dimension-size",
}  # fmt: skip
_KERNEL = "tpu_custom_call"
_VIEWS = ("AllocateBuffer", "ConcatBitcast")
"""Custom calls that move nothing: room that others fill, slices side by side seen as one array."""
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}")
_AXIS = re.compile(r"'([^']*)'(?::\(\d+\)(\d+))?(?:=(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


@dataclass(frozen=True)
class Collective:
    """One exchange between chips: bytes of the elements that a chip gives and gets, and how many take part."""

    kind: str
    operand: float
    result: float
    group: int

    @property
    def received(self) -> float:
        """Bytes that must reach each chip, whatever the algorithm: what it has not got itself."""
        if self.kind == "collective-permute":
            return self.operand
        others = (self.group - 1) / self.group
        return others * {"all-gather": self.result, "all-reduce": 2 * self.operand}.get(self.kind, self.operand)


@dataclass(frozen=True)
class Cost:
    """What one instruction costs each time it runs, and how often it does."""

    name: str
    opcode: str
    op_name: str
    times: float = 1.0
    read: float = 0.0
    written: float = 0.0
    flops: float = 0.0
    passes: float = 0.0
    """FLOPs weighted by how many bfloat16 products each product is made of."""
    collective: Collective | None = None
    note: str = ""


@dataclass
class ProgramCost:
    """The costs of a program, in the order of its schedule, and what could not be counted for certain."""

    costs: list[Cost] = field(default_factory=list)
    uncertain: list[str] = field(default_factory=list)

    def total(self, amount: Callable[[Cost], float]) -> float:
        """The sum of an amount over all instructions, each as often as it runs."""
        return sum(cost.times * amount(cost) for cost in self.costs)

    @property
    def bytes(self) -> float:
        """HBM bytes read and written."""
        return self.total(lambda cost: cost.read + cost.written)

    @property
    def flops(self) -> float:
        return self.total(lambda cost: cost.flops)

    def collectives(self) -> list[dict[str, Any]]:
        """A row for each kind and group size: how many there are, the bytes of all, and the largest operand."""
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for cost in self.costs:
            one = cost.collective
            if one is not None:
                sums = {"count": 0, "operand": 0.0, "result": 0.0, "largest": 0.0}
                row = rows.setdefault((one.kind, one.group), {"kind": one.kind, "group": one.group, **sums})
                row["count"] += int(cost.times)
                row["operand"] += cost.times * one.operand
                row["result"] += cost.times * one.result
                row["largest"] = max(row["largest"], one.operand)
        return [rows[key] for key in sorted(rows)]


def count(program: Program) -> ProgramCost:
    """What one run of the program moves and computes on a chip."""
    counted = ProgramCost()
    _walk(_CostReader(program), program.computations[program.entry], 1.0, counted)
    return counted


def _walk(reader: _CostReader, computation: Computation, times: float, counted: ProgramCost) -> None:
    called = reader.program.computations
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            trips = trip_count(reader.program, computation, instruction)
            if trips is None:
                counted.uncertain.append(f"{instruction.name}: how often the loop runs is not known; counted once")
            _walk(reader, called[instruction.called["body"]], times * (1 if trips is None else trips), counted)
        elif instruction.opcode == "conditional":
            _costliest_branch(reader, instruction, times, counted)
        elif instruction.opcode == "call":
            _walk(reader, called[instruction.called.get("to_apply") or instruction.called["calls"]], times, counted)
        else:
            cost = reader.cost(computation, instruction)
            if cost is not None:
                counted.costs.append(replace(cost, times=times))


def _costliest_branch(reader: _CostReader, instruction: Instruction, times: float, counted: ProgramCost) -> None:
    branches = []
    for role, name in instruction.called.items():
        if role.startswith(("branch", "true", "false")):
            branches.append(ProgramCost())
            _walk(reader, reader.program.computations[name], times, branches[-1])
    costliest = max(branches, key=lambda branch: (branch.bytes, branch.flops))
    counted.costs += costliest.costs
    counted.uncertain += costliest.uncertain
    if len({branch.bytes for branch in branches}) > 1:
        counted.uncertain.append(f"{instruction.name}: one of {len(branches)} branches runs; the dearest is counted")


class _CostReader:
    """The cost of single instructions of a program."""

    def __init__(self, program: Program):
        self.program, self.traffic = program, Traffic(program)

    def cost(self, computation: Computation, instruction: Instruction) -> Cost | None:
        """What the instruction costs, or None where it is free."""
        if instruction.opcode in FREE or instruction.opcode.endswith(("-done", "-update")):
            return None
        if any(part.target == ASYNC_DONE for _, part in self._inside(computation, instruction)):
            return None
        if instruction.opcode == "custom-call" and instruction.target in _VIEWS:
            return None
        if instruction.opcode == "custom-call" and instruction.target == _KERNEL:
            return self._by_estimate(computation, instruction)
        return self._by_operands(computation, instruction, instruction.target)

    def _by_operands(self, computation: Computation, instruction: Instruction, note: str) -> Cost:
        read = sum(self.traffic.read(computation, instruction, i) for i in range(len(instruction.operands)))
        products = [product_flops(*inside) for inside in self._inside(computation, instruction)]
        flops, passes = (sum(column) for column in zip(*products, strict=True)) if products else (0.0, 0.0)
        all_devices = self.program.partitions
        exchanges = (_collective(*inside, all_devices) for inside in self._inside(computation, instruction))
        exchange = next(filter(None, exchanges), None)
        opcode = exchange.kind if exchange else instruction.opcode.removesuffix("-start")
        written = self.traffic.written(computation, instruction)
        return Cost(
            instruction.name, opcode, instruction.op_name, 1.0, read, written, flops, passes, exchange, note
        )  # fmt: skip

    def _by_estimate(self, computation: Computation, instruction: Instruction) -> Cost:
        plain = self._by_operands(computation, instruction, "operands and results")
        estimate = instruction.config.get("custom_call_config", {}).get("cost_estimate", {})
        if not estimate:
            return plain
        shapes = [result_shape(instruction), *(computation.shape_of(name) for name in instruction.operands)]
        outside_hbm = sum(part.stored for shape in shapes for part in arrays_of(shape) if part.space != HBM)
        moved = max(0.0, float(estimate.get("bytes_accessed", 0)) - outside_hbm)
        arrays = plain.read + plain.written
        read_share = plain.read / arrays if arrays else 1.0
        # Its FLOPs are no products, which alone are counted.
        note = f"cost estimate; operands and results are {arrays / 1e6:,.1f} MB"
        return replace(plain, read=read_share * moved, written=(1 - read_share) * moved, note=note)

    def _inside(self, computation: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """The instruction, or all that a fusion or an asynchronous start is made of."""
        if instruction.opcode == "fusion" or (instruction.opcode.endswith("-start") and "calls" in instruction.called):
            callee = self.program.computations[instruction.called["calls"]]
            for part in callee.instructions.values():
                yield from self._inside(callee, part)
        else:
            yield computation, instruction


def _collective(computation: Computation, instruction: Instruction, all_devices: int) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or continues_earlier(computation, instruction):
        return None
    operand = sum(part.size for name in instruction.operands for part in arrays_of(computation.shape_of(name)))
    result = sum(part.size for part in arrays_of(result_shape(instruction)))
    # The compiler's own fusion of a sum and the slice that this device keeps of it.
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return Collective(kind, operand, result, _group(instruction.attributes, all_devices))


def _group(attributes: str, all_devices: int) -> int:
    """How many devices exchange with one another: in a list of lists, rows by columns, or axes of a mesh."""
    groups, pairs, mesh = (pattern.search(attributes) for pattern in (_GROUPS, _PAIRS, _MESH))
    if pairs:
        return pairs[1].count("{")
    if groups:
        return int(groups[2]) if groups[2] else len(groups[1].split(","))
    if mesh:
        sizes = {name: int(size) for name, _, size in _AXIS.findall(mesh[1])}
        return math.prod(int(part) if part else sizes[name] for name, part, _ in _AXIS.findall(mesh[2]))
    return all_devices
