"""Both families in PyTorch. Twin: jax_impl. Truth: spec/."""

from spec.config import LiquidNetConfig, LiquidSSMConfig
from torch_impl.checkpoint.native import dump_parameters, load_parameters
from torch_impl.model import LiquidNet, LiquidSSMLanguageModel
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
