"""Muon for the matrices of the blocks, AdamW for the rest. Twin: torch_impl. Truth: spec/optimizer.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jax_impl.training.distributed import AXES, ParallelContext
from spec.config import TrainingConfig
from spec.optimizer import NEWTON_SCHULZ, NORM_EPS, Matrix


def orthogonalized(x_mrc: Array, dtype: Any = None) -> Array:
    """Newton-Schulz iterations of m matrices, rows <= columns, [m, r, c]: `spec.reference.orthogonalized` of each.

    Args:
        x_mrc: float32 or float64.
        dtype: what the operands of products are rounded to; None leaves them as they are.
    """
    norm_m11 = jnp.sqrt(jnp.square(x_mrc).sum(axis=(-2, -1), keepdims=True))
    x, wide = x_mrc / (norm_m11 + NORM_EPS), x_mrc.dtype
    narrow = dtype or wide

    def product(left: Array, right: Array) -> Array:
        operands = left.astype(narrow), right.astype(narrow)
        return jnp.matmul(*operands, precision="highest", preferred_element_type=wide)

    for a, b, c in NEWTON_SCHULZ:
        square = product(x, x.mT)
        x = a * x + product(b * square + c * product(square, square), x)
    return x


def scale_by_muon(
    adam: optax.GradientTransformation,
    matrices: Sequence[Matrix],
    training: TrainingConfig,
    context: ParallelContext | None = None,
) -> optax.GradientTransformation:
    """`adam`, and Muon for what `matrices` are parts of, without rate and decay.

    Its state is that of `adam` with the first moments of all parameters, so that each has its name.

    Args:
        adam: `optax.scale_by_adam`.
        matrices: each part of a parameter that Muon takes, all parts of one side by side and in order.
        training: momentum and dtype of the iterations.
        context: the devices among which the matrices are divided.
    """
    parts: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        parts.setdefault(matrix.path, []).append(matrix)

    def rest(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {path: x for path, x in tree.items() if path not in parts}

    def init(params: Any) -> Any:
        state: Any = adam.init(rest(params))
        return state._replace(mu={**state.mu, **{path: jnp.zeros_like(params[path]) for path in parts}})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps: Any
        new: Any
        steps, new = adam.update(rest(updates), state._replace(mu=rest(state.mu)), None)
        momentum, directions = {}, {}
        for path in parts:
            momentum[path] = training.momentum * state.mu[path] + (1.0 - training.momentum) * updates[path]
            directions[path] = training.momentum * momentum[path] + (1.0 - training.momentum) * updates[path]
        return {**steps, **_updates(directions, parts, training, context)}, new._replace(mu={**new.mu, **momentum})

    return optax.GradientTransformation(init, update)


def _updates(
    directions: Mapping[str, Array],
    parts: Mapping[str, Sequence[Matrix]],
    training: TrainingConfig,
    context: ParallelContext | None,
) -> dict[str, Array]:
    """The whole update of each parameter; matrices of one shape are multiplied together."""
    wide: dict[tuple[int, int], list[Array]] = {}
    for path, own in parts.items():
        for matrix in own:
            x = directions[path][matrix.start : matrix.stop]
            wide.setdefault(matrix.shape, []).append(x.mT if len(x) > x.shape[1] else x)
    dtype = jnp.bfloat16 if training.newton_schulz_dtype == "bfloat16" else None
    found = {shape: iter(_divided(jnp.stack(alike), dtype, context)) for shape, alike in wide.items()}
    updates = {}
    for path, own in parts.items():
        pieces = []
        for matrix in own:
            x = next(found[matrix.shape])
            pieces.append(matrix.scale * (x.mT if matrix.stop - matrix.start > matrix.columns else x))
        updates[path] = jnp.concatenate(pieces)
    return updates


def _divided(x_mrc: Array, dtype: Any, context: ParallelContext | None) -> Array:
    """Each matrix by one device, then by all: the iterations cost more than to send their result."""
    count = len(x_mrc)
    if context is None or context.mesh.size == 1:
        return orthogonalized(x_mrc, dtype)
    filled = jnp.pad(x_mrc, ((0, -count % context.mesh.size), (0, 0), (0, 0)))
    own = jax.lax.with_sharding_constraint(filled, context.sharding(AXES))
    return jax.lax.with_sharding_constraint(orthogonalized(own, dtype), context.sharding())[:count]
