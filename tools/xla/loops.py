"""How often a loop of a compiled XLA program runs, by carrying out the scalar arithmetic of its counter."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tools.xla.hlo import Computation, Instruction, Program, leaves

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
_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_SAME = ("copy", "convert", "bitcast", "reshape", "copy-start", "copy-done")


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None where that cannot be told from the text.

    The compiler's `known_trip_count` where it is there; else the condition is evaluated on the counter, from its
    initial value on, until it fails.
    """
    known = loop.config.get("known_trip_count", {}).get("n")
    if known is not None:
        return int(known)
    condition = program.computations[loop.called["condition"]]
    body = program.computations[loop.called["body"]]
    state = Scalars(program, computation, ()).value(loop.operands[0])
    if not isinstance(state, tuple):
        return None
    needed = _needed(program, condition, body, len(state))
    for trips in range(MOST_TRIPS):
        goes_on = Scalars(program, condition, (state,)).value(condition.root)
        if not isinstance(goes_on, int):
            return None
        if not goes_on:
            return trips
        state = Scalars(program, body, (state,)).parts(body.root, needed)
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
    one = computation.instructions[name]
    if one.opcode == "get-tuple-element" and computation.instructions[one.operands[0]].opcode == "parameter":
        return frozenset((_index(one),))
    found: frozenset[int] = frozenset()
    for operand in one.operands:
        if one.opcode != "while":
            found |= _parts_read(computation, operand)
    return found


def _index(one: Instruction) -> int:
    found = re.search(r"index=(\d+)", one.attributes)
    assert found, one
    return int(found[1])


class Scalars:
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
        one = self.computation.instructions[name]
        return tuple(self.value(operand) if i in needed else None for i, operand in enumerate(one.operands))

    def _evaluate(self, one: Instruction) -> Known:
        if one.opcode == "tuple":
            return tuple(self.value(operand) for operand in one.operands)
        if one.opcode == "get-tuple-element":
            whole = self.value(one.operands[0])
            return whole[_index(one)] if isinstance(whole, tuple) else None
        if one.opcode == "parameter":
            number = int(one.inside)
            return self.parameters[number] if number < len(self.parameters) else None
        if any(part.dims for part in leaves(one.shape)):
            return None
        if one.opcode == "constant":
            return _integer(one.inside)
        if one.opcode in _SAME:
            return self.value(one.operands[0])
        if one.opcode == "fusion":
            callee = self.program.computations[one.called["calls"]]
            return Scalars(self.program, callee, [self.value(operand) for operand in one.operands]).value(callee.root)
        return self._arithmetic(one)

    def _arithmetic(self, one: Instruction) -> Known:
        direction = re.search(r"direction=(\w+)", one.attributes)
        if one.opcode not in _BINARY and not direction:
            return None
        left, right = (self.value(operand) for operand in one.operands)
        if not isinstance(left, int) or not isinstance(right, int):
            return None
        return int(_COMPARED[direction[1]](left, right)) if direction else _BINARY[one.opcode](left, right)


def _integer(text: str) -> int | None:
    words = {"true": 1, "false": 0}
    try:
        return words[text] if text in words else int(text)
    except ValueError:
        return None
