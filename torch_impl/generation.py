"""The loop of generation: a prompt, and what a model says after it. Twin: jax_impl. Truth: spec/sampling.py."""

from __future__ import annotations

import numpy as np

from spec.sampling import Sampling, complete
from torch_impl.ops.decode import make_step
from torch_impl.protocols import LanguageModel


def generate(
    model: LanguageModel,
    prompt_bt: np.ndarray,
    max_length: int,
    sampling: Sampling,
    method: str = "auto",
    resets_bt: np.ndarray | None = None,
    end_of_text_id: int | None = None,
) -> np.ndarray:
    """The prompt and what follows it, [b, max_length]; `method` is a key of ops.decode.METHODS, or `auto`."""
    if end_of_text_id is not None and not 0 <= end_of_text_id < model.config.vocab_size:
        raise ValueError(f"end_of_text_id must be in [0, {model.config.vocab_size}), got {end_of_text_id}")
    return complete(make_step(model, method), prompt_bt, max_length, sampling, resets_bt, end_of_text_id)
