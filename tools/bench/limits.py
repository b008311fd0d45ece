"""The ratios that the project holds itself to on a processor, from what one run has measured, beside limits.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tools.bench.decode import DRAWN
from tools.bench.decode import GPT2 as DECODED_GPT2
from tools.bench.machine import JAX_PRODUCTS, TORCH_PRODUCTS
from tools.bench.timer import Row, ran
from tools.bench.train_step import COMPILED, EAGER, GPT2, JAX
from tools.cli.json_file import Json

LIMITS = tomllib.loads(Path(__file__).with_name("limits.toml").read_text())


Target = Json
"""A ratio, and the limit that it must not exceed (`most`) or must reach."""


def targets(sections: Mapping[str, Sequence[Row]]) -> list[Target]:
    """All ratios whose parts were measured."""
    found: list[Target] = []
    for name, ratios in (("scan", _scan), ("train", _train), ("decode", _decode), ("growth", _growth)):
        found += ratios(ran(sections.get(name, [])))
    return found


def _at_most(name: str, measured: float, limit: float) -> Target:
    return {"name": name, "measured": measured, "limit": limit, "most": True, "holds": measured <= limit}


def _at_least(name: str, measured: float, limit: float) -> Target:
    return {"name": name, "measured": measured, "limit": limit, "most": False, "holds": measured >= limit}


def _scan(rows: list[Row]) -> Iterator[Target]:
    for row in rows:
        if row.get("auto") and "passes" in row:
            yield _at_most(f"scan {row['name']}, {row['pass']}: passes", row["passes"], LIMITS["scan"]["passes"])


def _train(rows: list[Row]) -> Iterator[Target]:
    limits = LIMITS["train"]
    for what in dict.fromkeys(row["what"] for row in rows):
        taken = {row["name"]: row["milliseconds"] for row in rows if row["what"] == what}
        for way in (EAGER, COMPILED):
            if way in taken and GPT2 + way in taken and what in limits["times_gpt2"]:
                ratio = taken[GPT2 + way] / taken[way]
                yield _at_least(f"train {what}, {way}: x GPT-2", ratio, limits["times_gpt2"][what])
        for step, products in ((EAGER, TORCH_PRODUCTS), (JAX, JAX_PRODUCTS)):
            if step in taken and products in taken and what in limits["over_products"]:
                ratio = taken[step] / taken[products]
                yield _at_most(f"train {what}, {step}: time / products'", ratio, limits["over_products"][what])
        if EAGER in taken and JAX in taken:
            ratio = taken[JAX] / taken[EAGER]
            yield _at_most(f"train {what}, jax: time / torch's", ratio, limits["jax_over_torch"])


def _decode(rows: list[Row]) -> Iterator[Target]:
    limits = LIMITS["decode"]["times_float32"]
    for what in dict.fromkeys(row["what"] for row in rows):
        alone = [row for row in rows if row["what"] == what and row.get("batch") == 1]
        ours = {(row["name"], row["context"]): row for row in alone if "peer" not in row}
        peers = {row["context"]: row["tokens_per_second"] for row in alone if row["name"] == DECODED_GPT2}
        contexts = sorted({context for _, context in ours})
        yield from _chosen(what, [row for row in ours.values() if row["auto"]], contexts, peers)
        for name, context in ours:
            weights = next((each for each in limits if name.endswith(each)), None)
            wide = ours.get((name.removesuffix(f"_{weights}"), context))
            # Of a model that a cache holds, bytes are not what a token costs.
            if weights and wide and peers and context == contexts[0]:
                ratio = ours[name, context]["tokens_per_second"] / wide["tokens_per_second"]
                yield _at_least(f"decode {what}, {name}: x float32", ratio, limits[weights])
        if peers:
            yield from _drawn(what, {name: row for (name, context), row in ours.items() if context == contexts[0]})


def _drawn(what: str, rows: dict[str, Row]) -> Iterator[Target]:
    """What is left of the steps' speed where each token is drawn from their logits."""
    for name, row in rows.items():
        steps = rows.get(name.removesuffix(DRAWN))
        weights = next((each for each in ("bfloat16", "int8") if f"_{each}" in name), "float32")
        if name.endswith(DRAWN) and steps and weights in LIMITS["decode"]["times_steps"]:
            ratio = row["tokens_per_second"] / steps["tokens_per_second"]
            yield _at_least(f"decode {what}, {name}: x steps", ratio, LIMITS["decode"]["times_steps"][weights])


def _chosen(what: str, rows: list[Row], contexts: list[int], peers: dict[int, float]) -> Iterator[Target]:
    """What `auto` takes: its bandwidth, whether context costs it anything, and GPT-2 after its longest one."""
    limits = LIMITS["decode"]
    for row in rows:
        if peers:
            name = f"decode {what}, {row['name']}, {row['context']:,}: of reading"
            yield _at_least(name, row["of_reading"], limits["of_reading"])
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = {row["context"]: row["tokens_per_second"] for row in rows if row["backend"] == backend}
        for context in contexts[1:]:
            if context in own and contexts[0] in own:
                name = f"decode {what}, {backend}: time at {context:,} / {contexts[0]}"
                yield _at_most(name, own[contexts[0]] / own[context], limits["over_shortest_context"])
        if peers and contexts[-1] in own:
            longest = max(peers)
            ratio = own[contexts[-1]] / peers[longest]
            yield _at_least(f"decode {what}, {backend}: x GPT-2 at {longest:,}", ratio, limits["times_gpt2"])


def _growth(rows: list[Row]) -> Iterator[Target]:
    limits = LIMITS["growth"]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = sorted((row for row in rows if row["backend"] == backend), key=lambda row: row["length"])
        first, last = own[0], own[-1]
        if first is last:
            continue
        name = f"growth {backend}, T {last['length']:,} / {first['length']:,}"
        if "times_first" in last:
            yield _at_most(f"{name}: time a token", last["times_first"], limits["time"])
        if "bytes_a_token" in first and "bytes_a_token" in last:
            ratio = last["bytes_a_token"] / first["bytes_a_token"]
            yield _at_most(f"{name}: memory a token", ratio, limits["memory"])
