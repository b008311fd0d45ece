"""How often a loop of a compiled XLA program runs, by carrying out the scalar arithmetic of its counter."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tools.xla.hlo import Computation, Instruction, Program, arrays_of

Known: TypeAlias = "int | tuple[Known, ...] | None"
MOST_TRIPS = 10**6
_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
    "maximum": max,
    "minimum": min,
}
_SAME = ("copy", "convert", "bitcast", "reshape", "copy-start", "copy-done")


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where the text does not say.

    The compiler's `known_trip_count` where it is there; else the condition is evaluated on the counter, from its
    initial value on, until it fails.
    """
    known = loop.config.get("known_trip_count")
    if known is not None:
        return int(known["n"])
    condition = program.computations[loop.called["condition"]]
    body = program.computations[loop.called["body"]]
    state = ScalarEvaluator(program, computation, ()).value(loop.operands[0])
    if not isinstance(state, tuple):
        return None
    needed = _needed(program, condition, body, len(state))
    for trips in range(MOST_TRIPS):
        goes_on = ScalarEvaluator(program, condition, (state,)).value(condition.root)
        if not isinstance(goes_on, int):
            return None
        if not goes_on:
            return trips
        state = ScalarEvaluator(program, body, (state,)).parts(body.root, needed)
    return None


def _needed(program: Program, condition: Computation, body: Computation, size: int) -> frozenset[int]:
    """Which parts of the loop's state the condition depends on, through the body too."""
    needed = _parts_read(condition, condition.root)
    while True:
        more = needed
        for i in needed:
            more = more | _parts_read(body, body.instructions[body.root].operands[i])
        if more == needed:
            return frozenset(i for i in needed if i < size)
        needed = more


def _parts_read(computation: Computation, name: str) -> frozenset[int]:
    """Parts of a computation's only parameter that a value depends on."""
    instruction = computation.instructions[name]
    operands = instruction.operands
    if instruction.opcode == "get-tuple-element" and computation.instructions[operands[0]].opcode == "parameter":
        return frozenset((_index(instruction),))
    if instruction.opcode == "while":
        return frozenset()
    return frozenset().union(*(_parts_read(computation, operand) for operand in operands))


def _index(instruction: Instruction) -> int:
    found = re.search(r"index=(\d+)", instruction.attributes)
    assert found, instruction
    return int(found[1])


class ScalarEvaluator:
    """The integers of a computation that follow from constants, given what is known of its parameters."""

    def __init__(self, program: Program, computation: Computation, parameters: Sequence[Known]):
        self.program, self.computation, self.parameters = program, computation, parameters
        self.found: dict[str, Known] = {}

    def value(self, name: str) -> Known:
        """The integer or the tuple of a value, None where it is not known."""
        if name not in self.found:
            self.found[name] = self._evaluate(self.computation.instructions[name])
        return self.found[name]

    def parts(self, name: str, needed: frozenset[int]) -> tuple[Known, ...]:
        """The parts of a tuple that are needed, None for the others."""
        instruction = self.computation.instructions[name]
        return tuple(self.value(operand) if i in needed else None for i, operand in enumerate(instruction.operands))

    def _evaluate(self, instruction: Instruction) -> Known:
        if instruction.opcode == "tuple":
            return tuple(self.value(operand) for operand in instruction.operands)
        if instruction.opcode == "get-tuple-element":
            whole = self.value(instruction.operands[0])
            return whole[_index(instruction)] if isinstance(whole, tuple) else None
        if instruction.opcode == "parameter":
            number = int(instruction.inside)
            return self.parameters[number] if number < len(self.parameters) else None
        if any(part.dims for part in arrays_of(instruction.shape)):
            return None
        if instruction.opcode == "constant":
            return _integer(instruction.inside)
        if instruction.opcode in _SAME:
            return self.value(instruction.operands[0])
        if instruction.opcode == "fusion":
            callee = self.program.computations[instruction.called["calls"]]
            arguments = [self.value(operand) for operand in instruction.operands]
            return ScalarEvaluator(self.program, callee, arguments).value(callee.root)
        return self._arithmetic(instruction)

    def _arithmetic(self, instruction: Instruction) -> Known:
        # XLA names the comparisons as Python does, in capitals: LT, LE, GT, GE, EQ, NE.
        direction = re.search(r"direction=([LG][TE]|EQ|NE)", instruction.attributes)
        if instruction.opcode not in _BINARY and not direction:
            return None
        left, right = (self.value(operand) for operand in instruction.operands)
        if not isinstance(left, int) or not isinstance(right, int):
            return None
        operation = getattr(operator, direction[1].lower()) if direction else _BINARY[instruction.opcode]
        return int(operation(left, right))


def _integer(text: str) -> int | None:
    words = {"true": 1, "false": 0}
    try:
        return words[text] if text in words else int(text)
    except ValueError:
        return None
