"""One compiled program for a token, one for each power of two of a prompt. No twin: torch has eager, graph and numba.

Truth: spec/reference/model.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_impl.layers import COMPUTE, accumulate_dtype
from jax_impl.ops.cross_entropy import lm_head
from jax_impl.protocols import LanguageModel
from spec.mixers import state_shape
from spec.sampling import Step, check_tokens


def jit_step(model: LanguageModel) -> Step:
    """One compiled program for a token and one for each power of two of a prompt; the parameters are this moment's."""
    graph, parameters = nnx.split(model, nnx.Param)
    c = model.config

    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        check_tokens(tokens_bt, c.vocab_size)
        if states is None:
            states = jnp.zeros(state_shape(c, len(tokens_bt)), accumulate_dtype(model.compute_dtype))
        logits_bv, states = _advance(graph, parameters, *_to_power_of_two(tokens_bt), jnp.asarray(states))
        return np.asarray(logits_bv, np.float32), states

    return step


def _to_power_of_two(tokens_bt: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
    """Tokens and padding before them, which changes nothing: else each length of a chat's turns would be compiled."""
    t = tokens_bt.shape[1]
    if t <= 1:
        return jnp.asarray(tokens_bt, jnp.int32), None
    missing = (1 << (t - 1).bit_length()) - t
    padded_bt = np.pad(tokens_bt, ((0, 0), (missing, 0)))
    padding_bt = np.broadcast_to(np.arange(t + missing) < missing, padded_bt.shape)
    return jnp.asarray(padded_bt, jnp.int32), jnp.asarray(padding_bt)


@partial(jax.jit, static_argnums=0)
def _advance(graph, parameters, tokens_bt, padding_bt, states):
    """At module level, so that one model is compiled once, however often it is sampled from."""
    model = nnx.merge(graph, parameters)
    hidden_btd, states = model.hidden(tokens_bt, states, padding=padding_bt)
    return lm_head(hidden_btd[:, -1], model.embedding.weight[...], COMPUTE[model.compute_dtype]), states
