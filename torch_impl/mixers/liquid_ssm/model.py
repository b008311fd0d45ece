"""The language model of the Liquid SSM. Twin: jax_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from spec.axes import BT, BTV, LBN, LBTN, SCALAR
from spec.config import swiglu_width
from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.validation import require_integer
from torch_impl.layers import COMPUTE
from torch_impl.model import LanguageModel
from torch_impl.ops.cross_entropy import lm_head


class Output(NamedTuple):
    """What a Liquid SSM gives: the loss is None without labels."""

    loss: Float[Tensor, SCALAR] | None
    logits: Float[Tensor, BTV]
    states: Float[Tensor, LBN]


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

    def forward(
        self,
        tokens: Int[Tensor, BT],
        labels: Int[Tensor, BT] | None = None,
        states: Float[Tensor, LBN] | None = None,
        resets: Bool[Tensor, BT] | None = None,
        padding: Bool[Tensor, BT] | None = None,
        noise: Float[Tensor, LBTN] | None = None,
        gaps: Float[Tensor, BT] | None = None,
        dt_scale: Float[Tensor, BT] | None = None,
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
        logits_btv = lm_head(hidden_btd, self.embedding.weight, COMPUTE[self.compute_dtype])
        return Output(None if labels is None else self.mean_loss(hidden_btd, labels), logits_btv, states)
