"""The HBM bytes that one instruction of a compiled XLA program reads and writes; tools/xla/count.py has the rules."""

from __future__ import annotations

from collections.abc import Iterator

from tools.xla.hlo import HBM, Array, Computation, Instruction, Program, Shape, arrays_of

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
ASYNC_START, ASYNC_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
"""What a TPU's compiler calls in the first and the last fusion of a collective that it spreads over several."""
NOTHING = Array("u8", (0,))
SLICES = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Opcodes that replace part of operand 0, and which operand the part is."""
SAME_ELEMENTS = {"bitcast", "convert", "copy", "reshape", "transpose"}


class Traffic:
    """What the instructions of a program read and write.

    Args:
        program: of `hlo.parse`.
    """

    def __init__(self, program: Program):
        self.program = program

    def read(self, computation: Computation, instruction: Instruction, i: int) -> float:
        """HBM bytes that the instruction reads of operand i."""
        shape = computation.shape_of(instruction.operands[i])
        parts = list(arrays_of(shape))
        whole = sum(part.stored for part in parts if part.space == HBM)
        if isinstance(shape, Array) and whole:
            return min(whole, self._bytes_used(computation, instruction, i, shape))
        return whole

    def _bytes_used(self, computation: Computation, instruction: Instruction, i: int, array: Array) -> float:
        """Bytes of operand i, an array `of`, that the instruction uses: the slices alone where it takes only these."""
        if instruction.opcode == "tuple" or continues_earlier(computation, instruction):
            return 0.0
        if instruction.opcode.removesuffix("-start") in SLICES and i == 0:
            return sum(part.stored * array.item / part.item for part in arrays_of(result_shape(instruction)))
        if instruction.opcode in UPDATES and i == 0 and may_be_in_place(instruction, 0):
            part = computation.shape_of(instruction.operands[UPDATES[instruction.opcode]])
            # A scatter adds to what is there; an update forgets it.
            return _stored_bytes(part) if instruction.opcode == "scatter" else 0.0
        callee = self.program.computations.get(instruction.called.get("calls", ""))
        if callee is None:
            return array.stored
        return self._bytes_used_by_all(callee, callee.parameters[i], array, in_place=may_be_in_place(instruction, i))

    def _bytes_used_by_all(self, callee: Computation, name: str, array: Array, in_place: bool) -> float:
        """Bytes of a value inside a fusion that its users use together."""
        total = 0.0
        for user, i in callee.users.get(name, ()):
            if user.opcode in SAME_ELEMENTS and user.name != callee.root:
                total += self._bytes_used_by_all(callee, user.name, array, in_place)
            elif user.opcode in UPDATES and i == 0 and not in_place:
                total += array.stored
            else:
                total += self._bytes_used(callee, user, i, array)
        return min(total, array.stored)

    def written(self, computation: Computation, instruction: Instruction) -> float:
        """HBM bytes that the instruction writes."""
        results = list(arrays_of(result_shape(instruction)))
        changed: list[Array] | None = None
        if instruction.opcode in UPDATES and may_be_in_place(instruction, None):
            changed = list(arrays_of(computation.shape_of(instruction.operands[UPDATES[instruction.opcode]])))[:1]
        elif instruction.opcode == "fusion":
            callee = self.program.computations[instruction.called["calls"]]
            changed = list(self._results(callee, callee.root, may_be_in_place(instruction, None)))
        if changed is None or len(changed) != len(results):
            changed = results
        return sum(
            min(part.stored, result.stored)
            for part, result in zip(changed, results, strict=True)
            if result.space == HBM
        )

    def _results(self, callee: Computation, name: str, in_place: bool) -> Iterator[Array]:
        """What a fusion writes of each result: of one that is updated in place the update."""
        instruction = callee.instructions[name]
        if instruction.opcode == "tuple":
            for operand in instruction.operands:
                passed = callee.instructions[operand].opcode == "parameter"
                yield from [NOTHING] if passed else self._results(callee, operand, in_place)
        elif continues_earlier(callee, instruction):
            yield NOTHING
        elif instruction.target == ASYNC_START:
            # The operand comes back as the first part of the tuple.
            yield from (NOTHING, *list(arrays_of(instruction.shape))[1:])
        elif instruction.opcode == "bitcast" and not isinstance(callee.shape_of(instruction.operands[0]), tuple):
            (part,) = self._results(callee, instruction.operands[0], in_place)
            unchanged = part is callee.shape_of(instruction.operands[0])
            yield from arrays_of(instruction.shape) if unchanged else (part,)
        elif instruction.opcode in UPDATES and in_place and isinstance(instruction.shape, Array):
            yield from arrays_of(callee.shape_of(instruction.operands[UPDATES[instruction.opcode]]))
        elif instruction.opcode == "fusion":
            inner = self.program.computations[instruction.called["calls"]]
            yield from self._results(inner, inner.root, in_place)
        else:
            yield from arrays_of(instruction.shape)


def continues_earlier(computation: Computation, instruction: Instruction) -> bool:
    """Whether a collective inside a fusion is one that began in another fusion, where it was counted."""
    if instruction.opcode not in COLLECTIVES or "chain_id=" not in instruction.attributes:
        return False
    return all(user.target != ASYNC_START for user, _ in computation.users.get(instruction.name, ()))


def result_shape(instruction: Instruction) -> Shape:
    """What an instruction makes: of the tuple of an asynchronous start the part that is new."""
    if isinstance(instruction.shape, tuple) and instruction.opcode.endswith("-start") and len(instruction.shape) > 1:
        return instruction.shape[0 if instruction.opcode == "copy-start" else 1]
    return instruction.shape


def may_be_in_place(instruction: Instruction, operand: int | None) -> bool:
    """Whether the compiler lets the result share the buffer of an operand, or of any; true where it does not say."""
    lists = instruction.config.get("aliasing_operands", {}).get("lists")
    if lists is None:
        return True
    n = len(instruction.operands)
    for group in lists:
        indices = [int(index) for index in group["indices"]]
        if any(index >= n for index in indices) and (operand is None or operand in indices):
            return True
    return False


def _stored_bytes(shape: Shape) -> float:
    return sum(part.stored for part in arrays_of(shape))
