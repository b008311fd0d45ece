"""One step of AdamW or of Muon in NumPy, in the order of operations of spec/optimizer.py."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from spec.checkpoint.tensors import Arrays
from spec.config import TrainingConfig
from spec.optimizer import NEWTON_SCHULZ, NORM_EPS, Matrix


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


def orthogonalized(update: np.ndarray) -> np.ndarray:
    """A matrix with singular values near 1 and the singular vectors of `update`, [rows, columns]: Newton-Schulz."""
    tall = update.shape[0] > update.shape[1]
    x = update.T if tall else update
    x = x / (np.sqrt((x * x).sum()) + NORM_EPS)
    for a, b, c in NEWTON_SCHULZ:
        square = x @ x.T
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.T if tall else x


def muon_step(
    parameters: Arrays,
    gradients: Arrays,
    first_moment: Arrays,
    lr: float,
    training: TrainingConfig,
    matrices: Iterable[Matrix],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The parameters that matrices are parts of, and their moments, after one step from clipped gradients.

    Args:
        lr: learning rate of this step.
        training: momentum and weight_decay.
        matrices: all parts of each parameter, in order.
    """
    new_first, updates = {}, {}
    for matrix in matrices:
        path, g = matrix.path, gradients[matrix.path]
        new_first[path] = training.momentum * first_moment[path] + (1.0 - training.momentum) * g
        update = training.momentum * new_first[path] + (1.0 - training.momentum) * g
        updates.setdefault(path, []).append(matrix.scale * orthogonalized(update[matrix.start : matrix.stop]))
    joined = {path: np.concatenate(parts) for path, parts in updates.items()}
    decayed = {path: update + training.weight_decay * parameters[path] for path, update in joined.items()}
    return {path: parameters[path] - lr * update for path, update in decayed.items()}, new_first


def optimizer_step(
    parameters: Arrays,
    gradients: Arrays,
    first_moment: Arrays,
    second_moment: Arrays,
    step: int,
    lr: float,
    training: TrainingConfig,
    decayed: frozenset[str],
    matrices: tuple[Matrix, ...] = (),
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`adamw_step`, but for the parameters that `matrices` are parts of, which take a `muon_step`."""
    taken = {matrix.path for matrix in matrices}
    rest = {path: parameter for path, parameter in parameters.items() if path not in taken}
    new, first, second = adamw_step(rest, gradients, first_moment, second_moment, step, lr, training, decayed)
    own, own_first = muon_step(parameters, gradients, first_moment, lr, training, matrices)
    both = {**new, **own}, {**first, **own_first}
    in_order = [{path: one[path] for path in parameters} for one in both]
    return in_order[0], in_order[1], second
