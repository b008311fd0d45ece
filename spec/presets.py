"""Named sizes, and the recipe each is trained with by default: those of every family."""

from __future__ import annotations

from spec.config import ModelConfig, TrainingConfig
from spec.mixers import families
from spec.validation import require_known

_EVERY = {name: one for family in families().values() for name, one in family.presets.items()}
PRESETS: dict[str, ModelConfig] = {name: one.config for name, one in _EVERY.items()}
RECIPES: dict[str, TrainingConfig] = {name: one.training for name, one in _EVERY.items()}


def preset(name: str) -> ModelConfig:
    """The configuration of a preset; raises ValueError with the nearest name for an unknown one."""
    require_known("preset", name, PRESETS)
    return PRESETS[name]
