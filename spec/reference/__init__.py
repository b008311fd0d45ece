"""The truth: the model in float64 NumPy, with every gradient written by hand."""

from spec.reference.model import activations, forward, loss_and_gradients
from spec.reference.optimizers import adamw_step, clip_by_global_norm, muon_step, optimizer_step, orthogonalized

__all__ = [
    "activations",
    "adamw_step",
    "clip_by_global_norm",
    "forward",
    "loss_and_gradients",
    "muon_step",
    "optimizer_step",
    "orthogonalized",
]
