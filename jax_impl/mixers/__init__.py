"""The mixers of the families, each in a file of its name. Twin: torch_impl. Truth: spec/mixers/__init__.py."""

from __future__ import annotations

from typing import Any

from spec.config import ModelConfig
from spec.mixers import backend_module
from spec.mixers.base import Capabilities


def mixer_module(of: ModelConfig | str) -> Any:
    """This backend's module of a family, of a configuration or by name.

    It has `Mixer(config, compute_dtype, method)`, called (x, state, masks, side) -> (y, state), the METHODS that it
    takes, `choose_method(config, batch_size, seq_len)` and `capabilities(config, method)`; and `Model`, where the
    family's language model is called in a way of its own. One whose blocks are of other families has no `Mixer`.

    Raises:
        ValueError: an unknown family, names those that are known; or one from outside that is wrong, says how.
    """
    return backend_module("jax_impl", of)


def capabilities(config: ModelConfig, method: str = "auto") -> Capabilities:
    """What this backend can do with a model's mixer beyond what every mixer must."""
    return mixer_module(config).capabilities(config, method)
