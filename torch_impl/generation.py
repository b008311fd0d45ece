"""The loop of generation: a prompt, and what a model says next. Twin: jax_impl. Truth: spec/sampling/__init__.py."""

from __future__ import annotations

import numpy as np

from spec.sampling import Sampling, check_end_of_text, complete
from torch_impl.ops.decode import make_step
from torch_impl.ops.sampling import sample
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
    check_end_of_text(end_of_text_id, model.config.vocab_size)
    step = make_step(model, method)
    return complete(step, prompt_bt, max_length, sampling, resets_bt, end_of_text_id, sampler=sample)
