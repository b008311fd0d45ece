"""A deterministic generator of short children's stories, written wholly by this project.

The notation of the plots: a line that begins with `*` opens a beat of the story, `?` opens a beat that may be left out,
`-` is another way to tell the same beat, `/` after it starts a paragraph, and indented lines continue the line above.
Inside a sentence, `[a|b|c]` chooses one wording; `<key>` draws from a word table each time; `{key}` draws once and then
remembers, so that what is lost in the second sentence is found in the ninth; `{key2}` is another one from the same
table, `{key:1}` another form of it (forms are separated by `/`), and `{Key}` is capitalized. A `*` becomes "a" at the
first mention and "the" at every later one.
"""

import re
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.random import Philox

from tools.story_more_plots import MORE_PLOTS
from tools.story_plots import PLOTS
from tools.story_words import BOYS, CRITTER_NAMES, ELDERS_HE, ELDERS_SHE, GIRLS, SPECIES, TABLES

MIN_CHARACTERS, MAX_CHARACTERS = 400, 1200

_Node = str | tuple
_TOKEN = re.compile(r"[\[\]|]|\{\w+(?::\d)?\}|<\w+>|[^\[\]|{}<>]+")
_SLOT = re.compile(r"[{<](\w+?)(?::(\d))?[}>]")
_SMALL_START = re.compile(r"""([.!?](?: "?|" ")|\n"?)([a-z])""")
_VOWEL_AFTER_A = re.compile(r"( a|\bA) (?=[aeiou])")
_PRONOUNS = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}


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
        text = _Teller(draws).tell()
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            return text


class _Draws:
    """Choices from the raw stream of Philox, whose bits NumPy promises to keep."""

    def __init__(self, seed: int, index: int) -> None:
        self._philox = Philox(key=np.array([seed, index], np.uint64))
        self._pool: list[int] = []

    def choose(self, options):
        if not self._pool:
            self._pool = self._philox.random_raw(256).tolist()
        return options[self._pool.pop() % len(options)]


class _Teller:
    """One story: what it remembers, and the expansion of templates."""

    def __init__(self, draws: _Draws) -> None:
        self._choose = draws.choose
        self._known: dict[str, list[str]] = {}
        self._used: set[str] = set()

    def tell(self) -> str:
        self._cast()
        beats = [("*", ("{intro}",)), ("?", ("{fond}",)), *_plot(self._choose(_PLOT_NAMES)), ("?", ("{close}",))]
        parts: list[str] = []
        for kind, variants in beats:
            told_before = variants == ("{fond}",) and not self._known.keys().isdisjoint(("love", "trait"))
            # Four of five optional beats are told: enough to surprise, and most stories reach the shortest length.
            if kind == "*" or (self._choose("yyyyn") == "y" and not told_before):
                parts.append(self._expand(_parse(self._choose(variants))))
        return _polish(" ".join(parts))

    def _cast(self) -> None:
        people = self._choose((True, True, False))
        for name, prefix, kind in (("hero", "", "kind"), ("friend", "f", "fkind")):
            she = self._choose((True, False))
            species = ("girl" if she else "boy") if people else self._pick(SPECIES)
            names = GIRLS if she else BOYS
            self._remember(name, self._pick(names if people else self._choose((names, CRITTER_NAMES))))
            self._remember(kind, species)
            self._remember_pronouns(prefix, "she" if she else "he")
        she = self._choose((True, False))
        self._remember("elder", self._choose(ELDERS_SHE if she else ELDERS_HE))
        self._remember_pronouns("e", "she" if she else "he")
        self._remember("home", *self._forms("house" if people else "den"))

    def _remember(self, key: str, *forms: str) -> None:
        self._known[key] = list(forms)

    def _remember_pronouns(self, prefix: str, kind: str) -> None:
        for role, word in zip(_PRONOUNS["he"], _PRONOUNS[kind], strict=True):
            self._known[prefix + role] = [word]

    def _pick(self, options: tuple[str, ...]) -> str:
        while (option := self._choose(options)) in self._used:
            pass
        self._used.add(option)
        return option

    def _expand(self, node: _Node) -> str:
        if isinstance(node, str):
            return node
        tag, *rest = node
        if tag == "sequence":
            return "".join([part if isinstance(part, str) else self._expand(part) for part in rest])
        if tag == "choice":
            return self._expand(self._choose(rest))
        key, form, capital = rest
        text = self._fresh(key) if tag == "fresh" else self._entity(key, form)
        return text[:1].upper() + text[1:] if capital else text

    def _fresh(self, key: str) -> str:
        return self._expand(_parse(self._choose(TABLES[key])))

    def _forms(self, table: str) -> list[str]:
        return [form.strip() for form in self._expand(_parse(self._pick(TABLES[table]))).split("/")]

    def _entity(self, key: str, form: int) -> str:
        if key not in self._known:
            self._remember(key, *self._forms(key.rstrip("0123456789")))
        text = self._known[key][form]
        if "*" in text:
            # A star stands for the article: "a" when the place is first seen, "the" from then on.
            self._remember(key, text.replace("*", "the"))
            return text.replace("*", "a")
        return text


_ALL_PLOTS = {**PLOTS, **MORE_PLOTS}
_PLOT_NAMES = tuple(_ALL_PLOTS)


@cache
def _plot(name: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The beats of a plot: whether each must be told, and its variants."""
    beats: list[tuple[str, list[str]]] = []
    for line in _ALL_PLOTS[name].strip().split("\n"):
        mark, text = line[0], line[2:].replace("/ ", "\n", 1) if line[2:4] == "/ " else line[2:]
        if mark == " ":
            variants = beats[-1][1]
            variants[-1] += line.strip() if variants[-1].endswith("|") else " " + line.strip()
        elif mark == "-":
            beats[-1][1].append(text)
        else:
            assert mark in "*?", f"plot {name}: {line!r}"
            beats.append((mark, [text]))
    return tuple((mark, tuple(variants)) for mark, variants in beats)


@cache
def _parse(template: str) -> _Node:
    """The tree of a template: text, choices, fresh draws and remembered entities."""
    tokens = _TOKEN.findall(template)
    assert "".join(tokens) == template, template
    node, end = _parse_sequence(tokens, 0, nested=False)
    assert end == len(tokens), template
    return node


def _parse_sequence(tokens: list[str], start: int, nested: bool) -> tuple[_Node, int]:
    options: list[_Node] = []
    parts: list[_Node] = []
    position = start
    while position < len(tokens) and tokens[position] != "]":
        token = tokens[position]
        if token == "[":
            part, position = _parse_sequence(tokens, position + 1, nested=True)
            parts.append(part)
        elif token == "|":
            assert nested, tokens
            options.append(_sequence(parts))
            parts = []
        else:
            parts.append(_slot(token) if token[0] in "{<" else token)
        position += 1
    options.append(_sequence(parts))
    return (("choice", *options) if nested else options[0]), position


def _sequence(parts: list[_Node]) -> _Node:
    if len(parts) == 1:
        return parts[0]
    return ("sequence", *parts) if parts else ""


def _slot(token: str) -> _Node:
    match = _SLOT.fullmatch(token)
    assert match, token
    key = match[1]
    return ("fresh" if token[0] == "<" else "entity", key.lower(), int(match[2] or 0), key[0].isupper())


def _polish(text: str) -> str:
    """Capitals and articles, which templates need not care about."""
    text = _SMALL_START.sub(lambda match: match[1] + match[2].upper(), text.replace(" \n", "\n"))
    return _VOWEL_AFTER_A.sub(r"\1n ", text)
