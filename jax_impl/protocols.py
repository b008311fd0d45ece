"""A language model as seen from below the module that builds it. Twin: torch_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

from typing import Protocol

from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_impl.layers import Embedding
from spec.axes import BT, BTD, LBN
from spec.config import ModelConfig


class LanguageModel(Protocol):
    """What generation and checkpoints need of `model.LanguageModel`, which imports them."""

    config: ModelConfig
    compute_dtype: str
    embedding: Embedding
    blocks: nnx.List

    def hidden(
        self,
        tokens: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
    ) -> tuple[Float[Array, BTD], Float[Array, LBN]]:
        """The normalised hidden states that the embedding reads out, and the final states."""
        ...
