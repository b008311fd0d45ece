"""An even sample of the generic mutants: over the operators, and in each over the places of all files."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from pathlib import Path

from parity.suite.mutants.generic.operators import Mutation, is_program, mutations

SOURCES = ("spec", "torch_impl", "jax_impl", "tools", "parity/proof")


def source_files(root: Path, sources: Iterable[str] = SOURCES) -> dict[str, bytes]:
    """The files that are mutated, with what they hold."""
    paths = (path for source in sources for path in sorted((root / source).rglob("*.py")))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def shares(places: Mapping[str, int], size: int) -> dict[str, int]:
    """How many of `size` each operator gets: as many as the others, and no more than it has places."""
    given, left = {}, size
    for at, name in enumerate(sorted(places, key=lambda name: (places[name], name))):
        given[name] = min(places[name], left // (len(places) - at))
        left -= given[name]
    return given


def sample(files: Mapping[str, bytes], size: int, seed: int, without: Collection[Mutation] = ()) -> list[Mutation]:
    """`size` mutants, the same for the same seed and sources, in the order of files and places.

    Each operator gets the same number, as far as it has places. Its own are taken at equal distances from all its
    places in the order of the files, from a start that is drawn, so a file gets its share of them (systematic
    sampling; Cochran, Sampling Techniques, 1977, chapter 8). Of the changes of one place one is drawn.

    Args:
        files: of `source_files`.
        size: how many; fewer where the files have fewer places.
        seed: of the draws.
        without: mutants that are not to be taken.
    """
    draw, left_out = random.Random(seed), set(without)
    every = [one for file, source in sorted(files.items()) for one in mutations(file, source) if one not in left_out]
    places: dict[str, list[list[Mutation]]] = {}
    for one in sorted({one.operator for one in every}):
        of_one = (found for found in every if found.operator == one)
        places[one] = [list(group) for _, group in groupby(of_one, key=lambda found: found.place)]
    chosen: list[Mutation] = []
    for name, count in shares({name: len(found) for name, found in places.items()}, size).items():
        start = draw.random()
        for number in range(count):
            at = int((number + start) * len(places[name]) / count)
            chosen += _one_of(places[name], at, draw, files)
    return sorted(chosen, key=lambda one: (one.file, one.start, one.end, one.text))


def _one_of(places: list[list[Mutation]], at: int, draw: random.Random, files: Mapping[str, bytes]) -> list[Mutation]:
    """A change of this place that leaves a program, else of the next one that has any."""
    for place in places[at:]:
        for one in draw.sample(place, len(place)):
            if is_program(one, files[one.file]):
                return [one]
    return []
