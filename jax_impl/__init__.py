"""Models of every family in JAX and Flax NNX. Twin: torch_impl. Truth: spec/."""

from jax_impl.checkpoint.native import dump_parameters, load_parameters
from jax_impl.mixers.liquid_ssm import LiquidSSMLanguageModel
from jax_impl.mixers.liquidnet import LiquidNet
from jax_impl.ops.scan import scan
from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.mixers.liquidnet import LiquidNetConfig

__all__ = [
    "LiquidNet",
    "LiquidNetConfig",
    "LiquidSSMConfig",
    "LiquidSSMLanguageModel",
    "dump_parameters",
    "load_parameters",
    "scan",
]
