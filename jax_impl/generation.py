"""The loop of generation: a prompt, and what a model says after it. Twin: torch_impl. Truth: spec/sampling.py."""

from __future__ import annotations

import numpy as np

from jax_impl.ops.decode import make_step
from jax_impl.protocols import LanguageModel
from spec.sampling import Sampling, complete


def generate(
    model: LanguageModel, prompt_bt: np.ndarray, max_length: int, sampling: Sampling, method: str = "auto"
) -> np.ndarray:
    """The prompt and what follows it, [b, max_length]; `method` is a key of ops.decode.METHODS, or `auto`."""
    return complete(make_step(model, method), prompt_bt, max_length, sampling)
