"""A language model as a step of generation. Twin: torch_impl. Truth: spec/sampling/__init__.py.

    jit   one compiled program for a token and one for each power of two of a prompt (jit.py), everywhere

`auto` is `jit`. Weights that are rounded are stored in float32 all the same.
"""

from __future__ import annotations

from collections.abc import Callable

from jax_impl.ops.decode.jit import jit_scorer, jit_step
from jax_impl.protocols import LanguageModel
from spec.checkpoint.quantization import WEIGHTS
from spec.config import require_known
from spec.sampling import Step

METHODS: dict[str, Callable[[LanguageModel], Step]] = {"jit": jit_step}


def choose_method(model: LanguageModel, weights: str = "float32") -> str:
    """The method that `auto` takes to generate from a model where it is now."""
    require_known("weights", weights, WEIGHTS)
    return "jit"


def make_step(model: LanguageModel, method: str = "auto", weights: str = "float32") -> Step:
    """(tokens [b, t], states or None) -> (logits of the last position [b, v], states), NumPy outside.

    States may come as a NumPy array [l, b, n], and leave as the framework's own. The logits of the positions before the
    last are never made. Rows are independent streams.

    Args:
        model: read once: parameters that change later do not count.
        method: a key of METHODS, or `auto`.
        weights: what the matrices have been rounded to; they are stored in float32 all the same.

    Raises:
        ValueError: an unknown method, or unknown weights.
    """
    method = choose_method(model, weights) if method == "auto" else method
    require_known("decode method", method, METHODS)
    return METHODS[method](model)


def make_scorer(model: LanguageModel) -> Step:
    """As `make_step`, with the logits of every position, [b, t, v]: how likely each token of a text was."""
    return jit_scorer(model)


def is_batch_invariant(method: str) -> bool:
    """Whether a token's logits and state do not depend, to the bit, on the rows that are decoded beside its own.

    Matrix products of libraries are not: another number of rows is summed in another order.
    Source: He 2025, "Defeating Nondeterminism in LLM Inference", for the term.
    """
    return False
