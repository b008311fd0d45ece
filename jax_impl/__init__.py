"""Both families in JAX and Flax NNX. Twin: torch_impl/__init__.py. Truth: spec/."""

from jax_impl.checkpoint import dump_parameters, load_parameters
from jax_impl.model import LiquidNet, LiquidSSMLanguageModel
from jax_impl.scan import scan
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
