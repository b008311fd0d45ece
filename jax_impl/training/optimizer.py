"""AdamW or Muon, and clipping. Twin: torch_impl. Truth: spec/optimizer.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jax_impl.training.distributed import ParallelContext, to_host
from jax_impl.training.muon import scale_by_muon
from spec.config import ModelConfig, TrainingConfig
from spec.optimizer import MOMENTS, muon_matrices
from spec.parameters import parameter_table

_KEYS = dict(zip(MOMENTS, ("mu", "nu"), strict=True))


def make_optimizer(
    config: ModelConfig, training: TrainingConfig, context: ParallelContext | None = None
) -> optax.GradientTransformation:
    """AdamW over the parameter table, or Muon, without its last factor -lr: that is set at each step."""
    adam, matrices = (
        optax.scale_by_adam(training.beta1, training.beta2, training.adam_eps),
        muon_matrices(config, training),
    )
    return optax.chain(
        scale_by_muon(adam, matrices, training, context) if matrices else adam,
        optax.add_decayed_weights(
            training.weight_decay, {row.path: row.weight_decay for row in parameter_table(config)}
        ),
    )


def clip_by_global_norm(gradients: Mapping[str, Array], grad_clip: float) -> tuple[dict[str, Array], Array]:
    """The gradients scaled by min(1, grad_clip / norm), and the norm; grad_clip 0 leaves them."""
    norm = jnp.sqrt(sum(jnp.square(gradient).sum() for gradient in gradients.values()))
    scale = jnp.minimum(1.0, grad_clip / norm) if grad_clip > 0.0 else 1.0
    return {path: gradient * scale for path, gradient in gradients.items()}, norm


def named_moments(state: Any) -> dict[str, dict[str, Array]]:
    """Both moments by path, where they lie."""
    return {name: getattr(state[0], key) for name, key in _KEYS.items()}


def with_moments(state: Any, moments: Mapping[str, Mapping[str, Any]], step: Any) -> Any:
    """The optimizer state with these moments, after so many steps, which the bias correction counts."""
    return (state[0]._replace(count=step, **{key: moments[name] for name, key in _KEYS.items()}), *state[1:])


def dump_moments(state: Any) -> dict[str, dict[str, np.ndarray]]:
    """Both moments by path; zero before the first step."""
    return {name: {path: to_host(x) for path, x in group.items()} for name, group in named_moments(state).items()}


def load_moments(state: Any, moments: Mapping[str, Mapping[str, np.ndarray]], step: int) -> Any:
    """The optimizer state with both moments and the number of steps taken, in NumPy."""
    arrays = {
        name: {path: np.asarray(moments[name][path], like.dtype) for path, like in group.items()}
        for name, group in named_moments(state).items()
    }
    return with_moments(state, arrays, np.asarray(step, np.int32))
