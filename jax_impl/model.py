"""The language model of any family. Twin: torch_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_impl.checkpoint.native import load_parameters
from jax_impl.generation import generate
from jax_impl.layers import COMPUTE, Embedding, RMSNorm, SwiGLU, accumulate_dtype
from jax_impl.mixers import mixer_module
from jax_impl.ops.cross_entropy import cross_entropy, lm_head
from spec.axes import BN, BT, BTD, BTV, LBN, SCALAR
from spec.config import ModelConfig
from spec.init import initial_parameters
from spec.inputs import check_call, require_types
from spec.mixers import family
from spec.mixers.base import NO_MASKS, Masks, Side
from spec.sampling import Sampling


class Block(nnx.Module):
    """x += s Mixer(RMSNorm(x)); x += s SwiGLU(RMSNorm(x)), s = 1 / sqrt(2 l)."""

    def __init__(self, config: ModelConfig, compute_dtype: str = "float32", method: str = "auto"):
        self.scale = config.residual_scale
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        self.mixer = mixer_module(config).Mixer(config, compute_dtype, method)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        self.mlp = SwiGLU(config, compute_dtype)

    def __call__(
        self,
        x: Float[Array, BTD],
        state: Float[Array, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Array, BTD], Float[Array, BN]]:
        y_btd, state_bn = self.mixer(self.mixer_norm(x), state, masks, side)
        x = x + self.scale * y_btd
        return x + self.scale * self.mlp(self.mlp_norm(x)), state_bn


class LanguageModel(nnx.Module):
    """What the families share: blocks between a tied embedding and a norm, a state of l * n numbers for any text.

    Args:
        config: the model.
        seed: of the initial weights, `spec.initial_parameters(config, seed)`.
        compute_dtype: of the dense products: `float32`, `bfloat16` or `float64`.
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
        self.config = config
        self.family = family(config)
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.loss_method = loss_method
        self.embedding = Embedding(config.vocab_size, config.d_model, compute_dtype)
        own = [self.family.of_block(config, i) for i in range(config.n_layers)]
        self.state_sizes = tuple(one.state_size(own_config) for one, own_config in own)
        self.blocks = nnx.List([Block(own_config, compute_dtype, method) for _, own_config in own])
        self.final_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        load_parameters(self, initial_parameters(config, seed))

    def __call__(
        self,
        tokens: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        side: Side | None = None,
    ) -> Any:
        """(logits, states), see `logits`, unless the family's own model says otherwise."""
        return self.logits(tokens, states, resets, padding, side)

    def logits(
        self,
        tokens: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        side: Side | None = None,
        **named: Array | None,
    ) -> tuple[Float[Array, BTV], Float[Array, LBN]]:
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
            ValueError: a shape or dtype that does not fit.
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding, side, **named)
        return lm_head(hidden_btd, self.embedding.weight[...], COMPUTE[self.compute_dtype]), states

    def hidden(
        self,
        tokens: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        side: Side | None = None,
        **named: Array | None,
    ) -> tuple[Float[Array, BTD], Float[Array, LBN]]:
        """The normalised hidden states that the embedding reads out, and the final states."""
        n = self.family.state_size(self.config)
        given = {**(side or {}), **named}
        require_types((np.ndarray, Array), tokens=tokens, states=states, resets=resets, padding=padding, **given)
        check_call(tokens, self.config.n_layers, n, states, resets, padding)
        shape, wide = (self.config.n_layers, tokens.shape[0], n), accumulate_dtype(self.compute_dtype)
        given = self.family.checked_side(self.config, given, tokens.shape)
        if states is None:
            states = jnp.zeros(shape, wide)
        states = jnp.asarray(states, wide)
        x_btd = self.embedding(tokens)
        last_states = []
        for i, (block, state) in enumerate(zip(self.blocks, states, strict=True)):
            run = partial(nnx.remat(Block.__call__), block) if self.remat else block
            of_layer = self.family.of_layer(self.config, given, i)
            x_btd, last = run(x_btd, slice_state(state, self.state_sizes[i]), Masks(resets, padding), of_layer)
            last_states.append(last)
        return self.final_norm(x_btd), jnp.stack([pad_state(last, shape[-1]) for last in last_states])

    def loss(
        self,
        tokens: Int[Array, BT],
        labels: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        side: Side | None = None,
        **named: Array | None,
    ) -> tuple[Float[Array, SCALAR], Float[Array, LBN]]:
        """Mean cross-entropy in nats a counted label, and the final states; the logits are never held whole.

        Args:
            tokens, states, resets, padding, side: as in `logits`.
            labels: target of each position, [b, t]; -100 is ignored, all ignored gives loss 0; another one outside the
                vocabulary is no label: the loss and its gradients are NaN, see spec/inputs.py.
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding, side, **named)
        return self.mean_loss(hidden_btd, labels), states

    def mean_loss(self, hidden_btd: Array, labels: Array) -> Array:
        """Mean cross-entropy in nats a counted label, of normalised hidden states."""
        compute = COMPUTE[self.compute_dtype]
        nats, count = cross_entropy(hidden_btd, self.embedding.weight[...], labels, compute, self.loss_method)
        return nats / jnp.maximum(count, 1).astype(nats.dtype)

    def num_parameters(self) -> int:
        """Number of scalars; the tied embedding counts once."""
        return sum(parameter.size for parameter in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def generate(
        self,
        tokens: Int[Array, BT],
        max_length: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        resets: Bool[Array, BT] | None = None,
        end_of_text_id: int | None = None,
    ) -> Int[Array, BT]:
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
        require_types((np.ndarray, Array), resets=resets)
        resets_bt = None if resets is None else np.asarray(resets)
        text_bt = generate(
            self, np.asarray(tokens), max_length, sampling, resets_bt=resets_bt, end_of_text_id=end_of_text_id
        )
        return jnp.asarray(text_bt, jnp.int32)


def slice_state(state_bn: Array, size: int) -> Array:
    """What a block of this state size has of a model's states, which are as wide as the largest: the first numbers."""
    return state_bn if state_bn.shape[-1] == size else state_bn[:, :size]


def pad_state(state_bn: Array, size: int) -> Array:
    """The state of a block among those of a model, which are as wide as the largest; what it has not is zero."""
    rest = size - state_bn.shape[-1]
    return jnp.pad(state_bn, ((0, 0), (0, rest))) if rest else state_bn


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
