"""The HBM bytes that one instruction of a compiled XLA program reads and writes; the rules are in hlo_count.py."""

from __future__ import annotations

from collections.abc import Iterator

from tools.xla.hlo import HBM, Array, Computation, Instruction, Program, Shape, leaves

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
STARTS, ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"
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

    def read(self, computation: Computation, one: Instruction, i: int) -> float:
        """HBM bytes that the instruction reads of operand i."""
        shape = computation.shape_of(one.operands[i])
        parts = list(leaves(shape))
        whole = sum(part.stored for part in parts if part.space == HBM)
        if isinstance(shape, Array) and whole:
            return min(whole, self._used(computation, one, i, shape))
        return whole

    def _used(self, computation: Computation, one: Instruction, i: int, of: Array) -> float:
        """Bytes of operand i, an array `of`, that the instruction uses: the slices alone where it takes only these."""
        if one.opcode == "tuple" or goes_on(computation, one):
            return 0.0
        if one.opcode.removesuffix("-start") in SLICES and i == 0:
            return sum(part.stored * of.item / part.item for part in leaves(result_of(one)))
        if one.opcode in UPDATES and i == 0 and may_be_in_place(one, 0):
            part = computation.shape_of(one.operands[UPDATES[one.opcode]])
            # A scatter adds to what is there; an update forgets it.
            return _moved(part) if one.opcode == "scatter" else 0.0
        callee = self.program.computations.get(one.called.get("calls", ""))
        if callee is None:
            return of.stored
        return self._used_by_all(callee, callee.parameters[i], of, in_place=may_be_in_place(one, i))

    def _used_by_all(self, callee: Computation, name: str, of: Array, in_place: bool) -> float:
        """Bytes of a value inside a fusion that its users use together."""
        total = 0.0
        for user, i in callee.users.get(name, ()):
            if user.opcode in SAME_ELEMENTS and user.name != callee.root:
                total += self._used_by_all(callee, user.name, of, in_place)
            elif user.opcode in UPDATES and i == 0 and not in_place:
                total += of.stored
            else:
                total += self._used(callee, user, i, of)
        return min(total, of.stored)

    def written(self, computation: Computation, one: Instruction) -> float:
        """HBM bytes that the instruction writes."""
        results = list(leaves(result_of(one)))
        changed: list[Array] | None = None
        if one.opcode in UPDATES and may_be_in_place(one, None):
            changed = list(leaves(computation.shape_of(one.operands[UPDATES[one.opcode]])))[:1]
        elif one.opcode == "fusion":
            callee = self.program.computations[one.called["calls"]]
            changed = list(self._results(callee, callee.root, may_be_in_place(one, None)))
        if changed is None or len(changed) != len(results):
            changed = results
        return sum(
            min(part.stored, result.stored)
            for part, result in zip(changed, results, strict=True)
            if result.space == HBM
        )

    def _results(self, callee: Computation, name: str, in_place: bool) -> Iterator[Array]:
        """What a fusion writes of each result: of one that is updated in place the update."""
        one = callee.instructions[name]
        if one.opcode == "tuple":
            for operand in one.operands:
                passed = callee.instructions[operand].opcode == "parameter"
                yield from [NOTHING] if passed else self._results(callee, operand, in_place)
        elif goes_on(callee, one):
            yield NOTHING
        elif one.target == STARTS:
            # The operand comes back as the first part of the tuple.
            yield from (NOTHING, *list(leaves(one.shape))[1:])
        elif one.opcode == "bitcast" and not isinstance(callee.shape_of(one.operands[0]), tuple):
            (part,) = self._results(callee, one.operands[0], in_place)
            unchanged = part is callee.shape_of(one.operands[0])
            yield from leaves(one.shape) if unchanged else (part,)
        elif one.opcode in UPDATES and in_place and isinstance(one.shape, Array):
            yield from leaves(callee.shape_of(one.operands[UPDATES[one.opcode]]))
        elif one.opcode == "fusion":
            inner = self.program.computations[one.called["calls"]]
            yield from self._results(inner, inner.root, in_place)
        else:
            yield from leaves(one.shape)


def goes_on(computation: Computation, one: Instruction) -> bool:
    """Whether a collective inside a fusion is one that began in another fusion, where it was counted."""
    if one.opcode not in COLLECTIVES or "chain_id=" not in one.attributes:
        return False
    return all(user.target != STARTS for user, _ in computation.users.get(one.name, ()))


def result_of(one: Instruction) -> Shape:
    """What an instruction makes: of the tuple of an asynchronous start the part that is new."""
    if isinstance(one.shape, tuple) and one.opcode.endswith("-start") and len(one.shape) > 1:
        return one.shape[0 if one.opcode == "copy-start" else 1]
    return one.shape


def may_be_in_place(one: Instruction, operand: int | None) -> bool:
    """Whether the compiler lets the result share the buffer of an operand, or of any; true where it does not say."""
    lists = one.config.get("aliasing_operands", {}).get("lists")
    if lists is None:
        return True
    n = len(one.operands)
    for group in lists:
        indices = [int(index) for index in group["indices"]]
        if any(index >= n for index in indices) and (operand is None or operand in indices):
            return True
    return False


def _moved(shape: Shape) -> float:
    return sum(part.stored for part in leaves(shape))
