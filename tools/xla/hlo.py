"""A parser for the text of a compiled XLA program: computations, instructions, shapes, layouts, memory spaces.

`compiled.as_text()` prints one instruction a line, `%name = shape opcode(operands), attributes`, and a layout such as
`{1,0:T(8,128)(2,1)S(1)}`: dimensions from minor to major, tiles, memory space. `tools/xla/count.py` counts with it.
The shapes and layouts are those of https://openxla.org/xla/shapes and https://openxla.org/xla/tiled_layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

HBM = 0
"""The memory space that a layout names when it names none: HBM. 1 is VMEM, 2 flags, 5 the host's, 6 SMEM."""
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_TILES = re.compile(r"T((?:\([\d,*]+\))+)")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAMED = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Array:
    """One array: what its elements are, its dimensions, and how and where it lies."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    """Dimensions from minor to major; none is row-major."""
    tile: tuple[int, ...] = ()
    """The outermost tile, of the most minor dimensions."""
    space: int = HBM

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def item(self) -> float:
        """Bytes an element."""
        bits = _BITS.get(self.dtype)
        return (int(re.sub(r"\D.*", "", self.dtype.lstrip("bfsu"))) if bits is None else bits) / 8

    @property
    def size(self) -> float:
        """Bytes of the elements alone."""
        return self.elements * self.item

    @property
    def stored(self) -> float:
        """Bytes in memory: whole tiles are stored, and moved."""
        dims = [self.dims[i] for i in reversed(self.order or range(len(self.dims))[::-1])]
        if not self.tile or not dims:
            return self.size
        dims = [1] * (len(self.tile) - len(dims)) + dims
        kept, cut = dims[: -len(self.tile)], dims[-len(self.tile) :]
        whole = [-(-size // edge) * edge for size, edge in zip(cut, self.tile, strict=True)]
        return math.prod(kept) * math.prod(whole) * self.item


Shape: TypeAlias = "Array | tuple[Shape, ...]"


def arrays_of(shape: Shape) -> Iterator[Array]:
    """The arrays of a shape, in order."""
    if isinstance(shape, Array):
        yield shape
    else:
        for part in shape:
            yield from arrays_of(part)


def single_array(shape: Shape) -> Array:
    """The only array of a shape that is not a tuple."""
    assert isinstance(shape, Array), shape
    return shape


@dataclass(frozen=True)
class Instruction:
    """One line: what it makes, how, and of what."""

    name: str
    shape: Shape
    opcode: str
    operands: tuple[str, ...]
    inside: str
    """What stands in the opcode's parentheses: a constant's value, a parameter's number."""
    attributes: str

    @cached_property
    def called(self) -> dict[str, str]:
        """Computations by role."""
        found = dict(_CALLED.findall(self.attributes))
        branches = _BRANCHES.search(self.attributes)
        names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
        return found | {f"branch {i}": name for i, name in enumerate(names)}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The backend's own configuration, as jaxlib 0.10 and libtpu print it; empty where there is none."""
        _, found, rest = self.attributes.partition("backend_config=")
        try:
            value = json.JSONDecoder().raw_decode(rest)[0] if found else {}
        except ValueError:
            value = {}
        return value if isinstance(value, dict) else {}

    @cached_property
    def op_name(self) -> str:
        """Where in the source program it comes from."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def numbers(self, key: str) -> tuple[int, ...]:
        """The integers of `key={1,2}`; none where the key is not there."""
        found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(number) for number in found[1].split(",") if number) if found else ()


@dataclass
class Computation:
    """Instructions by name in the order of the schedule, the last of them or the one marked ROOT its result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """Who reads each value, and as which operand."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for instruction in self.instructions.values():
            for i, operand in enumerate(instruction.operands):
                found.setdefault(operand, []).append((instruction, i))
        return found

    @cached_property
    def parameters(self) -> dict[int, str]:
        """Names of the parameters by number."""
        found = self.instructions.values()
        return {int(instruction.inside): instruction.name for instruction in found if instruction.opcode == "parameter"}

    def shape_of(self, name: str) -> Shape:
        return self.instructions[name].shape


@dataclass(frozen=True)
class Program:
    """A module: its computations, the name of the one that runs, and on how many devices it does."""

    computations: dict[str, Computation]
    entry: str
    partitions: int = 1


def parse(text: str) -> Program:
    """The program that `compiled.as_text()` prints.

    Raises:
        ValueError: the text has no entry computation, or a line that is no instruction.
    """
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], Computation(head[2]))
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and line.strip():
            instruction, is_root = _instruction(line)
            current.instructions[instruction.name] = instruction
            if is_root or not current.root:
                current.root = instruction.name
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    partitions = re.search(r"^HloModule .*\bnum_partitions=(\d+)", text)
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(line: str) -> tuple[Instruction, bool]:
    head = _NAMED.match(line)
    if not head:
        raise ValueError(f"not an instruction of HLO: {line.strip()[:80]!r}")
    shape, end = _shape(line, head.end())
    opcode = _OPCODE.match(line, end)
    if not opcode:
        raise ValueError(f"no opcode after the shape in {line.strip()[:80]!r}")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    operands = () if opcode[1] in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head[2], shape, opcode[1], operands, inside, line[close + 1 :]), bool(head[1])


def _shape(text: str, at: int) -> tuple[Shape, int]:
    """The shape that begins at `at`, and where it ends."""
    if text[at] != "(":
        found = _ARRAY.match(text, at)
        if not found:
            raise ValueError(f"not a shape of HLO: {text[at : at + 40]!r}")
        return _array(found), found.end()
    parts, at = [], at + 1
    while text[at] != ")":
        comment = re.compile(r"[, ]+|/\*.*?\*/").match(text, at)
        if comment:
            at = comment.end()
            continue
        part, at = _shape(text, at)
        parts.append(part)
    return tuple(parts), at + 1


def _array(found: re.Match[str]) -> Array:
    dims = tuple(int(size.lstrip("<=")) for size in found[2].split(",") if size)
    order, _, rest = (found[3] or "").partition(":")
    tiles, space = _TILES.search(rest), _SPACE.search(rest)
    tile = tiles[1].split(")")[0].strip("(") if tiles else ""
    return Array(
        found[1],
        dims,
        tuple(int(i) for i in order.split(",") if i),
        tuple(1 if edge == "*" else int(edge) for edge in tile.split(",") if edge),
        int(space[1]) if space else HBM,
    )


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that opens at `at` closes."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"an unclosed parenthesis in {text.strip()[:80]!r}")
