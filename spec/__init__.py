"""What is true of both families, without a framework: configuration, parameters, data order, checkpoints, reference."""

from spec.checkpoint.format import Checkpoint, read_checkpoint, write_checkpoint
from spec.config import LiquidNetConfig, LiquidSSMConfig, TrainingConfig
from spec.init import initial_parameters
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
