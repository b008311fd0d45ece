"""What mixers of one gated linear recurrence share. Twin: jax_impl. Truth: spec/mixers/linear_recurrence.py."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from spec.axes import BN, BTD, BTN, BTX
from spec.config import ModelConfig
from spec.mixers import family
from spec.mixers.base import NO_MASKS, Capabilities, Masks, Side
from spec.validation import require_known
from torch_impl.layers import Linear
from torch_impl.ops import scan as scans
from torch_impl.ops.scan import scan

METHODS = ("auto", *scans.METHODS)


class LinearRecurrence(nn.Module):
    """y = W_out read_out(h, pre) of h_t = decay_t h_{t-1} + drive_t, decay and drive = gates(pre), pre = W_in x.

    Args:
        config: the model.
        parts: how many numbers the gates take for each of the state.
        compute_dtype: of the dense products.
        method: a key of METHODS.

    Raises:
        ValueError: an unknown method.
    """

    def __init__(self, config: ModelConfig, parts: int, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__()
        require_known("mixer method", method, METHODS)
        n = family(config).state_size(config)
        self.method = method
        self.input = Linear(config.d_model, parts * n, compute_dtype)
        self.output = Linear(n, config.d_model, compute_dtype)

    def gates(self, pre: Float[Tensor, BTX]) -> tuple[Float[Tensor, BTN], Float[Tensor, BTN]]:
        """Decay in [0, 1] and drive."""
        raise NotImplementedError

    def read_out(self, states: Float[Tensor, BTN], pre: Float[Tensor, BTX]) -> Float[Tensor, BTN]:
        """What `output` takes; the states, unless a family says otherwise."""
        return states

    def forward(
        self,
        x: Float[Tensor, BTD],
        state: Float[Tensor, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, BN]]:
        pre = self.input(x)
        states, last = scan(*self.gates(pre), state, self.method, *masks)
        return self.output(self.read_out(states, pre)), last


def choose_method(config: ModelConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    return scans.choose_method((batch_size, seq_len, family(config).state_size(config)))


def capabilities(config: ModelConfig, method: str = "auto") -> Capabilities:
    """What this backend can do with the mixer beyond what every mixer must."""
    return Capabilities(compile=True, context_parallel=True, graph_capture=True, scan_methods=True)
