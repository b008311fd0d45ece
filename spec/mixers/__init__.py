"""The registry of mixer families: modules of this package, and installed packages that offer one, found by their names.

A package from outside has an entry point in the group `liquidnet.mixers`, in its pyproject.toml

    [project.entry-points."liquidnet.mixers"]
    my_mixer = "my_mixer"

whose name is the family's and whose value is a package with the modules `spec` (with `FAMILY`), `torch_impl` and
`jax_impl` (each with `Mixer`, METHODS, `choose_method` and `capabilities`), like the files of one family here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, NamedTuple

from spec.config import ModelConfig, TrainingConfig, known_fields
from spec.mixers.base import MixerFamily, Preset
from spec.validation import nearest

GROUP = "liquidnet.mixers"
SHARED_MODULES = ("base", "linear_recurrence")
"""Modules of this package that are shared by families."""
RESERVED_NAMES = (*SHARED_MODULES, "decode", "layers", "loss", "mixer", "mixers", "models", "rowwise", "scan")
"""Names under which methods and proofs of something else stand; no family has one of them."""
FAMILY_ATTRIBUTES = ("name", "title", "operation", "Config", "presets", "activations", "recurrence")
BACKEND_ATTRIBUTES = ("Mixer", "METHODS", "choose_method", "capabilities")
"""What a backend's module of a family has; see `backend_attributes`."""


class Registry(NamedTuple):
    """What was found.

    Args:
        families: by name, in the order of their `place`, those of this package first.
        packages: of the families from outside, the package that each is in.
        broken: families from outside that cannot be used, and why, in one line.
    """

    families: dict[str, MixerFamily[Any]]
    packages: dict[str, str]
    broken: dict[str, str]


@cache
def registry() -> Registry:
    """Every family that is installed; one from outside that is wrong takes nothing else with it."""
    own = [_own(name) for name in _own_names()]
    found = {one.name: one for one in sorted(own, key=lambda one: (one.place, one.name))}
    packages: dict[str, str] = {}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found[point.name] = _from_outside(point, found)
            packages[point.name] = point.value
        # Whatever a stranger's module raises on import, sys.exit too: it must not stop anybody else.
        except (Exception, SystemExit) as error:
            broken[point.name] = error_line(error)
    return Registry(found, packages, broken)


@cache
def _own_names() -> tuple[str, ...]:
    return tuple(found.name for found in pkgutil.iter_modules(__path__) if found.name not in SHARED_MODULES)


def _own(name: str) -> MixerFamily[Any]:
    return importlib.import_module(f"{__name__}.{name}").FAMILY


def families() -> dict[str, MixerFamily[Any]]:
    """Every family by name, those of this project first."""
    return registry().families


def family(of: ModelConfig | str) -> MixerFamily[Any]:
    """The family of a configuration, or of a name.

    Raises:
        ValueError: no family has this name; names those that are known, or says what is wrong with it.
    """
    name = of if isinstance(of, str) else of.family
    # One of this package needs no other: presets of one that is made of others ask for them while all are gathered.
    if name in _own_names():
        return _own(name)
    if name not in families():
        raise _unknown(name)
    return families()[name]


def module_name(backend: str, of: ModelConfig | str) -> str:
    """Where a backend, `torch_impl` or `jax_impl`, has the mixer of a family, of a configuration or by name.

    Raises:
        ValueError: an unknown family; names those that are known.
    """
    name = family(of).name
    package = registry().packages.get(name)
    return f"{backend}.mixers.{name}" if package is None else f"{package}.{backend}"


def backend_module(backend: str, of: ModelConfig | str) -> ModuleType:
    """A backend's module of a family, of a configuration or by name, imported.

    Raises:
        ValueError: an unknown family; or one from outside whose module cannot be imported or lacks one of
            BACKEND_ATTRIBUTES.
    """
    name = module_name(backend, of)
    if family(of).name not in registry().packages:
        return importlib.import_module(name)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # as in `registry`
        raise ValueError(
            f"{name} cannot be imported: {error_line(error)}; mend it, or uninstall its package"
        ) from error
    asked = backend_attributes(family(of))
    if lacks := [one for one in asked if not hasattr(module, one)]:
        raise ValueError(f"{name} lacks {', '.join(lacks)}; a backend's module of a family has {', '.join(asked)}")
    return module


def backend_attributes(one: MixerFamily[Any]) -> tuple[str, ...]:
    """What a backend's module of a family has; what is made of others has its blocks' mixers from them."""
    whole = one.small_config()
    own = one.of_block(whole, 0)[0] is one
    return BACKEND_ATTRIBUTES if own else tuple(name for name in BACKEND_ATTRIBUTES if name != "Mixer")


def unusable(backend: str) -> dict[str, str]:
    """Families from outside whose module of a backend cannot be used, and why, in one line."""
    found: dict[str, str] = {}
    for name in registry().packages:
        try:
            backend_module(backend, name)
        except ValueError as error:
            found[name] = str(error)
    return found


def error_line(error: BaseException) -> str:
    """The first line of an error, with its kind where it is none that was written for people."""
    line = str(error).splitlines()[0] if str(error) else ""
    return line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}"


def state_shape(config: ModelConfig, batch_size: int) -> tuple[int, int, int]:
    """Shape of a model's states, [l, b, n]."""
    return config.n_layers, batch_size, family(config).state_size(config)


def config_from_json(value: Any) -> ModelConfig:
    """The inverse of `spec.config.config_to_json`; raises ValueError naming an unknown family, field or value."""
    name = value.get("family") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(name, str) or name not in families():
        raise _unknown(name)
    config = family(name).Config
    return config(**known_fields(config, value, ignore=("family",)))


def _from_outside(point: EntryPoint, known: dict[str, MixerFamily[Any]]) -> MixerFamily[Any]:
    """The family of an entry point; ValueError in one line where it is none, or takes a name that is taken."""
    if point.name in known or point.name in RESERVED_NAMES:
        raise ValueError(f"the name {point.name} is taken; rename the entry point and its family")
    one = importlib.import_module(f"{point.value}.spec").FAMILY
    where = f"{point.value}.spec.FAMILY"
    if isinstance(one, type) or not isinstance(one, MixerFamily):
        raise ValueError(f"{where} is {one!r}, and must be an instance of a class below spec.mixers.base.MixerFamily")
    lacks = [name for name in FAMILY_ATTRIBUTES if not hasattr(one, name)]
    if lacks:
        raise ValueError(f"{type(one).__name__} of {where} lacks {', '.join(lacks)}; add what MixerFamily asks for")
    if not point.name == one.name == one.Config.family:
        names = f"{point.name!r}, {one.name!r} and {one.Config.family!r}"
        raise ValueError(f"the entry point, FAMILY.name and Config.family of {point.value} must agree, got {names}")
    if one.operation != one.name:
        raise ValueError(f"FAMILY.operation of {point.value} must be {one.name!r}, got {one.operation!r}")
    _require_presets(one.presets, one.Config, where)
    owners = {preset: other.name for other in known.values() for preset in other.presets}
    taken = [preset for preset in one.presets if preset in owners]
    if taken or not one.presets:
        what = f"preset {taken[0]} is already {owners[taken[0]]}'s" if taken else "there is no preset"
        raise ValueError(f"{what}; give {point.name} presets of its own, such as {point.name}-nano")
    try:
        small = one.small_config()  # what the proof begins with
    except Exception as error:  # it is a stranger's code: whatever it raises, its family alone is refused
        raise ValueError(
            f"small_config of {where} fails: {error_line(error)}; override it with widths that fit"
        ) from error
    if not isinstance(small, one.Config):
        raise ValueError(f"small_config of {where} gives {small!r}; give a {one.Config.__name__}")
    return one


def _require_presets(presets: Any, config: type[ModelConfig], where: str) -> None:
    """ValueError in one line where presets are not what their names are looked up in."""
    if not isinstance(presets, Mapping):
        raise ValueError(f"presets of {where} is a {type(presets).__name__}; give a dict of a Preset by its name")
    for name, one in presets.items():
        if not (isinstance(one, Preset) and isinstance(one[0], config) and isinstance(one[1], TrainingConfig)):
            asked = f"Preset({config.__name__}(...), TrainingConfig(...))"
            raise ValueError(f"preset {name} of {where} is {one!r}; give {asked}")


def _unknown(name: Any) -> ValueError:
    if isinstance(name, str) and name in registry().broken:
        return ValueError(f"the installed model family {name!r} cannot be used: {registry().broken[name]}")
    known = ", ".join(families())
    return ValueError(f"unknown model family {name!r}; this version knows {known}{nearest(name, families())}")
