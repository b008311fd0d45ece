"""Models of every family in PyTorch. Twin: jax_impl. Truth: spec/."""

import sys as _sys
from pathlib import Path as _Path

if f"{__name__}.train" in _sys.orig_argv and _sys.argv[:1] == ["-m"] and not _sys.flags.safe_path:
    # `python -m torch_impl.train` puts the working directory first, where a `spec` or `tools` would be taken for ours.
    # While Python looks for the module, argv[0] is "-m"; any other program that imports this package keeps its path.
    _root = str(_Path(__file__).resolve().parents[1])
    _sys.path[:1] = [] if _root in _sys.path[1:] else [_root]

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
