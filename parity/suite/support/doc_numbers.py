"""The measured numbers of README and docs, each held against the record of the run that it comes from.

A comment before a table or a paragraph says where its numbers are from, `<!-- numbers: WHAT -->`: a key of RECORDS; or
`none kept`, and then the section says so to its reader; or `not measured`, where they are definitions and formulas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

from parity.proof.environment import ROOT

Number: TypeAlias = "float | Callable[[float], bool]"
"""What a number stands for, to be shown with any number of digits; or what must be so of a bound that is shown."""

KEPT_RUN = "docs/bench/amd-epyc-2-threads/20261123T153048Z.json"
TPU = "parity/suite/compiled/tpu/budget.json"
TRITON = "parity/suite/compiled/triton/budget.json"
UNKEPT = re.compile(r"no\s+record\s+of", re.IGNORECASE)
_MARK = re.compile(r"^ *<!-- numbers: (.+) -->$")
_NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?(?!\w|[.,]\d)")
_MEASURED = re.compile(r"\d\.\d|\d,\d{3}|\d (?:ms|s|GB|%)(?!\w)")
WHATS = ("0.8M, 12 x 64", "0.8M, 4 x 1024", "30M, 2 x 512")


@cache
def record(path: str) -> Any:
    """The content of a kept record."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _row(section: str, key: str, **of: object) -> float:
    """A number of one row of the kept run of `liquidnet bench`."""
    rows = record(KEPT_RUN)["sections"][section]
    (found,) = (row for row in rows if all(row.get(name) == value for name, value in of.items()))
    return found[key]


def _train() -> Iterator[Number]:
    def of(name: str, key: str, what: str) -> float:
        return _row("train", key, name=name, what=what)

    for name in ("torch eager", "torch compiled", "jax", "GPT-2, torch eager", "GPT-2, torch compiled"):
        yield from (of(name, "tokens_per_second", what) for what in WHATS)
    for what in WHATS:
        for way in ("eager", "compiled"):
            yield of(f"GPT-2, torch {way}", "milliseconds", what) / of(f"torch {way}", "milliseconds", what)
    for what in WHATS:
        for step, products in (("torch eager", "torch products, as the model multiplies"), ("jax", "jax products")):
            yield of(step, "milliseconds", what) / of(products, "milliseconds", what)


def _products() -> Iterator[Number]:
    for name in ("torch products, torch.mm", "GPT-2, torch eager", "torch eager"):
        yield _row("train", "milliseconds", name=name, what=WHATS[2])


def _decode() -> Iterator[Number]:
    rows: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("torch numba", (32, 10_000)), ("torch numba_bfloat16", (32,)), ("torch numba_int8", (32,)),
        ("torch eager", (32,)), ("jax jit", (32,)), ("GPT-2, KV cache", (32, 4096)),
    )  # fmt: skip
    for name, contexts in rows:
        for key in ("tokens_per_second", "of_reading"):
            yield from (_row("decode", key, what="small", name=name, context=context) for context in contexts)


def _nano() -> Iterator[Number]:
    yield _row("decode", "tokens_per_second", what="nano", name="torch numba", context=32)


def _passes() -> Iterator[Number]:
    for section, names in (
        ("scan", ("torch numba", "jax sequential")),
        ("mixer", ("torch numba", "jax sequential")),
        ("mixer", ("torch chunked",)),
    ):
        for passed in ("forward", "forward + backward"):
            yield from (_row(section, "passes", name=name, **{"pass": passed}) for name in names)


def _growth(length: int, key: str) -> float:
    return _row("growth", key, length=length)


def _ends() -> Iterator[Number]:
    limits = {one["name"]: one for one in record(KEPT_RUN)["targets"]}
    missed = [one for one in limits.values() if not one["holds"]]
    yield from (65_536, 65_536, _growth(65_536, "times_first"), 128, 512, 512)
    for one in missed:
        yield from (
            (one["measured"], one["limit"]) if "reading" in one["name"] else (one["measured"], 4096, one["limit"])
        )


def _scaling() -> Iterator[Number]:
    small = {name: {"what": "small", "name": name} for name in ("torch numba", "GPT-2, KV cache")}
    yield _growth(65_536, "times_first")
    yield from (_growth(65_536, "units"), _growth(65_536, "bytes_a_token") / 1e3)
    apart = [abs(_growth(length, "units") / _growth(65_536, "units") - 1.0) for length in (512, 4096)]
    yield from (lambda shown: 100.0 * max(apart) <= shown, 512, 65_536)
    for name, long in (("torch numba", 10_000), ("GPT-2, KV cache", 4096)):
        first, last = (_row("decode", "milliseconds", **small[name], context=context) for context in (32, long))
        yield last / first


def _traffic() -> Iterator[Number]:
    moved = record(TRITON)["bytes"]
    yield from (8, 14)
    for split in ("", " split"):
        yield from (moved[f"mixer {direction}{split}"] for direction in ("forward", "backward"))


def _tpu_short() -> Iterator[Number]:
    steps = [record(TPU)["steps"][f"base v6e:4x4 {mesh}=16"] for mesh in ("data", "fsdp")]
    yield from (65_536, 65_536)
    for key in ("peak", "hbm_bytes"):
        yield from (step[key] / 1e9 for step in steps)
    for step in steps:
        yield from (step["milliseconds"], 100.0 * step["mfu"])
    yield from [record(TPU)["kernels"]["mixer bfloat16 base v6e"]["bytes"]] * 2


def _tpu_steps() -> Iterator[Number]:
    for name in ("base v6e:4x4 data=16", "base v6e:4x4 fsdp=16", "small v5e:2x4 data=8"):
        step = record(TPU)["steps"][name]
        yield from (step["peak"] / 1e9, step["hbm_bytes"] / 1e9, step["milliseconds"], 100.0 * step["mfu"])
        yield step["compile_seconds"]


def _tpu_kernels() -> Iterator[Number]:
    for name in ("mixer bfloat16", "mixer bfloat16 base", "mixer bfloat16 masked", "mixer bfloat16 odd"):
        yield from (record(TPU)["kernels"][f"{name} v6e"][key] for key in ("compiled", "blocks", "spilled"))
    for name in ("scan float32", "scan float32 large"):
        yield from (record(TPU)["kernels"][f"{name} v6e"][key] for key in ("arrays", "blocks", "spilled"))


RECORDS: dict[str, Callable[[], Iterator[Number]]] = {
    f"{KEPT_RUN}, train": _train,
    f"{KEPT_RUN}, products": _products,
    f"{KEPT_RUN}, decode": _decode,
    f"{KEPT_RUN}, nano": _nano,
    f"{KEPT_RUN}, passes": _passes,
    f"{KEPT_RUN}, ends": _ends,
    f"{KEPT_RUN}, growth": _scaling,
    f"{TRITON}, traffic": _traffic,
    f"{TPU}, in short": _tpu_short,
    f"{TPU}, steps": _tpu_steps,
    f"{TPU}, kernels": _tpu_kernels,
}


def is_shown(number: Number, shown: str) -> bool:
    """Whether a number, rounded to the digits that are shown, is what is shown: 28,224 is 28,200 and 1.449 is 1.45."""
    value = float(shown.replace(",", ""))
    if callable(number):
        return number(value)
    whole, _, decimals = shown.replace(",", "").partition(".")
    zeros = min(len(whole) - len(whole.rstrip("0")), max(len(whole) - 2, 0))
    unit = 10.0 ** -len(decimals) if decimals else 10.0**zeros
    return abs(number - value) <= 0.5 * unit * (1.0 + 1e-9) + 1e-12 * abs(value)


def shown_numbers(block: Sequence[str]) -> list[str]:
    """The numbers of a paragraph, or of a table without its header and its first column."""
    if block[0].lstrip().startswith("|"):
        block = [" | ".join(line.strip().strip("|").split("|")[1:]) for line in block[2:]]
    return _NUMBER.findall(" ".join(block).replace("**", ""))


def unfounded(text: str) -> Iterator[str]:
    """Every table of a page whose numbers nothing is said of, and every number that its record does not hold.

    Args:
        text: of the page.
    """
    lines = text.splitlines()
    for start, line in enumerate(lines):
        mark = _MARK.match(line)
        if mark:
            block = _block(lines, start + 1)
            if mark[1] == "none kept":
                if not UNKEPT.search(_section(lines, start)):
                    yield f"line {start + 1}: its reader is not told that there is no record of these runs"
            elif mark[1] != "not measured":
                yield from (f"line {start + 1}: {problem}" for problem in _against(mark[1], block))
        first = line.lstrip().startswith("|") and not lines[start - 1].lstrip().startswith("|")
        if first and _MEASURED.search("\n".join(_block(lines, start)[2:])) and not _MARK.match(lines[start - 1]):
            yield f"line {start + 1}: a table of numbers, and no word of where they are from"


def marks(text: str) -> list[str]:
    """What the comments of a page name."""
    return [mark[1] for line in text.splitlines() if (mark := _MARK.match(line))]


def _against(name: str, block: list[str]) -> Iterator[str]:
    if name not in RECORDS:
        yield f"no record {name}"
        return
    expected, shown = list(RECORDS[name]()), shown_numbers(block)
    if len(shown) != len(expected):
        yield f"{len(shown)} numbers where {name} gives {len(expected)}: {shown}"
        return
    for number, text in zip(expected, shown, strict=True):
        if not is_shown(number, text):
            yield f"{text} where {name} has {number}"


def _block(lines: list[str], start: int) -> list[str]:
    """The lines of a paragraph, a table or an item of a list."""
    end = start + 1
    while end < len(lines) and lines[end].strip() and not lines[end].startswith(("* ", "<!--")):
        end += 1
    return lines[start:end]


def _section(lines: list[str], at: int) -> str:
    """The lines around one, from heading to heading."""
    heads = [i for i, line in enumerate(lines) if line.startswith("#")] + [len(lines)]
    before = [head for head in heads if head <= at] or [0]
    return "\n".join(lines[before[-1] : next(head for head in heads if head > at)])
