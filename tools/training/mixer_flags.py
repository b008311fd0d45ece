"""Flags of `liquidnet train` for the mixers' own fields, made of the families' configurations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from spec.config import SHARED_FIELDS, ModelConfig
from spec.mixers import families
from spec.mixers.base import MixerFamily
from tools.cli.docstrings import docstring

RESERVED_FLAGS = ("help", "peak_lr")
"""Flags of the command that no field of it is named after."""

_PLAIN = (int, float, bool, str, NoneType, ...)
_ENTRY = re.compile(r"^ {4}([a-z]\w*(?:, \w+)*): (.*(?:\n {5,}\S.*)*)", re.MULTILINE)

T = TypeVar("T")


class MixerFlag(NamedTuple):
    """A flag for a field that one or more families have.

    Args:
        field: its name in their configurations.
        flag: as it is typed.
        owners: the families.
        hint: the type of a value; of any of the owners'.
        help: what it is, by the owners' docstrings.
    """

    field: str
    flag: str
    owners: tuple[MixerFamily[Any], ...]
    hint: Any
    help: str


def mixer_flags(of: Mapping[str, MixerFamily[Any]], taken: Iterable[str]) -> dict[str, MixerFlag]:
    """A flag for each field of the families' configurations that is not a shared one, by the command's field for it.

    It is spelt as the field, `--d-state`, unless the command has such a flag itself: then `--mixer.d-state`. A field of
    a type that no command line holds, an object of some class say, has none.

    Args:
        of: families by name.
        taken: fields and methods of the command itself.
    """
    taken = {*taken, *RESERVED_FLAGS}
    owners: dict[str, dict[MixerFamily[Any], Any]] = {}
    for one in of.values():
        hints = _hints(one.Config)
        for entry in fields(one.Config):
            if entry.name not in SHARED_FIELDS and _is_flag(hints.get(entry.name, object)):
                owners.setdefault(entry.name, {})[one] = hints[entry.name]
    found = {}
    for name, by_owner in owners.items():
        told = {one.title: arguments(one.Config).get(name, "of its configuration.") for one in by_owner}
        text = " ".join(f"{title}: {said}" for title, said in told.items())
        prefix = "mixer." if name in taken else ""
        flag = f"--{prefix}{name.replace('_', '-')}"
        hint = Union[tuple(by_owner.values())]  # noqa: UP007  its members are known only now
        key = prefix.replace(".", "_") + name
        while prefix and (key in owners or key in taken):
            key += "_"
        found[key] = MixerFlag(name, flag, tuple(by_owner), hint, text)
    return found


def with_mixer_flags(command: type[T]) -> type[T]:
    """A class decorator, below @dataclass: the flags of the installed families as fields, None where not given."""
    for name, one in mixer_flags(families(), {**vars(command), **command.__annotations__}).items():
        spelling: dict[str, Any] = {"name": one.flag.removeprefix("--")} if one.flag.startswith("--mixer.") else {}
        command.__annotations__[name] = Annotated[one.hint | None, tyro.conf.arg(help=one.help, **spelling)]
        setattr(command, name, field(default=None, metadata={"mixer": one}))
    return command


def mixer_sizes(command: Any, model: ModelConfig) -> dict[str, Any]:
    """The fields that the flags of a command, made by `with_mixer_flags`, give to a model.

    Raises:
        ValueError: a flag that the model's family has not; names the families that have it, and a preset of each.
    """
    found, known = {}, {one.name for one in fields(model)}
    for entry in fields(command):
        flag: MixerFlag | None = entry.metadata.get("mixer")
        value = getattr(command, entry.name)
        if flag is None or value is None:
            continue
        if flag.field not in known:
            whose = " or ".join(f"{one.article} {one.title}'s" for one in flag.owners)
            presets = " or ".join(next(iter(one.presets)) for one in flag.owners)
            raise ValueError(f"{flag.flag} is {whose}; leave it out, or choose --preset {presets}")
        found[flag.field] = value
    return found


def arguments(config: type) -> dict[str, str]:
    """What the section Args of a docstring says of each argument, as a sentence, in one line."""
    section = docstring(config).partition("\nArgs:\n")[2].partition("\n\n")[0]
    told = {}
    for names, text in _ENTRY.findall(section):
        sentence = " ".join(text.split()).rstrip(".") + "."
        told |= dict.fromkeys(names.split(", "), sentence)
    return told


def _hints(config: type) -> dict[str, Any]:
    """Types of the fields by name; none where an annotation names what is not there when the program runs."""
    try:
        return get_type_hints(config)
    except (NameError, TypeError):
        return {}


def _is_flag(hint: Any) -> bool:
    """Whether values of this type can be typed: a word, a number, a choice, several of them."""
    if get_origin(hint) is Literal:
        return True
    if get_origin(hint) in (tuple, Union, UnionType):
        return all(_is_flag(part) for part in get_args(hint))
    return hint in _PLAIN
