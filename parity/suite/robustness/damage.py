"""Damage drawn at random: to bytes, to what stands in JSON, to a safetensors header, to a whole directory."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, MutableMapping, MutableSequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from parity.suite.robustness.corruption import files_in, rewrite
from parity.suite.robustness.malicious_files import MARKER, Call

Random = np.random.Generator
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), "", "x", "\x00", "\ud800", "/etc/passwd", "../../x", "9" * 400, "nan", "float32", "auto", [], {},
    [[]], [0], [1, 2, 3], {"a": 1}, {"": None}, ["x"] * 50, [10**18, 10**18], [-1, -1], {"__class__": "x"},
)  # fmt: skip
TEXTS = (
    b"", b" ", b"null", b"[]", b"{}", b"0", b'"text"', b"nan", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 6000,
    b'{"a": ' + b"9" * 6000 + b"}", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\0" * 100, b"{'a': 1}", b"\x80\x04.",
)  # fmt: skip


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """One to a few changes: bits, lost, doubled, moved and inserted stretches."""
    for _ in range(random.integers(1, 5)):
        size = len(content)
        first, last = sorted(int(place) for place in random.integers(0, size + 1, 2))
        if random.random() < 0.5:
            last = min(last, first + 8)
        kind = random.integers(8)
        if kind < 3 and size:
            place = min(first, size - 1)
            flipped = content[place] ^ (1 << int(random.integers(8)))
            content = content[:place] + bytes([flipped]) + content[place + 1 :]
        elif kind == 3:
            content = content[:first]
        elif kind == 4:
            content = content[:first] + content[last:]
        elif kind == 5:
            content = content[:last] + content[first:last] + content[last:]
        elif kind == 6:
            content = (
                content[:first] + bytes(random.integers(0, 256, int(random.integers(1, 9)), np.uint8)) + content[last:]
            )
        else:
            number = ODD[int(random.integers(len(ODD)))]
            content = (
                content[:first]
                + (number if isinstance(number, str) else str(number)).encode("utf-8", "replace")
                + content[last:]
            )
    return content


def damaged_json(value: Any, random: Random) -> Any:
    """One to a few changes somewhere in a JSON value: odd values, entries lost, doubled, renamed or swapped."""
    whole = {"": value}
    for _ in range(random.integers(1, 4)):
        places = list(_places(whole))
        holder, key = places[int(random.integers(len(places)))]
        kind = random.integers(6)
        if kind < 3:
            holder[key] = deepcopy(ODD[int(random.integers(len(ODD)))])
        elif kind == 3 and holder is not whole:
            del holder[key]
        elif kind == 4:
            other, at = places[int(random.integers(len(places)))]
            holder[key], other[at] = other[at], holder[key]
            # What now holds itself is no JSON.
            if not _is_finite(whole):
                return None
        elif isinstance(holder, MutableMapping) and holder is not whole:
            holder[str(ODD[int(random.integers(len(ODD)))])] = holder.pop(key)
    return whole[""]


def _places(value: Any) -> Any:
    entries: Any = value.items() if isinstance(value, MutableMapping) else enumerate(value)
    for key, item in entries:
        yield value, key
        if isinstance(item, MutableMapping | MutableSequence):
            yield from _places(item)


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return False
    return True


def _written(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "replace")


def damaged_text(content: bytes, random: Random) -> bytes:
    """JSON, or lines of it, with other entries; other text as bytes."""
    if random.random() < 0.1:
        return TEXTS[int(random.integers(len(TEXTS)))]
    try:
        return _written(damaged_json(json.loads(content), random))
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    place = int(random.integers(len(lines)))
    try:
        lines[place] = _written(damaged_json(json.loads(lines[place]), random))
    except (ValueError, RecursionError):
        return damaged_bytes(content, random)
    return b"\n".join(lines)


def damaged_safetensors(content: bytes, random: Random) -> bytes:
    """Another header before the same numbers; the length before it right, or not."""
    size = int.from_bytes(content[:8], "little")
    header = _written(damaged_json(json.loads(content[8 : 8 + size]), random))
    claimed = len(header) if random.random() < 0.9 else int(random.integers(0, 2**63))
    return struct.pack("<Q", claimed) + header + content[8 + size :]


def bomb(path: Path, random: Random) -> bytes:
    """A pickle that would make a directory beside the sample."""
    marker = str(path / MARKER)
    calls = (
        Call(os.mkdir, marker),
        Call(exec, f"import os; os.mkdir({marker!r})"),
        Call(list, [Call(os.mkdir, marker)]),
    )
    return pickle.dumps(calls[int(random.integers(len(calls)))], int(random.integers(5)))


def damage(path: Path, random: Random) -> str:
    """Damages a file, or a file of a directory, in place; what was done."""
    files = [file for file in _all_files(path) if file.is_file()]
    file = files[int(random.integers(len(files)))]
    content, kind = file.read_bytes(), random.random()
    if kind < 0.03:
        done, content = "a pickle", bomb(path.parent, random)
    elif kind < 0.08 and len(files) > 1:
        other = files[int(random.integers(len(files)))]
        done, mine = f"swapped with {other.name}", other.read_bytes()
        other.write_bytes(content)
        content = mine
    else:
        done, change = _change_for(file, random)
        content = change(content, random)
    file.write_bytes(content)
    # Under right checksums what is wrong gets further.
    if (path / "SHA256SUMS").is_file() and random.random() < 0.7:
        rewrite(path)
        done += ", right checksums"
    return f"{file.relative_to(path) if file != path else file.name}: {done}"


def _change_for(file: Path, random: Random) -> tuple[str, Callable[[bytes, Random], bytes]]:
    if random.random() < 0.25:
        return "bytes", damaged_bytes
    if file.suffix == ".safetensors":
        return "header", damaged_safetensors
    if file.suffix in (".json", ".jsonl", ".ndjson"):
        return "JSON", damaged_text
    return "bytes", damaged_bytes


def _all_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else files_in(path)
