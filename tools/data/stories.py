"""A deterministic generator of short children's stories, written wholly by this project.

The words and sentences are data, in stories_data; tools/data/story_parser.py reads them and has their notation.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Philox

from tools.data.story_parser import PRONOUNS, Choice, Join, Node, Slot, parse, plots, tables

T = TypeVar("T")

MIN_CHARACTERS, MAX_CHARACTERS = 400, 1200

_SMALL_START = re.compile(r"""([.!?](?: "?|" ")|\n"?)([a-z])""")
_VOWEL_AFTER_A = re.compile(r"( a|\bA) (?=[aeiou])")


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield children's stories, each a pure function of the seed and its index.

    Args:
        count: number of stories.
        seed: key of the random stream; the first stories of a longer run are those of a shorter one.

    Raises:
        ValueError: if count is not positive or seed is negative.
    """
    if count < 1:
        raise ValueError(f"stories must be at least 1, not {count}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"the stories' seed must be from 0 to 2**64 - 1, not {seed}")
    return (_story(seed, index) for index in range(count))


def _story(seed: int, index: int) -> str:
    draws = _Draws(seed, index)
    while True:
        text = _Writer(draws).write()
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            return text


class _Draws:
    """Choices from the raw stream of Philox, whose bits NumPy promises to keep (NEP 19).

    Salmon, Moraes, Dror and Shaw (2011), Parallel Random Numbers: As Easy as 1, 2, 3.
    """

    def __init__(self, seed: int, index: int) -> None:
        self._philox = Philox(key=np.array([seed, index], np.uint64))
        self._pool: list[int] = []

    def choose(self, options: Sequence[T]) -> T:
        if not self._pool:
            self._pool = self._philox.random_raw(256).tolist()
        return options[self._pool.pop() % len(options)]


class _Writer:
    """One story: what it remembers, and the expansion of templates."""

    def __init__(self, draws: _Draws) -> None:
        self._draws = draws
        self._known: dict[str, list[str]] = {}
        self._used: set[str] = set()

    def write(self) -> str:
        self._cast()
        plot = self._draws.choose(tuple(plots().values()))
        beats = [("*", ("{intro}",)), ("?", ("{fond}",)), *plot, ("?", ("{close}",))]
        parts: list[str] = []
        for kind, variants in beats:
            repeats = variants == ("{fond}",) and not self._known.keys().isdisjoint(("love", "trait"))
            # Four of five optional beats are kept: enough to surprise, and most stories reach the shortest length.
            if kind == "*" or (self._draws.choose("yyyyn") == "y" and not repeats):
                parts.append(self._expand(parse(self._draws.choose(variants))))
        return _polish(" ".join(parts))

    def _cast(self) -> None:
        words = tables()
        people = self._draws.choose((True, True, False))
        for name, prefix, kind in (("hero", "", "kind"), ("friend", "f", "fkind")):
            she = self._draws.choose((True, False))
            species = ("girl" if she else "boy") if people else self._pick(words["passer"])
            names = words["girl" if she else "boy"]
            self._remember(name, self._pick(names if people else self._draws.choose((names, words["pet"]))))
            self._remember(kind, species)
            self._remember_pronouns(prefix, "she" if she else "he")
        she = self._draws.choose((True, False))
        self._remember("elder", self._draws.choose(words["elder_she" if she else "elder_he"]))
        self._remember_pronouns("e", "she" if she else "he")
        self._remember("home", *self._forms("house" if people else "den"))

    def _remember(self, key: str, *forms: str) -> None:
        self._known[key] = list(forms)

    def _remember_pronouns(self, prefix: str, kind: str) -> None:
        for role, word in zip(PRONOUNS["he"], PRONOUNS[kind], strict=True):
            self._known[prefix + role] = [word]

    def _pick(self, options: tuple[str, ...]) -> str:
        while (option := self._draws.choose(options)) in self._used:
            pass
        self._used.add(option)
        return option

    def _expand(self, node: Node) -> str:
        match node:
            case Join(parts):
                return "".join([self._expand(part) for part in parts])
            case Choice(options):
                return self._expand(self._draws.choose(options))
            case Slot(key, remembered, form, capital):
                text = self._recall(key, form) if remembered else self._expand(parse(self._draws.choose(tables()[key])))
                return text[:1].upper() + text[1:] if capital else text
        return node

    def _forms(self, table: str) -> list[str]:
        return [form.strip() for form in self._expand(parse(self._pick(tables()[table]))).split("/")]

    def _recall(self, key: str, form: int) -> str:
        if key not in self._known:
            self._remember(key, *self._forms(key.rstrip("0123456789")))
        text = self._known[key][form]
        if "*" in text:
            # A star stands for the article: "a" when the place is first seen, "the" from then on.
            self._remember(key, text.replace("*", "the"))
            return text.replace("*", "a")
        return text


def _polish(text: str) -> str:
    """Capitals and articles, which templates need not care about."""
    text = _SMALL_START.sub(lambda match: match[1] + match[2].upper(), text.replace(" \n", "\n"))
    return _VOWEL_AFTER_A.sub(r"\1n ", text)
