"""The language model of any family. Twin: jax_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spec.axes import BN, BT, BTD, BTV, LBN, SCALAR
from spec.config import ModelConfig
from spec.init import initial_parameters
from spec.inputs import check_call, check_least, check_token_values, require_types
from spec.mixers import family
from spec.mixers.base import NO_MASKS, Masks, Side
from spec.sampling import Sampling
from torch_impl.checkpoint.native import load_parameters
from torch_impl.generation import generate
from torch_impl.layers import COMPUTE, Embedding, RMSNorm, SwiGLU, accumulate_dtype
from torch_impl.mixers import mixer_module
from torch_impl.ops.cross_entropy import cross_entropy, lm_head
from torch_impl.ops.devices import host_values


class Block(nn.Module):
    """x += s Mixer(RMSNorm(x)); x += s SwiGLU(RMSNorm(x)), s = 1 / sqrt(2 l)."""

    def __init__(self, config: ModelConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__()
        self.scale = config.residual_scale
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        self.mixer = mixer_module(config).Mixer(config, compute_dtype, method)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        self.mlp = SwiGLU(config, compute_dtype)

    def forward(
        self,
        x: Float[Tensor, BTD],
        state: Float[Tensor, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, BN]]:
        y_btd, state_bn = self.mixer(self.mixer_norm(x), state, masks, side)
        x = torch.add(x, y_btd, alpha=self.scale)
        return torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.scale), state_bn


class LanguageModel(nn.Module):
    """What the families share: blocks between a tied embedding and a norm, a state of l * n numbers for any text.

    Args:
        config: the model.
        seed: of the initial weights, `spec.initial_parameters(config, seed)`.
        compute_dtype: of the dense products: `float32`, `bfloat16`, `float16` or `float64`.
        method: a key of the mixer's METHODS, or `auto`.
        remat: make each block's activations again in the backward pass instead of keeping them.
        loss_method: a key of `cross_entropy.METHODS`, or `auto`.

    Raises:
        ValueError: an unknown compute dtype or method.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 0,
        compute_dtype: str = "float32",
        method: str = "auto",
        remat: bool = False,
        loss_method: str = "auto",
    ):
        super().__init__()
        self.config = config
        self.family = family(config)
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.loss_method = loss_method
        self.embedding = Embedding(config.vocab_size, config.d_model, compute_dtype)
        own = [self.family.of_block(config, i) for i in range(config.n_layers)]
        self.state_sizes = tuple(one.state_size(own_config) for one, own_config in own)
        self.blocks = nn.ModuleList([Block(own_config, compute_dtype, method) for _, own_config in own])
        self.final_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        load_parameters(self, initial_parameters(config, seed))

    def forward(
        self,
        tokens: Int[Tensor, BT],
        states: Float[Tensor, LBN] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
        side: Side | None = None,
    ) -> Any:
        """(logits, states), see `logits`, unless the family's own model says otherwise."""
        return self.logits(tokens, states, resets, padding, side)

    def logits(
        self,
        tokens: Int[Tensor, BT],
        states: Float[Tensor, LBN] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
        side: Side | None = None,
        **named: Tensor | None,
    ) -> tuple[Float[Tensor, BTV], Float[Tensor, LBN]]:
        """Logits of the next token at every position, and the final states.

        Args:
            tokens: token ids, [b, t], integers; what becomes of others than the vocabulary's: spec/inputs.py.
            states: initial states, [l, b, n], in any floating dtype; None is zero.
            resets: true clears the state before token t is absorbed, [b, t].
            padding: true at positions that change nothing, [b, t].
            side: what the family's mixer reads besides, by name, see its `side_inputs`; what is not there is left out.
            named: the same as keywords, `gaps=...`.

        Returns:
            logits float32 [b, t, v], states float32 [l, b, n]; float64 where the compute dtype is.

        Raises:
            ValueError: a shape or dtype that does not fit, or a value that the host can see.
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding, side, **named)
        return lm_head(hidden_btd, self.embedding.weight, COMPUTE[self.compute_dtype]), states

    def hidden(
        self,
        tokens: Int[Tensor, BT],
        states: Float[Tensor, LBN] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
        side: Side | None = None,
        **named: Tensor | None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, LBN]]:
        """The normalised hidden states that the embedding reads out, and the final states."""
        n = self.family.state_size(self.config)
        given = {**(side or {}), **named}
        require_types((Tensor,), tokens=tokens, states=states, resets=resets, padding=padding, **given)
        check_call(tokens, self.config.n_layers, n, states, resets, padding)
        shape, wide = (self.config.n_layers, tokens.shape[0], n), accumulate_dtype(self.compute_dtype)
        given = self.family.checked_side(self.config, given, tokens.shape)
        if states is None:
            states = torch.zeros(shape, dtype=wide, device=tokens.device)
        self._check_values(tokens, given)
        states = states.to(wide)
        x_btd = self.embedding(tokens)
        last_states = []
        for i, (block, state) in enumerate(zip(self.blocks, states, strict=True)):
            state_bn, of_layer = slice_state(state, self.state_sizes[i]), self.family.of_layer(self.config, given, i)
            inputs = x_btd, state_bn, Masks(resets, padding), of_layer
            if self.remat:
                x_btd, last = checkpoint(_with_its_parameters(block), *inputs, use_reentrant=False)
            else:
                x_btd, last = block(*inputs)
            last_states.append(last)
        return self.final_norm(x_btd), torch.stack([pad_state(last, shape[-1]) for last in last_states])

    def _check_values(self, tokens: Tensor, given: Side) -> None:
        ids = host_values(tokens)
        if ids is not None:
            check_token_values(ids, self.config.vocab_size)
        for name, least in self.family.least_values(self.config).items():
            numbers = host_values(given[name]) if name in given else None
            if numbers is not None:
                check_least(name, numbers, least)

    def loss(
        self,
        tokens: Int[Tensor, BT],
        labels: Int[Tensor, BT],
        states: Float[Tensor, LBN] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
        side: Side | None = None,
        **named: Tensor | None,
    ) -> tuple[Float[Tensor, SCALAR], Float[Tensor, LBN]]:
        """Mean cross-entropy in nats a counted label, and the final states; the logits are never held whole.

        Args:
            tokens, states, resets, padding, side: as in `logits`.
            labels: target of each position, [b, t]; -100 is ignored, all ignored gives loss 0; another one outside the
                vocabulary is refused on a CPU, and a NaN loss or an assertion elsewhere: spec/inputs.py.
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding, side, **named)
        return self.mean_loss(hidden_btd, labels), states

    def mean_loss(self, hidden_btd: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats a counted label, of normalised hidden states."""
        compute = COMPUTE[self.compute_dtype]
        nats, count = cross_entropy(hidden_btd, self.embedding.weight, labels, compute, self.loss_method)
        return nats / count.clamp(min=1)

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
        resets: Bool[Tensor, BT] | None = None,
        end_of_text_id: int | None = None,
    ) -> Int[Tensor, BT]:
        """Continue each row until it has `max_length` tokens, the prompt included.

        Args:
            tokens: the prompt, [b, t].
            max_length: of a row, in tokens.
            temperature, top_k, top_p, seed: as in spec.sampling.Sampling.
            resets: as in `logits`, of the prompt.
            end_of_text_id: the tokenizer's; after it, in the prompt as in what follows, the state is cleared, as in
                training. Without it all of the prompt is one text.

        Raises:
            ValueError: an empty prompt, a token id outside the vocabulary, resets of another shape, or a sampling value
                out of range.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        require_types((Tensor,), resets=resets)
        resets_bt = None if resets is None else resets.cpu().numpy()
        text_bt = generate(
            self, tokens.cpu().numpy(), max_length, sampling, resets_bt=resets_bt, end_of_text_id=end_of_text_id
        )
        return torch.from_numpy(text_bt.astype(np.int64)).to(tokens.device)


def _with_its_parameters(block: nn.Module) -> Callable[..., Any]:
    """The block with the parameters of now, also when it is called again in the backward pass.

    By then torch.func.functional_call has put its own ones back. FSDP gathers what it has handed out by itself.
    """
    parameters: dict[str, Tensor] = dict(block.named_parameters())
    by_fsdp = getattr(block, "_is_fsdp_managed_module", False) or any(
        hasattr(one, "device_mesh") for one in parameters.values()
    )
    if torch.compiler.is_compiling() or by_fsdp:
        return block

    def run(*inputs: Any) -> Any:
        if all(one is parameters[path] for path, one in block.named_parameters()):
            return block(*inputs)
        return torch.func.functional_call(block, parameters, inputs)

    return run


def slice_state(state_bn: Tensor, size: int) -> Tensor:
    """What a block of this state size has of a model's states, which are as wide as the largest: the first numbers."""
    return state_bn if state_bn.shape[-1] == size else state_bn[:, :size]


def pad_state(state_bn: Tensor, size: int) -> Tensor:
    """The state of a block among those of a model, which are as wide as the largest; what it has not is zero."""
    rest = size - state_bn.shape[-1]
    return nn.functional.pad(state_bn, (0, rest)) if rest else state_bn


def choose_method(config: ModelConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    return mixer_module(config).choose_method(config, batch_size, seq_len)


def build(config: ModelConfig, **options: Any) -> LanguageModel:
    """The model of a configuration, of the class that its family has for it; `options` as in LanguageModel.

    Raises:
        ValueError: an unknown family; names those that are known.
    """
    model = getattr(mixer_module(config), "Model", LanguageModel)
    return model(config=config, **options)
