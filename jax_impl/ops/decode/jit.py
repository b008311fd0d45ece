"""One compiled program for a token, one for each power of two of a prompt. No twin: torch has eager, graph and numba.

Truth: spec/reference/model.py.
"""

from __future__ import annotations

from collections.abc import Callable
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
    return _outside(model, _advance)


def jit_scorer(model: LanguageModel) -> Step:
    """The same with the logits of every position, [b, t, v]."""
    scored = _outside(model, _advance_with_all_logits)

    def score(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        logits_btv, states = scored(tokens_bt, states)
        return logits_btv[:, -tokens_bt.shape[1] :], states  # those of the padding came before

    return score


def _outside(model: LanguageModel, inside: Callable[..., tuple[jax.Array, jax.Array]]) -> Step:
    """NumPy outside, a compiled program inside."""
    graph, parameters = nnx.split(model, nnx.Param)
    c = model.config

    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        check_tokens(tokens_bt, c.vocab_size)
        if states is None:
            states = jnp.zeros(state_shape(c, len(tokens_bt)), accumulate_dtype(model.compute_dtype))
        logits, states = inside(graph, parameters, *_to_power_of_two(tokens_bt), jnp.asarray(states))
        return np.asarray(logits, np.float32), states

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


@partial(jax.jit, static_argnums=0)
def _advance_with_all_logits(graph, parameters, tokens_bt, padding_bt, states):
    model = nnx.merge(graph, parameters)
    hidden_btd, states = model.hidden(tokens_bt, states, padding=padding_bt)
    return lm_head(hidden_btd, model.embedding.weight[...], COMPUTE[model.compute_dtype]), states
