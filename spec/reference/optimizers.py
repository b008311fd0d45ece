"""One AdamW step in NumPy, in the order of operations of spec/optimizer.py."""

from __future__ import annotations

import math

import numpy as np

from spec.checkpoint.tensors import Arrays
from spec.config import TrainingConfig


def clip_by_global_norm(gradients: Arrays, grad_clip: float) -> tuple[dict[str, np.ndarray], float]:
    """(gradients * min(1, grad_clip / norm), norm), norm over all entries; grad_clip 0 leaves them as they are."""
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    scale = min(1.0, grad_clip / norm) if grad_clip > 0.0 and norm > 0.0 else 1.0
    return {path: gradient * gradient.dtype.type(scale) for path, gradient in gradients.items()}, norm


def adamw_step(
    parameters: Arrays,
    gradients: Arrays,
    first_moment: Arrays,
    second_moment: Arrays,
    step: int,
    lr: float,
    training: TrainingConfig,
    decayed: frozenset[str],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and both moments after one step from clipped gradients: the equations of spec/optimizer.py.

    Args:
        step: t, the number of this step, from 1.
        lr: learning rate of this step.
        training: beta1, beta2, adam_eps, weight_decay.
        decayed: paths that weight decay applies to.
    """
    new_parameters, new_first, new_second = {}, {}, {}
    for path, theta in parameters.items():
        g = gradients[path]
        m = training.beta1 * first_moment[path] + (1.0 - training.beta1) * g
        s = training.beta2 * second_moment[path] + (1.0 - training.beta2) * g * g
        update = m / (1.0 - training.beta1**step) / (np.sqrt(s / (1.0 - training.beta2**step)) + training.adam_eps)
        if path in decayed:
            update = update + training.weight_decay * theta
        new_parameters[path], new_first[path], new_second[path] = theta - lr * update, m, s
    return new_parameters, new_first, new_second
