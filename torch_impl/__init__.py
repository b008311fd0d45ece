"""Models of every family in PyTorch. Twin: jax_impl. Truth: spec/."""

from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.mixers.liquidnet import LiquidNetConfig
from torch_impl.checkpoint.native import dump_parameters, load_parameters
from torch_impl.mixers.liquid_ssm import LiquidSSMLanguageModel
from torch_impl.mixers.liquidnet import LiquidNet
from torch_impl.ops.scan import scan

__all__ = [
    "LiquidNet",
    "LiquidNetConfig",
    "LiquidSSMConfig",
    "LiquidSSMLanguageModel",
    "dump_parameters",
    "load_parameters",
    "scan",
]
