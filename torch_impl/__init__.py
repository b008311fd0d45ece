"""Both families in PyTorch. Twin: jax_impl/__init__.py. Truth: spec/."""

from spec.config import LiquidNetConfig, LiquidSSMConfig
from torch_impl.checkpoint import dump_parameters, load_parameters
from torch_impl.model import LiquidNet, LiquidSSMLanguageModel
from torch_impl.scan import scan

__all__ = [
    "LiquidNet",
    "LiquidNetConfig",
    "LiquidSSMConfig",
    "LiquidSSMLanguageModel",
    "dump_parameters",
    "load_parameters",
    "scan",
]
