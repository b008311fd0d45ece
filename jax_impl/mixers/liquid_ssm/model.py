"""The language model of the Liquid SSM. Twin: torch_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

from jax_impl.layers import COMPUTE
from jax_impl.model import LanguageModel
from jax_impl.ops.cross_entropy import lm_head
from spec.axes import BT, BTV, LBN, LBTN, SCALAR
from spec.config import swiglu_width
from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.validation import require_integer


class Output(NamedTuple):
    """What a Liquid SSM gives: the loss is None without labels."""

    loss: Float[Array, SCALAR] | None
    logits: Float[Array, BTV]
    states: Float[Array, LBN]


class LiquidSSMLanguageModel(LanguageModel):
    """The family of dx/dt = -x / tau + A x + B u: continuous time, its time constants set by content.

    Args:
        vocab_size, d_model, max_seq_len: as in LiquidSSMConfig.
        state_dim: its d_state, n.
        num_layers: its n_layers, l.
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
            d_ff = swiglu_width(d_model)
            config = LiquidSSMConfig(vocab_size, d_model, d_ff, num_layers, max_seq_len, state_dim)
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
        dt_scale: Float[Array, BT] | None = None,
    ) -> Output:
        """Loss, logits and last states.

        Args:
            tokens, states, resets, padding: as in `logits`.
            labels: target of each position, [b, t]; -100 is ignored; without them there is no loss.
            noise: xi, for training, [l, b, t, n]; None is zero.
            gaps: another name of dt_scale.
            dt_scale: time since the token before in units of its usual distance, [b, t]; None is 1.
        """
        side = {"noise": noise, "dt_scale": dt_scale, "gaps": gaps}
        hidden_btd, states = self.hidden(tokens, states, resets, padding, side)
        logits_btv = lm_head(hidden_btd, self.embedding.weight[...], COMPUTE[self.compute_dtype])
        return Output(None if labels is None else self.mean_loss(hidden_btd, labels), logits_btv, states)
