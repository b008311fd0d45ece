"""Hybrids: what their blocks' mixers can all do. Twin: jax_impl. Truth: spec/mixers/hybrid.py."""

from __future__ import annotations

from spec.config import ModelConfig
from spec.mixers import family
from spec.mixers.base import Capabilities
from spec.mixers.hybrid import HybridConfig
from torch_impl.mixers import mixer_module
from torch_impl.mixers.linear_recurrence import METHODS

__all__ = ["METHODS", "capabilities", "choose_method"]


def choose_method(config: HybridConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default; `auto` where it is not one for all blocks."""
    found = {mixer_module(own).choose_method(own, batch_size, seq_len) for own in _of_blocks(config)}
    return found.pop() if len(found) == 1 else "auto"


def capabilities(config: HybridConfig, method: str = "auto") -> Capabilities:
    """What this backend can do with every block's mixer; a token of the whole model in one call is not among it."""
    every = [mixer_module(own).capabilities(own, method) for own in _of_blocks(config)]
    return Capabilities(*(all(able) for able in zip(*every, strict=True)))._replace(fused_decode=False)


def _of_blocks(config: HybridConfig) -> list[ModelConfig]:
    return [family(config).of_block(config, i)[1] for i in range(config.n_layers)]
