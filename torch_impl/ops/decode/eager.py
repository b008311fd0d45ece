"""Any number of tokens a row, each operation on its own. No twin: JAX compiles. Truth: spec/reference/model.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spec.sampling import Step, check_tokens
from torch_impl.layers import COMPUTE
from torch_impl.ops.cross_entropy import lm_head
from torch_impl.protocols import LanguageModel


def eager_step(model: LanguageModel) -> Step:
    """Each operation on its own, for any number of tokens a row."""
    return _outside(model, advance)


def eager_scorer(model: LanguageModel) -> Step:
    """The same with the logits of every position, [b, t, v]."""
    return _outside(model, _advance_with_all_logits)


def _outside(model: LanguageModel, inside: Callable[..., tuple[Tensor, Tensor]]) -> Step:
    """NumPy outside, tensors where the model is inside."""

    @torch.inference_mode()
    def step(tokens_bt: np.ndarray, states: Any) -> tuple[np.ndarray, Any]:
        check_tokens(tokens_bt, model.config.vocab_size)
        device = model.embedding.weight.device
        if isinstance(states, np.ndarray):
            states = torch.as_tensor(states, device=device)
        logits, states = inside(model, torch.as_tensor(tokens_bt, dtype=torch.long, device=device), states)
        return logits.float().cpu().numpy(), states

    return step


def advance(model: LanguageModel, tokens_bt: Tensor, states_lbd: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits of the last position [b, v], and the states after it."""
    hidden_btd, states_lbd = model.hidden(tokens_bt, states_lbd)
    return lm_head(hidden_btd[:, -1], model.embedding.weight, COMPUTE[model.compute_dtype]), states_lbd


def _advance_with_all_logits(
    model: LanguageModel, tokens_bt: Tensor, states_lbd: Tensor | None
) -> tuple[Tensor, Tensor]:
    hidden_btd, states_lbd = model.hidden(tokens_bt, states_lbd)
    return lm_head(hidden_btd, model.embedding.weight, COMPUTE[model.compute_dtype]), states_lbd
