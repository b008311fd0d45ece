"""The language models. Twin: torch_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jax_impl.checkpoint.native import load_parameters
from jax_impl.generation import generate
from jax_impl.layers import COMPUTE, Embedding, RMSNorm, SwiGLU, accumulate_dtype
from jax_impl.mixers import liquid_ssm
from jax_impl.mixers.liquid_ssm import LiquidSSM
from jax_impl.mixers.liquidnet import LiquidMixer
from jax_impl.ops import scan
from jax_impl.ops.cross_entropy import cross_entropy, lm_head
from spec.axes import BN, BT, BTD, BTV, LBN, LBTN, SCALAR
from spec.config import LiquidSSMConfig, ModelConfig, require_integer, swiglu_width
from spec.init import initial_parameters
from spec.sampling import Sampling


class Block(nnx.Module):
    """x += s Mixer(RMSNorm(x)); x += s SwiGLU(RMSNorm(x)), s = 1 / sqrt(2 l)."""

    def __init__(self, config: ModelConfig, compute_dtype: str = "float32", method: str = "auto"):
        self.scale = config.residual_scale
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        if isinstance(config, LiquidSSMConfig):
            self.mixer = LiquidSSM(config, compute_dtype, method)
        else:
            self.mixer = LiquidMixer(config, compute_dtype, method)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        self.mlp = SwiGLU(config, compute_dtype)

    def __call__(
        self,
        x: Float[Array, BTD],
        state: Float[Array, BN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        *of_ssm: Array | None,
    ) -> tuple[Float[Array, BTD], Float[Array, BN]]:
        y_btd, state_bn = self.mixer(self.mixer_norm(x), state, resets, padding, *of_ssm)
        x = x + self.scale * y_btd
        return x + self.scale * self.mlp(self.mlp_norm(x)), state_bn


class LanguageModel(nnx.Module):
    """What the families share: blocks between a tied embedding and a norm, a state of l * n numbers for any text.

    Args:
        config: the model.
        seed: of the initial weights, `spec.initial_parameters(config, seed)`.
        compute_dtype: of the dense products: `float32`, `bfloat16` or `float64`.
        method: a key of `mixer.METHODS` or `trajectory.METHODS`, or `auto`.
        remat: make each block's activations again in the backward pass instead of keeping them.
        loss_method: a key of `loss.METHODS`, or `auto`.

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
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.loss_method = loss_method
        self.embedding = Embedding(config.vocab_size, config.d_model, compute_dtype)
        self.blocks = nnx.List([Block(config, compute_dtype, method) for _ in range(config.n_layers)])
        self.final_norm = RMSNorm(config.d_model, config.norm_eps, compute_dtype)
        load_parameters(self, initial_parameters(config, seed))

    def logits(
        self,
        tokens: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        noise: Float[Array, LBTN] | None = None,
        gaps: Float[Array, BT] | None = None,
    ) -> tuple[Float[Array, BTV], Float[Array, LBN]]:
        """Logits of the next token at every position, and the final states.

        Args:
            tokens: token ids, [b, t].
            states: initial states, [l, b, n]; None is zero.
            resets: true clears the state before token t is absorbed, [b, t].
            padding: true at positions that change nothing, [b, t].
            noise: of a Liquid SSM in training, [l, b, t, n]; None is zero.
            gaps: of a Liquid SSM, time since the token before in units of its usual distance, [b, t]; None is 1.

        Returns:
            logits float32 [b, t, v], states float32 [l, b, n]; float64 where the compute dtype is.
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding, noise, gaps)
        return lm_head(hidden_btd, self.embedding.weight[...], COMPUTE[self.compute_dtype]), states

    def hidden(
        self,
        tokens: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        noise: Float[Array, LBTN] | None = None,
        gaps: Float[Array, BT] | None = None,
    ) -> tuple[Float[Array, BTD], Float[Array, LBN]]:
        """The normalised hidden states that the embedding reads out, and the final states."""
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(f"tokens must have shape [b, t] with b, t >= 1, got {tuple(tokens.shape)}")
        if (noise is not None or gaps is not None) and not isinstance(self.config, LiquidSSMConfig):
            raise ValueError("noise and gaps are a Liquid SSM's; leave them out")
        (b, t), shape = tokens.shape, (self.config.n_layers, tokens.shape[0], self.config.d_state)
        _require_shape("states [l, b, n]", states, shape)
        _require_shape("noise [l, b, t, n]", noise, (*shape[:2], t, shape[2]))
        _require_shape("gaps [b, t]", gaps, (b, t))
        if states is None:
            states = jnp.zeros(shape, accumulate_dtype(self.compute_dtype))
        x_btd = self.embedding(tokens)
        last_states = []
        for i, (block, state) in enumerate(zip(self.blocks, states, strict=True)):
            run = partial(nnx.remat(Block.__call__), block) if self.remat else block
            x_btd, last = run(x_btd, state, resets, padding, *self._of_ssm(i, noise, gaps))
            last_states.append(last)
        return self.final_norm(x_btd), jnp.stack(last_states)

    def _of_ssm(self, layer: int, noise: Array | None, gaps: Array | None) -> tuple[Array | None, ...]:
        return (None if noise is None else noise[layer], gaps) if isinstance(self.config, LiquidSSMConfig) else ()

    def loss(
        self,
        tokens: Int[Array, BT],
        labels: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        noise: Float[Array, LBTN] | None = None,
        gaps: Float[Array, BT] | None = None,
    ) -> tuple[Float[Array, SCALAR], Float[Array, LBN]]:
        """Mean cross-entropy in nats a counted label, and the final states; the logits are never held whole.

        Args:
            tokens: token ids, [b, t].
            labels: target of each position, [b, t]; -100 is ignored; all ignored gives loss 0.
            states: initial states, [l, b, n]; None is zero.
            resets: true clears the state before token t is absorbed, [b, t].
            padding: true at positions that change nothing, [b, t].
            noise, gaps: as in `logits`.
        """
        hidden_btd, states = self.hidden(tokens, states, resets, padding, noise, gaps)
        return self._mean(hidden_btd, labels), states

    def _mean(self, hidden_btd: Array, labels: Array) -> Array:
        compute = COMPUTE[self.compute_dtype]
        nats, count = cross_entropy(hidden_btd, self.embedding.weight[...], labels, compute, self.loss_method)
        return nats / jnp.maximum(count, 1)

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
    ) -> Int[Array, BT]:
        """Continue each row until it has `max_length` tokens, the prompt included.

        Raises:
            ValueError: an empty prompt, a token id outside the vocabulary, or a sampling value out of range.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        text_bt = generate(self, np.asarray(tokens), max_length, sampling)
        return jnp.asarray(text_bt, jnp.int32)


class LiquidNet(LanguageModel):
    """The family of h_t = alpha_t h_{t-1} + (1 - alpha_t) v_t: a linear recurrence whose decay follows its input.

    Called with (tokens, states, resets, padding) it gives (logits, states), see `logits`.
    """

    def __call__(
        self,
        tokens: Int[Array, BT],
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
    ) -> tuple[Float[Array, BTV], Float[Array, LBN]]:
        return self.logits(tokens, states, resets, padding)


def _require_shape(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    if array is not None and tuple(array.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")


class Output(NamedTuple):
    """What a Liquid SSM gives: the loss is None without labels."""

    loss: Float[Array, SCALAR] | None
    logits: Float[Array, BTV]
    states: Float[Array, LBN]


class LiquidSSMLanguageModel(LanguageModel):
    """The family of dx/dt = -x / tau + A x + B u: continuous time, its time constants set by content.

    Args:
        vocab_size: entries of the tied embedding, v.
        d_model: width of the residual stream, d.
        state_dim: numbers of a layer's state, n.
        num_layers: number of blocks, l.
        max_seq_len: training window in tokens; never a limit at inference.
        config: all of it, instead of the five above.
        seed, compute_dtype, method, remat, loss_method: as in LanguageModel.

    Raises:
        ValueError: a value out of range, or an unknown compute dtype or method.
    """

    def __init__(
        self,
        vocab_size: int = 32000,
        d_model: int = 512,
        state_dim: int = 256,
        num_layers: int = 6,
        max_seq_len: int = 2048,
        config: LiquidSSMConfig | None = None,
        **options: Any,
    ):
        if config is None:
            require_integer("d_model", d_model, 1)
            sizes: dict[str, Any] = {
                "vocab_size": vocab_size,
                "d_model": d_model,
                "n_layers": num_layers,
                "max_seq_len": max_seq_len,
            }
            config = LiquidSSMConfig(**sizes, d_ff=swiglu_width(d_model), d_state=state_dim)
        if not isinstance(config, LiquidSSMConfig):
            raise ValueError(f"config must be a LiquidSSMConfig, got {config!r}")
        super().__init__(config, **options)

    def __call__(
        self,
        tokens: Int[Array, BT],
        labels: Int[Array, BT] | None = None,
        states: Float[Array, LBN] | None = None,
        resets: Bool[Array, BT] | None = None,
        padding: Bool[Array, BT] | None = None,
        noise: Float[Array, LBTN] | None = None,
        gaps: Float[Array, BT] | None = None,
    ) -> Output:
        hidden_btd, states = self.hidden(tokens, states, resets, padding, noise, gaps)
        logits_btv = lm_head(hidden_btd, self.embedding.weight[...], COMPUTE[self.compute_dtype])
        return Output(None if labels is None else self._mean(hidden_btd, labels), logits_btv, states)


def choose_method(config: ModelConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    if isinstance(config, LiquidSSMConfig):
        return liquid_ssm.choose_method(config, seq_len)
    return scan.choose_method((batch_size, seq_len, config.d_model))


def build(config: ModelConfig, **options: Any) -> LanguageModel:
    """The model of a configuration; `options` as in LanguageModel."""
    if isinstance(config, LiquidSSMConfig):
        return LiquidSSMLanguageModel(config=config, **options)
    return LiquidNet(config, **options)
