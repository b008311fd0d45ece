"""The model as a step of generation. Twin: jax_impl/generate.py. Truth: spec/sampling.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spec.sampling import Sampling, Step, check_tokens, complete
from torch_impl.layers import COMPUTE
from torch_impl.loss import read_out

if TYPE_CHECKING:
    from torch_impl.model import LiquidNet


def make_step(model: LiquidNet) -> Step:
    """(tokens [b, t], states or None) -> (logits of the last position [b, v], states), NumPy outside.

    The logits of the positions before the last are never made.
    """
    device = model.embedding.weight.device

    @torch.inference_mode()
    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        check_tokens(tokens_bt, model.config.vocab_size)
        hidden_btd, states = model.hidden(torch.as_tensor(tokens_bt, dtype=torch.long, device=device), states)
        logits_bv = read_out(hidden_btd[:, -1], model.embedding.weight, COMPUTE[model.compute_dtype])
        return logits_bv.float().cpu().numpy(), states

    return step


def generate(model: LiquidNet, prompt_bt: np.ndarray, max_length: int, sampling: Sampling) -> np.ndarray:
    """The prompt and what follows it, [b, max_length]."""
    return complete(make_step(model), prompt_bt, max_length, sampling)
