"""A language model as seen from below the module that builds it. Twin: jax_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from spec.axes import BT, BTD, LBN
from spec.config import ModelConfig
from torch_impl.layers import Embedding


class LanguageModel(Protocol):
    """What generation and checkpoints need of `model.LanguageModel`, which imports them."""

    config: ModelConfig
    compute_dtype: str
    embedding: Embedding
    blocks: nn.ModuleList

    def hidden(
        self,
        tokens: Int[Tensor, BT],
        states: Float[Tensor, LBN] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, LBN]]:
        """The normalised hidden states that the embedding reads out, and the final states."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]: ...
