"""The registry of mixer families: each is a module of this package, found by its name, which nothing else lists."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from spec.config import ModelConfig, known_fields
from spec.mixers.base import MixerFamily
from spec.validation import nearest


@cache
def families() -> dict[str, MixerFamily[Any]]:
    """Every family by name, in the order of their `place`."""
    modules = [found.name for found in pkgutil.iter_modules(__path__) if found.name != "base"]
    found = [importlib.import_module(f"{__name__}.{name}").FAMILY for name in modules]
    return {one.name: one for one in sorted(found, key=lambda one: (one.place, one.name))}


def family(of: ModelConfig | str) -> MixerFamily[Any]:
    """The family of a configuration, or of a name.

    Raises:
        ValueError: no family has this name; names those that are known.
    """
    name = of if isinstance(of, str) else of.family
    if name not in families():
        raise _unknown(name)
    return families()[name]


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


def _unknown(name: Any) -> ValueError:
    known = ", ".join(families())
    return ValueError(f"unknown model family {name!r}; this version knows {known}{nearest(name, families())}")
