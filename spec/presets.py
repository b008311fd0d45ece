"""Named sizes, and the recipe each is trained with by default: those of every family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TypeVar

from spec.config import ModelConfig, TrainingConfig
from spec.mixers import families, registry
from spec.validation import require_known

V = TypeVar("V")


class PresetMapping(Mapping[str, V]):
    """One thing of every preset by its name, in the order of the families.

    They are looked up when they are asked for: a family from outside imports this package before it is one.

    Args:
        what: `config` or `training` of spec.mixers.base.Preset.
    """

    def __init__(self, what: str):
        self._of = attrgetter(what)

    def __getitem__(self, name: str) -> V:
        for one in families().values():
            if name in one.presets:
                return self._of(one.presets[name])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for one in families().values() for name in one.presets)

    def __len__(self) -> int:
        return sum(len(one.presets) for one in families().values())


PRESETS: Mapping[str, ModelConfig] = PresetMapping("config")
RECIPES: Mapping[str, TrainingConfig] = PresetMapping("training")


def preset(name: str) -> ModelConfig:
    """The configuration of a preset; raises ValueError with the nearest name for an unknown one."""
    try:
        require_known("preset", name, PRESETS)
    except ValueError as error:
        # It may be one of theirs.
        told = [f"the installed model family {key!r} cannot be used: {why}" for key, why in registry().broken.items()]
        raise ValueError("; ".join([str(error), *told])) from None
    return PRESETS[name]
