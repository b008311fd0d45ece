"""LiquidNet. Twin: jax_impl/model.py. Truth: spec/reference/model.py."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spec.axes import BD, BT, BTD, BTV, LBD, SCALAR
from spec.config import LiquidNetConfig
from spec.init import initial_parameters
from spec.sampling import Sampling
from torch_impl.checkpoint import load_parameters
from torch_impl.generate import generate
from torch_impl.layers import COMPUTE, Embedding, RMSNorm, SwiGLU, accumulate_dtype
from torch_impl.loss import cross_entropy, read_out
from torch_impl.mixer import LiquidMixer


class Block(nn.Module):
    """x += s Mixer(RMSNorm(x)); x += s SwiGLU(RMSNorm(x)), s = 1 / sqrt(2 l)."""

    def __init__(self, config: LiquidNetConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__()
        self.scale = config.residual_scale
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        self.mixer = LiquidMixer(config, compute_dtype, method)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        self.mlp = SwiGLU(config, compute_dtype)

    def forward(
        self,
        x: Float[Tensor, BTD],
        state: Float[Tensor, BD] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, BD]]:
        y_btd, state_bd = self.mixer(self.mixer_norm(x), state, resets, padding)
        x = x + self.scale * y_btd
        return x + self.scale * self.mlp(self.mlp_norm(x)), state_bd


class LiquidNet(nn.Module):
    """A language model with linear-time mixing and a state of l * d numbers, whatever the length of the text.

    Args:
        config: the model.
        seed: of the initial weights, `spec.initial_parameters(config, seed)`.
        compute_dtype: of the dense products: `float32`, `bfloat16`, `float16` or `float64`.
        method: a key of `mixer.METHODS`.
        remat: make each block's activations again in the backward pass instead of keeping them.
        loss_method: a key of `loss.METHODS`, or `auto`.

    Raises:
        ValueError: an unknown compute dtype or method.
    """

    def __init__(
        self,
        config: LiquidNetConfig,
        seed: int = 0,
        compute_dtype: str = "float32",
        method: str = "auto",
        remat: bool = False,
        loss_method: str = "auto",
    ):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.loss_method = loss_method
        self.embedding = Embedding(config.vocab_size, config.d_model, compute_dtype)
        self.blocks = nn.ModuleList([Block(config, compute_dtype, method) for _ in range(config.n_layers)])
        self.final_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        load_parameters(self, initial_parameters(config, seed))

    def forward(
        self,
        tokens: Int[Tensor, BT],
        states: Float[Tensor, LBD] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
    ) -> tuple[Float[Tensor, BTV], Float[Tensor, LBD]]:
        """Logits of the next token at every position, and the final states.

        Args:
            tokens: token ids, [b, t].
            states: initial states, [l, b, d]; None is zero.
            resets: true clears the state before token t is absorbed, [b, t].
            padding: true at positions that change nothing, [b, t].

        Returns:
            logits float32 [b, t, v], states float32 [l, b, d]; float64 where the compute dtype is.
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding)
        return read_out(hidden_btd, self.embedding.weight, COMPUTE[self.compute_dtype]), states

    def hidden(
        self,
        tokens: Int[Tensor, BT],
        states: Float[Tensor, LBD] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, LBD]]:
        """The normalised hidden states that the embedding reads out, and the final states."""
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(f"tokens must have shape [b, t] with b, t >= 1, got {tuple(tokens.shape)}")
        if states is None:
            shape = (self.config.n_layers, tokens.shape[0], self.config.d_model)
            states = torch.zeros(shape, dtype=accumulate_dtype(self.compute_dtype), device=tokens.device)
        x_btd = self.embedding(tokens)
        last_states = []
        for block, state in zip(self.blocks, states, strict=True):
            if self.remat:
                x_btd, last = checkpoint(block, x_btd, state, resets, padding, use_reentrant=False)
            else:
                x_btd, last = block(x_btd, state, resets, padding)
            last_states.append(last)
        return self.final_norm(x_btd), torch.stack(last_states)

    def loss(
        self,
        tokens: Int[Tensor, BT],
        labels: Int[Tensor, BT],
        states: Float[Tensor, LBD] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
    ) -> tuple[Float[Tensor, SCALAR], Float[Tensor, LBD]]:
        """Mean cross-entropy in nats a counted label, and the final states; the logits are never held whole.

        Args:
            tokens: token ids, [b, t].
            labels: target of each position, [b, t]; -100 is ignored; all ignored gives loss 0.
            states: initial states, [l, b, d]; None is zero.
            resets: true clears the state before token t is absorbed, [b, t].
            padding: true at positions that change nothing, [b, t].
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding)
        compute = COMPUTE[self.compute_dtype]
        nats, count = cross_entropy(hidden_btd, self.embedding.weight, labels, compute, self.loss_method)
        return nats / count.clamp(min=1), states

    def num_parameters(self) -> int:
        """Number of scalars; the tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def generate(
        self,
        tokens: Int[Tensor, BT],
        max_length: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Int[Tensor, BT]:
        """Continue each row until it has `max_length` tokens, the prompt included.

        Raises:
            ValueError: an empty prompt, a token id outside the vocabulary, or a sampling value out of range.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        text_bt = generate(self, tokens.cpu().numpy(), max_length, sampling)
        return torch.from_numpy(text_bt.astype(np.int64)).to(tokens.device)
