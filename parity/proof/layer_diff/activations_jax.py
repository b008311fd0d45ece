"""What each module of a model gives. Twin: activations_torch.py. Truth: spec/reference/model.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jax_impl.checkpoint.native import load_parameters
from jax_impl.model import LanguageModel, build
from parity.proof.layer_diff.activations import in_order, keep
from spec.config import ModelConfig


def load(config: ModelConfig, parameters: Mapping[str, np.ndarray]) -> LanguageModel:
    """A model of these parameters in float32, on the device that this backend trains on."""
    model = build(config)
    load_parameters(model, parameters)
    return model


def activations(model: LanguageModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What each module of a model gives in its own forward pass; arguments and names as in activations_torch.py."""

    # Jitted, as the model is used, and anew each time: a program kept from an earlier call would hide later changes.
    @nnx.jit
    def run(model: LanguageModel, tokens: Array) -> dict[str, Array]:
        found: dict[str, Any] = {}
        with recording(model, partial(keep, model.config, found)):
            model(tokens)
        return found

    found = {name: np.asarray(x) for name, x in run(model, jnp.asarray(tokens, jnp.int32)).items()}
    return in_order(found, model.config)


@contextmanager
def recording(model: LanguageModel, report: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Calls `report` with path, first input and output of each module of the model that is called in the block."""
    modules = [(path, module) for path, module in nnx.iter_graph(model) if isinstance(module, nnx.Module)]
    paths = {id(module): ".".join(map(str, path)) for path, module in modules}
    owners = {cls for _, module in modules for cls in type(module).__mro__ if "__call__" in vars(cls)}
    usual = {cls: cls.__call__ for cls in owners}

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(module: nnx.Module, first_input: Any, *args: Any, **kwargs: Any) -> Any:
            output = call(module, first_input, *args, **kwargs)
            if id(module) in paths:
                report(paths[id(module)], first_input, output)
            return output

        return recorded

    try:
        for cls, call in usual.items():
            cls.__call__ = wrap(call)
        yield
    finally:
        for cls, call in usual.items():
            cls.__call__ = call
