"""The model as a step of generation. Twin: torch_impl/generate.py. Truth: spec/sampling.py."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_impl.layers import COMPUTE
from jax_impl.loss import read_out
from spec.sampling import Sampling, Step, check_tokens, complete

if TYPE_CHECKING:
    from jax_impl.model import LiquidNet


def make_step(model: LiquidNet) -> Step:
    """(tokens [b, t], states or None) -> (logits of the last position [b, v], states), NumPy outside.

    The logits of the positions before the last are never made.
    """
    graph, parameters = nnx.split(model, nnx.Param)

    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        check_tokens(tokens_bt, model.config.vocab_size)
        logits_bv, states = _advance(graph, parameters, jnp.asarray(tokens_bt, jnp.int32), states)
        return np.asarray(logits_bv, np.float32), states

    return step


@partial(jax.jit, static_argnums=0)
def _advance(graph, parameters, tokens_bt, states):
    """At module level, so that one model is compiled once, however often it is sampled from."""
    model = nnx.merge(graph, parameters)
    hidden_btd, states = model.hidden(tokens_bt, states)
    return read_out(hidden_btd[:, -1], model.embedding.weight[...], COMPUTE[model.compute_dtype]), states


def generate(model: LiquidNet, prompt_bt: np.ndarray, max_length: int, sampling: Sampling) -> np.ndarray:
    """The prompt and what follows it, [b, max_length]."""
    return complete(make_step(model), prompt_bt, max_length, sampling)
