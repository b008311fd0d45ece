"""The ratios that the project holds itself to on a processor, each from what one run has measured, with its limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tools.bench import decode
from tools.bench.matmul import JAX as JAX_PRODUCTS
from tools.bench.matmul import OURS as TORCH_PRODUCTS
from tools.bench.timer import Row
from tools.bench.train_step import COMPILED, EAGER, GPT2, JAX

PASSES = 3.0
"""Passes over memory that a scan may take, each for the bytes that it must move at least."""
TRAINING = {"0.8M, 12 x 64": 1.3, "0.8M, 4 x 1024": 3.0, "30M, 2 x 512": 1.15}
"""Times the tokens a second of GPT-2 that a train step must reach."""
ABOVE_PRODUCTS = {"30M, 2 x 512": 1.25}
"""Times the matrix products alone that a train step may take."""
JAX_TO_TORCH = 1.5
OF_READING = 0.75
EQUAL = 1.1
"""Times a decode step after the shortest context that one after a longer context may take to count as equal."""
QUANTISED = {"bfloat16": 1.6, "int8": 2.5}
"""Times the tokens a second of float32 that are aimed at."""
TO_GPT2 = 4.0
GROWTH = 1.2


@dataclass(frozen=True)
class Target:
    """A ratio, and the limit that it must not exceed (`most`) or must reach."""

    name: str
    measured: float
    limit: float
    most: bool

    @property
    def holds(self) -> bool:
        return self.measured <= self.limit if self.most else self.measured >= self.limit


def targets(sections: Mapping[str, list[Row]]) -> list[Target]:
    """All ratios whose parts were measured."""
    found: list[Target] = []
    for name, of_section in (("scan", _scan), ("train", _train), ("decode", _decode), ("growth", _growth)):
        found += of_section([row for row in sections.get(name, []) if "milliseconds" in row])
    return found


def as_json(found: list[Target]) -> list[dict[str, Any]]:
    return [{**asdict(one), "holds": one.holds} for one in found]


def _scan(rows: list[Row]) -> Iterator[Target]:
    for row in rows:
        if row.get("auto") and "passes" in row:
            yield Target(f"scan {row['name']}, {row['pass']}: passes", row["passes"], PASSES, True)


def _train(rows: list[Row]) -> Iterator[Target]:
    for what in dict.fromkeys(row["what"] for row in rows):
        taken = {row["name"]: row["milliseconds"] for row in rows if row["what"] == what}
        for way in (EAGER, COMPILED):
            peer = taken.get(GPT2 + way)
            if way in taken and peer and what in TRAINING:
                yield Target(f"train {what}, {way}: x GPT-2", peer / taken[way], TRAINING[what], False)
        for step, products in ((EAGER, TORCH_PRODUCTS), (JAX, JAX_PRODUCTS)):
            if step in taken and products in taken and what in ABOVE_PRODUCTS:
                ratio = taken[step] / taken[products]
                yield Target(f"train {what}, {step}: time / products'", ratio, ABOVE_PRODUCTS[what], True)
        if EAGER in taken and JAX in taken:
            yield Target(f"train {what}, jax: time / torch's", taken[JAX] / taken[EAGER], JAX_TO_TORCH, True)


def _decode(rows: list[Row]) -> Iterator[Target]:
    for what in dict.fromkeys(row["what"] for row in rows):
        alone = [row for row in rows if row["what"] == what and row.get("batch") == 1]
        ours = {(row["name"], row["context"]): row for row in alone if "peer" not in row}
        peers = {row["context"]: row["tokens_per_second"] for row in alone if row["name"] == decode.GPT2}
        contexts = sorted({context for _, context in ours})
        yield from _of_chosen(what, [row for row in ours.values() if row["auto"]], contexts, peers)
        for name, context in ours:
            weights = next((each for each in QUANTISED if name.endswith(each)), None)
            wide = ours.get((name.removesuffix(f"_{weights}"), context))
            # Of a model that a cache holds, bytes are not what a token costs.
            if weights and wide and peers and context == contexts[0]:
                ratio = ours[name, context]["tokens_per_second"] / wide["tokens_per_second"]
                yield Target(f"decode {what}, {name}: x float32", ratio, QUANTISED[weights], False)


def _of_chosen(what: str, rows: list[Row], contexts: list[int], peers: dict[int, float]) -> Iterator[Target]:
    """What `auto` takes: its bandwidth, whether context costs it anything, and GPT-2 after its longest one."""
    for row in rows:
        if peers:
            name = f"decode {what}, {row['name']}, {row['context']:,}: of reading"
            yield Target(name, row["of_reading"], OF_READING, False)
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = {row["context"]: row["tokens_per_second"] for row in rows if row["backend"] == backend}
        for context in contexts[1:]:
            if context in own and contexts[0] in own:
                name = f"decode {what}, {backend}: time at {context:,} / {contexts[0]}"
                yield Target(name, own[contexts[0]] / own[context], EQUAL, True)
        if peers and contexts[-1] in own:
            longest = max(peers)
            ratio = own[contexts[-1]] / peers[longest]
            yield Target(f"decode {what}, {backend}: x GPT-2 at {longest:,}", ratio, TO_GPT2, False)


def _growth(rows: list[Row]) -> Iterator[Target]:
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = sorted((row for row in rows if row["backend"] == backend), key=lambda row: row["length"])
        first, last = own[0], own[-1]
        if first is last:
            continue
        name = f"growth {backend}, T {last['length']:,} / {first['length']:,}"
        yield Target(f"{name}: time a token", last["times_first"], GROWTH, True)
        if "bytes_a_token" in first and "bytes_a_token" in last:
            ratio = last["bytes_a_token"] / first["bytes_a_token"]
            yield Target(f"{name}: memory a token", ratio, EQUAL, True)
