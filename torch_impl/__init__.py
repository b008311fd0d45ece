"""Models of every family in PyTorch. Twin: jax_impl. Truth: spec/."""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m torch_impl.train` puts the working directory first, where a `spec` or `tools` would be taken for ours.
    # While Python looks for the module, argv[0] is "-m": a program that imports this package keeps its path.
    _root = str(Path(__file__).resolve().parents[1])
    sys.path[:1] = [] if _root in sys.path[1:] else [_root]

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
