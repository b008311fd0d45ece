"""What stories are made of: the word tables and plots in stories_data, read and checked with the first story.

The notation of the plots: a line that begins with `*` opens a beat of the story, `?` opens a beat that may be left out,
`-` is another wording of the same beat, `/` after it starts a paragraph, and indented lines continue the line above.
Inside a sentence, `[a|b|c]` chooses one wording; `<key>` draws from a word table each time; `{key}` draws once and then
remembers, so that what is lost in the second sentence is found in the ninth; `{key2}` is another one from the same
table, `{key:1}` another form of it (forms are separated by `/`), and `{Key}` is capitalized. A `*` becomes "a" at the
first mention and "the" at every later one.

Of the people in a story, `{hero}` and `{friend}` are names, `{kind}` and `{fkind}` say what they are, `{elder}` is the
hero's, and `{home}` is where they live. `{he}`, `{him}`, `{his}` and `{himself}` are the hero's pronouns; an f before
them makes them the friend's (`{fhe}`), an e the elder's.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from string import Template
from typing import NamedTuple, TypeAlias, TypeVar

#: The templates of each word table.
Tables = dict[str, tuple[str, ...]]
#: The beats of a plot: `*` if it must be there or `?` if not, and its wordings.
Beats = tuple[tuple[str, tuple[str, ...]], ...]
Plots = dict[str, Beats]
T = TypeVar("T")


class Join(NamedTuple):
    """Parts of a template, one after the other."""

    parts: tuple[Node, ...]


class Choice(NamedTuple):
    """Wordings, one of which is drawn."""

    options: tuple[Node, ...]


class Slot(NamedTuple):
    """A place for words: drawn each time from a word table, or remembered once drawn."""

    key: str
    remembered: bool
    form: int
    capital: bool


#: The tree of a template.
Node: TypeAlias = str | Join | Choice | Slot

PRONOUNS = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}

_DATA = Path(__file__).with_name("stories_data")
_TOKEN = re.compile(r"[\[\]|]|\{\w+(?::\d)?\}|<\w+>|[^\[\]|{}<>]+")
_SLOT = re.compile(r"[{<](\w+?)(?::(\d))?[}>]")
_PEOPLE = {"hero", "kind", "friend", "fkind", "elder", "home"}
_PEOPLE |= {prefix + role for prefix in ("", "f", "e") for role in PRONOUNS["he"]}
#: The tables that every story draws on, whatever the plot.
_NEEDED = {"girl", "boy", "passer", "pet", "elder_she", "elder_he", "house", "den", "intro", "fond", "close"}


@cache
def tables() -> Tables:
    """The word tables, read once."""
    return _read("tables.toml", read_tables)


@cache
def plots() -> Plots:
    """The plots, read once, in the order that their choice depends on."""
    return _read("plots.toml", lambda text: read_plots(text, tables()))


def _read(name: str, reader: Callable[[str], T]) -> T:
    try:
        return reader((_DATA / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{_DATA / name}: {error}") from error


def read_tables(text: str) -> Tables:
    """The word tables in the text of tables.toml, whose head says how they are written.

    Raises:
        ValueError: if it is not TOML, or a table is missing, empty or of a wrong type, draws on what there is not, or
            has templates with different numbers of forms.
    """
    found: Tables = {}
    for key, items in tomllib.loads(text).items():
        if not isinstance(items, list) or not items:
            raise ValueError(f"table {key}: {items!r} is not an array of templates")
        found[key] = tuple(template for item in items for template in _templates(key, item))
    if missing := _NEEDED - set(found):
        raise ValueError(f"no tables {sorted(missing)}")
    for key, templates in found.items():
        if len({template.count("/") for template in templates}) != 1:
            raise ValueError(f"table {key}: its templates have different numbers of forms")
        for template in templates:
            _check(template, found)
    return found


def _templates(key: str, item: object) -> Iterator[str]:
    if isinstance(item, str):
        item = {"template": item}
    match item:
        case {"template": str(text), **words} if all(map(_are_words, words.values())):
            template = Template(text)
            slots = template.get_identifiers()
            if not template.is_valid() or set(slots) != set(words):
                raise ValueError(f"table {key}: the slots of {text!r} are not the words given, {sorted(words)}")
            for chosen in product(*(words[slot] for slot in slots)):
                yield template.substitute(dict(zip(slots, chosen, strict=True)))
        case _:
            raise ValueError(f"table {key}: {item!r} is neither a template nor one with words for its slots")


def _are_words(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(word, str) for word in value)


def read_plots(text: str, words: Tables) -> Plots:
    """The plots in the text of plots.toml, by name.

    Raises:
        ValueError: if it is not TOML, has anything but plots, a plot has no name or beats, a line begins with no mark,
            or a sentence draws on what the tables of words do not have.
    """
    found: Plots = {}
    data = tomllib.loads(text)
    if set(data) != {"plot"} or not isinstance(data["plot"], list):
        raise ValueError(f"it has {sorted(data)}, not [[plot]] alone")
    for plot in data["plot"]:
        match plot:
            case {"name": str(name), "beats": str(lines), **rest} if not rest and name not in found:
                found[name] = _beats(name, lines.strip().split("\n"))
            case _:
                raise ValueError(f"{plot!r} is not a new name and its beats")
        for _, variants in found[name]:
            for template in variants:
                _check(template, words)
    return found


def _beats(name: str, lines: list[str]) -> Beats:
    beats: list[tuple[str, list[str]]] = []
    for line in lines:
        mark, text = line[:1], line[2:].replace("/ ", "\n", 1) if line[2:4] == "/ " else line[2:]
        if not text or line[1] != " " or mark not in ("*?" if not beats else "*?- "):
            raise ValueError(f"plot {name}: {line!r} has no mark, or nothing after it")
        if mark == " ":
            variants = beats[-1][1]
            variants[-1] += line.strip() if variants[-1].endswith("|") else " " + line.strip()
        elif mark == "-":
            beats[-1][1].append(text)
        else:
            beats.append((mark, [text]))
    return tuple((mark, tuple(variants)) for mark, variants in beats)


def _check(template: str, words: Tables) -> None:
    """Refuse a template that could not be expanded whenever it is drawn."""
    nodes = [parse(template)]
    while nodes:
        node = nodes.pop()
        match node:
            case Join(children) | Choice(children):
                nodes += children
            case Slot(key, remembered, form, _):
                table = key.rstrip("0123456789") if remembered else key
                forms = words[table][0].count("/") + 1 if table in words else int(remembered and key in _PEOPLE)
                if form >= forms:
                    raise ValueError(f"{template!r}: there is no form {form} of {key!r}")


@cache
def parse(template: str) -> Node:
    """The tree of a template.

    Raises:
        ValueError: a bracket is not closed, or not opened.
    """
    tokens = _TOKEN.findall(template)
    node, end = _parse_sequence(tokens, 0, nested=False)
    if "".join(tokens) != template or end != len(tokens):
        raise ValueError(f"{template!r}: a bracket is not closed, or not opened")
    return node


def _parse_sequence(tokens: list[str], start: int, nested: bool) -> tuple[Node, int]:
    options: list[Node] = []
    parts: list[Node] = []
    position = start
    while position < len(tokens) and tokens[position] != "]":
        token = tokens[position]
        if token == "[":
            part, position = _parse_sequence(tokens, position + 1, nested=True)
            parts.append(part)
        elif token == "|":
            if not nested:
                raise ValueError(f"{''.join(tokens)!r}: | outside of [ ]")
            options.append(_join(parts))
            parts = []
        else:
            parts.append(_slot(token) if token[0] in "{<" else token)
        position += 1
    options.append(_join(parts))
    return (Choice(tuple(options)) if nested else options[0]), position


def _join(parts: list[Node]) -> Node:
    if len(parts) == 1:
        return parts[0]
    return Join(tuple(parts)) if parts else ""


def _slot(token: str) -> Node:
    match = _SLOT.fullmatch(token)
    assert match, token
    key = match[1]
    return Slot(key.lower(), token[0] == "{", int(match[2] or 0), key[0].isupper())
