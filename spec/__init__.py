"""What is true of every family, without a framework: configuration, parameters, data order, checkpoints, reference."""

from spec.checkpoint.format import Checkpoint, read_checkpoint, write_checkpoint
from spec.config import TrainingConfig
from spec.init import initial_parameters
from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.mixers.liquidnet import LiquidNetConfig
from spec.parameters import num_parameters, parameter_table
from spec.presets import PRESETS

__all__ = [
    "PRESETS",
    "Checkpoint",
    "LiquidNetConfig",
    "LiquidSSMConfig",
    "TrainingConfig",
    "initial_parameters",
    "num_parameters",
    "parameter_table",
    "read_checkpoint",
    "write_checkpoint",
]
