"""A language model as a step of generation. Twin: jax_impl. Truth: spec/sampling/__init__.py.

    graph                               one token a row replayed from a CUDA graph (graph.py): GPUs
    numba, numba_bfloat16, numba_int8   one token a row compiled as one, weights stored so (numba.py): float32 on a
                                        CPU, for the mixers that it knows
    eager                               each operation on its own (eager.py), everywhere

`auto` is the first of these that runs where the model is: numba as its weights are rounded, and a graph where
the mixer's method can be captured. Prompts, and more rows than a method is made for, go eagerly. A named method
runs or raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from spec.checkpoint.quantization import WEIGHTS
from spec.config import require_known
from spec.sampling import Step
from torch_impl.mixers import capabilities
from torch_impl.ops.decode.eager import eager_scorer, eager_step
from torch_impl.ops.decode.graph import graph_step
from torch_impl.protocols import LanguageModel

METHODS: dict[str, Callable[[LanguageModel], Step]] = {"eager": eager_step, "graph": graph_step}
_NUMBA = {weights: "numba" if weights == "float32" else f"numba_{weights}" for weights in WEIGHTS}
try:
    from torch_impl.ops.decode.numba import numba_step, refusal
except ImportError:

    def refusal(model: LanguageModel) -> str | None:
        return "needs Numba"
else:
    METHODS |= {method: partial(numba_step, weights=weights) for weights, method in _NUMBA.items()}


def choose_method(model: LanguageModel, weights: str = "float32") -> str:
    """The method that `auto` takes to generate from a model where it is now."""
    require_known("weights", weights, WEIGHTS)
    if refusal(model) is None:
        return _NUMBA[weights]
    blocks: Any = model.blocks
    captured = all(capabilities(model.config, block.mixer.method).graph_capture for block in blocks)
    return "graph" if model.embedding.weight.device.type == "cuda" and captured else "eager"


def make_step(model: LanguageModel, method: str = "auto", weights: str = "float32") -> Step:
    """(tokens [b, t], states or None) -> (logits of the last position [b, v], states), NumPy outside.

    States may come as a NumPy array [l, b, n], and leave as the framework's own. The logits of the positions before the
    last are never made. Rows are independent streams.

    Args:
        model: read at each step: parameters that change in place between two steps count from the next on. Methods
            that store weights in fewer bytes read it once.
        method: a key of METHODS, or `auto`.
        weights: what the matrices have been rounded to: `auto` stores them so where it can.

    Raises:
        ValueError: an unknown method or weights, or a weight that cannot be rounded.
        NotImplementedError: the method does not run where the model is.
    """
    method = choose_method(model, weights) if method == "auto" else method
    require_known("decode method", method, METHODS)
    return METHODS[method](model)


def make_scorer(model: LanguageModel) -> Step:
    """As `make_step`, with the logits of every position, [b, t, v]: how likely each token of a text was."""
    return eager_scorer(model)


def is_batch_invariant(method: str) -> bool:
    """Whether a token's logits and state do not depend, to the bit, on the rows that are decoded beside its own.

    Matrix products of libraries are not: another number of rows is summed in another order.
    Source: He 2025, "Defeating Nondeterminism in LLM Inference", for the term.
    """
    return method in _NUMBA.values()
