"""What each module of a model gives. Twin: activations_jax.py. Truth: spec/reference/model.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.proof.layer_diff.activations import in_order, keep
from spec.config import ModelConfig
from torch_impl.checkpoint.native import load_parameters, to_numpy
from torch_impl.model import LanguageModel, build


def load(config: ModelConfig, parameters: Mapping[str, np.ndarray]) -> LanguageModel:
    """A model of these parameters in float32, on the device that this backend trains on."""
    model = build(config).to("cuda" if torch.cuda.is_available() else "cpu")
    load_parameters(model, parameters)
    return model


def activations(model: LanguageModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What each module of a model gives in its own forward pass, as `spec.reference.activations` names it.

    Args:
        model: on any device.
        tokens: integers, [b, t].
    """
    found: dict[str, Any] = {}
    placed = torch.from_numpy(np.asarray(tokens, np.int64)).to(model.embedding.weight.device)
    with torch.no_grad(), recording(model, partial(keep, model.config, found)):
        model(placed)
    return in_order(found, model.config)


@contextmanager
def recording(model: LanguageModel, report: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Calls `report` with path, first input and output of each module of the model that is called in the block."""

    def hook(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        report(path, _copy(inputs[0]), _copy(output))

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(hook, path)).remove)
        yield


def _copy(value: Tensor | tuple[Tensor | None, ...]) -> Any:
    """As NumPy at once: a later operation may work in place; without what is None."""
    return tuple(to_numpy(part) for part in value if part is not None) if isinstance(value, tuple) else to_numpy(value)
