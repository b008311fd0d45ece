"""Both families in JAX and Flax NNX. Twin: torch_impl. Truth: spec/."""

from jax_impl.checkpoint.native import dump_parameters, load_parameters
from jax_impl.model import LiquidNet, LiquidSSMLanguageModel
from jax_impl.ops.scan import scan
from spec.config import LiquidNetConfig, LiquidSSMConfig

__all__ = [
    "LiquidNet",
    "LiquidNetConfig",
    "LiquidSSMConfig",
    "LiquidSSMLanguageModel",
    "dump_parameters",
    "load_parameters",
    "scan",
]
