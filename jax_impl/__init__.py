"""Models of every family in JAX and Flax NNX. Twin: torch_impl. Truth: spec/."""

import sys as _sys
from pathlib import Path as _Path

if f"{__name__}.train" in _sys.orig_argv and _sys.argv[:1] == ["-m"] and not _sys.flags.safe_path:
    # `python -m jax_impl.train` puts the working directory first, where a `spec` or `tools` would be taken for ours.
    # While Python looks for the module, argv[0] is "-m"; any other program that imports this package keeps its path.
    _root = str(_Path(__file__).resolve().parents[1])
    _sys.path[:1] = [] if _root in _sys.path[1:] else [_root]

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
