"""What mixers of one gated linear recurrence share. Twin: torch_impl. Truth: spec/mixers/linear_recurrence.py."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from jax_impl.layers import Linear
from jax_impl.ops import scan as scans
from jax_impl.ops.scan import scan
from spec.axes import BN, BTD, BTN, BTX
from spec.config import ModelConfig
from spec.mixers import family
from spec.mixers.base import NO_MASKS, Capabilities, Masks, Side
from spec.validation import require_known

METHODS = ("auto", *scans.METHODS)


class LinearRecurrence(nnx.Module):
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
        require_known("mixer method", method, METHODS)
        n = family(config).state_size(config)
        self.method = method
        self.input = Linear(config.d_model, parts * n, compute_dtype)
        self.output = Linear(n, config.d_model, compute_dtype)

    def gates(self, pre: Float[Array, BTX]) -> tuple[Float[Array, BTN], Float[Array, BTN]]:
        """Decay in [0, 1] and drive."""
        raise NotImplementedError

    def read_out(self, states: Float[Array, BTN], pre: Float[Array, BTX]) -> Float[Array, BTN]:
        """What `output` takes; the states, unless a family says otherwise."""
        return states

    def __call__(
        self,
        x: Float[Array, BTD],
        state: Float[Array, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Array, BTD], Float[Array, BN]]:
        pre = self.input(x)
        states, last = scan(*self.gates(pre), state, self.method, *masks)
        return self.output(self.read_out(states, pre)), last


def choose_method(config: ModelConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    return scans.choose_method((batch_size, seq_len, family(config).state_size(config)))


def capabilities(config: ModelConfig, method: str = "auto") -> Capabilities:
    """What this backend can do with the mixer beyond what every mixer must."""
    return Capabilities(compile=True, context_parallel=True, graph_capture=True, scan_methods=True)
