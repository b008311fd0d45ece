"""Hybrids: each block has a mixer of a family of its own, in a pattern that repeats.

    block i has a mixer of the family layers[i mod p], p = len(layers)

The model's states are [l, b, n], n the largest state of its blocks: block i reads and writes its first n_i numbers, the
rest stays zero (spec/reference/model.py). Source of such patterns: De et al. 2024, "Griffin", section 2.3, and Lieber
et al. 2024, "Jamba", which put recurrences between layers of attention; here each layer is a recurrence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from spec.config import SHARED_FIELDS, ModelConfig, TrainingConfig
from spec.mixers import families, family
from spec.mixers.base import Arrays, Masks, Mixed, MixerFamily, Parameter, Preset, Side, SideInput
from spec.validation import nearest


@dataclass(frozen=True)
class HybridConfig(ModelConfig):
    """Shape of a hybrid.

    Args:
        vocab_size, d_model, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig, the same in each block.
        layers: the families of the first blocks, by name; the following ones begin again with the first.
        mixers: what their mixers have besides, a FAMILY.FIELD=VALUE each, rg_lru.d_rnn=128 say; what is not named is
            as in that family's own configuration.

    Raises:
        ValueError: a value out of range, named; no layers; an unknown family, or one that is made of others.
    """

    vocab_size: int = 50257
    d_model: int = 384
    d_ff: int = 1024
    n_layers: int = 6
    max_seq_len: int = 512
    layers: tuple[str, ...] = ("liquidnet", "liquidnet", "rg_lru")
    mixers: tuple[str, ...] = ()
    norm_eps: float = 1e-6

    family: ClassVar[str] = "hybrid"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "mixers"):
            # From JSON they come as lists.
            object.__setattr__(self, name, _words(name, getattr(self, name)))
        if not self.layers:
            raise ValueError(f"layers is empty; name a family for each block of the pattern, of {', '.join(_known())}")
        _ = self.members

    @cached_property
    def members(self) -> dict[str, tuple[MixerFamily[Any], ModelConfig]]:
        """Each family of a block, by its name, with the configuration that its blocks have."""
        owners = [_member(name) for name in dict.fromkeys(self.layers)]
        given = _values(self.mixers, self.layers)
        shared = {name: getattr(self, name) for name in SHARED_FIELDS}
        return {own.name: (own, _configuration(own, shared, given.get(own.name, {}))) for own in owners}


def _words(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{name} must be a list of words, got {value!r}")
    return tuple(value)


def _known() -> list[str]:
    """What a hybrid can be made of."""
    return [name for name in families() if name != HybridConfig.family]


def _values(mixers: Iterable[str], layers: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What `mixers` says, by family and field."""
    found: dict[str, dict[str, Any]] = {}
    for word in mixers:
        path, equals, text = word.partition("=")
        name, dot, key = path.partition(".")
        if not (equals and name and dot and key and text):
            raise ValueError(f"mixers takes words like rg_lru.d_rnn=128, FAMILY.FIELD=VALUE, got {word!r}")
        if name not in layers:
            near = nearest(name, layers)
            raise ValueError(f"mixers has {word}, and no layer is {name}{near}; give mixers without it")
        if key in found.setdefault(name, {}):
            raise ValueError(f"mixers gives {path} twice; leave one of them out")
        try:
            found[name][key] = json.loads(text)
        except (ValueError, RecursionError):
            found[name][key] = text
    return found


def _member(name: str) -> MixerFamily[Any]:
    """A family that blocks can have; ValueError, naming those that there are, for another."""
    if name == HybridConfig.family:
        raise ValueError(f"a hybrid is made of other families, not of hybrids; choose of {', '.join(_known())}")
    return family(name)


def _configuration(own: MixerFamily[Any], shared: dict[str, Any], values: dict[str, Any]) -> ModelConfig:
    """The configuration of one family's blocks; ValueError where a hybrid cannot have it."""
    known = [entry.name for entry in fields(own.Config) if entry.name not in SHARED_FIELDS]
    for key in values:
        if key not in known:
            near = nearest(key, known)
            raise ValueError(f"the mixer of {own.article} {own.title} has no field {key!r} of its own{near}")
    config = own.Config(**shared, **values)
    inputs = own.training_side_inputs(config, 0, 0, 1)
    if inputs:
        told = f"with these values {own.article} {own.title} reads {', '.join(inputs)} in training"
        raise ValueError(f"{told}, an array a layer, which a hybrid has not; leave out of mixers what asks for it")
    return config


PRESETS = {
    "hybrid-nano": Preset(
        HybridConfig(d_model=128, d_ff=344, n_layers=4, max_seq_len=64, mixers=("rg_lru.d_rnn=128",)),
        TrainingConfig(steps=2000, batch_size=12, seq_len=64, peak_lr=3e-3, warmup_steps=100),
    )
}


NO_MIXER = "a hybrid has no mixer of its own; ask the family that of_block gives"


class HybridFamily(MixerFamily[HybridConfig]):
    """Blocks of other families: what concerns a mixer is asked of the block's own, by `of_block`."""

    name, title, operation, place = "hybrid", "hybrid", "hybrid", 200
    Config, presets = HybridConfig, PRESETS
    activations, recurrence = (), ""
    shape_fields = ("layers", "mixers")

    def of_block(self, config: HybridConfig, block: int) -> tuple[MixerFamily[Any], ModelConfig]:
        return config.members[config.layers[block % len(config.layers)]]

    def _of_blocks(self, config: HybridConfig) -> list[tuple[MixerFamily[Any], ModelConfig]]:
        """The families of the pattern's blocks, as far as the model has them."""
        return [self.of_block(config, i) for i in range(min(config.n_layers, len(config.layers)))]

    def parameters(self, config: HybridConfig) -> tuple[Parameter, ...]:
        return self.layer_parameters(config, 0)

    def layer_parameters(self, config: HybridConfig, layer: int) -> tuple[Parameter, ...]:
        own, own_config = self.of_block(config, layer)
        return own.layer_parameters(own_config, layer)

    def state_size(self, config: HybridConfig) -> int:
        """The largest state of a block."""
        return max(own.state_size(own_config) for own, own_config in self._of_blocks(config))

    def small_config(self) -> HybridConfig:
        """Two blocks of two families, the second with the larger state."""
        return replace(super().small_config(), layers=("liquidnet", "rg_lru"), mixers=("rg_lru.d_rnn=6",))

    def side_inputs(self, config: HybridConfig) -> tuple[SideInput, ...]:
        """What any block reads besides, where it is the same for all: nothing with an axis of layers or of a state."""
        every = [one for own, own_config in self._of_blocks(config) for one in own.side_inputs(own_config)]
        return tuple(dict.fromkeys(one for one in every if not {"l", "n"} & {*one.axes}))

    def of_layer(self, config: HybridConfig, side: Side, layer: int) -> dict[str, Any]:
        if not side:
            return {}
        own, own_config = self.of_block(config, layer)
        return {one.name: side[one.name] for one in own.side_inputs(own_config) if one.name in side}

    def forward(
        self,
        z_btd: np.ndarray,
        weights: Arrays,
        config: HybridConfig,
        state_bn: np.ndarray | None,
        masks: Masks,
        side: Side,
    ) -> Mixed:
        raise NotImplementedError(NO_MIXER)

    def adjoint(
        self, saved: Any, grad_y_btd: np.ndarray, grad_last_bn: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        raise NotImplementedError(NO_MIXER)

    def each_alone(
        self, z_btd: np.ndarray, weights: Arrays, config: HybridConfig, given: Arrays
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        raise NotImplementedError(NO_MIXER)


FAMILY = HybridFamily()
