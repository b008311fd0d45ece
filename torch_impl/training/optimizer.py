"""AdamW or Muon, and clipping. Twin: jax_impl. Truth: spec/optimizer.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spec.config import TrainingConfig
from spec.optimizer import MOMENTS, decayed_paths, muon_matrices
from torch_impl.checkpoint.native import from_numpy, named_parameters, to_numpy
from torch_impl.training.distributed import ParallelContext, full_tensor, local_part, to_local
from torch_impl.training.muon import MOMENTUM, Muon

if TYPE_CHECKING:
    from torch_impl.model import LanguageModel

_KEYS = dict(zip(MOMENTS, (MOMENTUM, "exp_avg_sq"), strict=True))


def make_optimizer(
    model: LanguageModel, training: TrainingConfig, context: ParallelContext | None = None
) -> torch.optim.AdamW:
    """AdamW over the parameter table, or Muon: matrices decayed, norms and biases not; the rate is set at each step."""
    decayed = decayed_paths(model.config)
    parameters = named_parameters(model)
    matrices = [p for path, p in parameters.items() if path in decayed]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": [p for path, p in parameters.items() if path not in decayed], "weight_decay": 0.0},
    ]
    betas = training.beta1, training.beta2
    # One pass over memory where PyTorch has it: of other implementations it chooses itself.
    fused = True if model.embedding.weight.device.type == "cpu" else None
    adamw: dict[str, Any] = {"lr": 0.0, "betas": betas, "eps": training.adam_eps, "fused": fused}
    taken = [(parameters[matrix.path], matrix) for matrix in muon_matrices(model.config, training)]
    if not taken:
        return torch.optim.AdamW(groups, **adamw)
    return Muon(groups, taken, training, context or ParallelContext(), **adamw)


def clip_by_global_norm(gradients: Iterable[Tensor], grad_clip: float) -> Tensor:
    """Scale the gradients in place by min(1, grad_clip / norm), and return the norm; grad_clip 0 leaves them."""
    gradients = list(gradients)
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    if grad_clip > 0.0:
        torch._foreach_mul_([to_local(gradient) for gradient in gradients], (grad_clip / norm).clamp(max=1.0))
    return norm


def named_moments(model: LanguageModel, optimizer: torch.optim.AdamW) -> dict[str, dict[str, Tensor]]:
    """Both moments by path, as the optimizer holds them; made, of zeros, where it has not taken a step."""
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in MOMENTS}
    taken = optimizer.taken if isinstance(optimizer, Muon) else ()
    # By identity: tensors are compared number by number.
    with_one = {id(parameter) for parameter in taken}
    for path, parameter in named_parameters(model).items():
        state = optimizer.state[parameter]
        keys = {name: key for name, key in _KEYS.items() if key == MOMENTUM or id(parameter) not in with_one}
        if not state:
            state.update(step=_steps(0), **{key: torch.zeros_like(parameter) for key in keys.values()})
        for name, key in keys.items():
            moments[name][path] = state[key].detach()
    return moments


def dump_moments(model: LanguageModel, optimizer: torch.optim.AdamW) -> dict[str, dict[str, np.ndarray]]:
    """Both moments by path; zero before the first step."""
    moments = named_moments(model, optimizer)
    return {name: {path: to_numpy(tensor) for path, tensor in tensors.items()} for name, tensors in moments.items()}


def load_moments(
    model: LanguageModel, optimizer: torch.optim.AdamW, moments: Mapping[str, Mapping[str, np.ndarray]], step: int
) -> None:
    """Set both moments, and the number of steps taken, which the bias correction counts."""
    for name, tensors in named_moments(model, optimizer).items():
        for path, tensor in tensors.items():
            to_local(tensor).copy_(local_part(from_numpy(moments[name][path]), tensor))
    set_steps(optimizer, step)


def set_steps(optimizer: torch.optim.AdamW, step: int) -> None:
    """Set the number of steps taken, which the bias correction counts."""
    for state in optimizer.state.values():
        state["step"] = _steps(step)


def _steps(count: int) -> Tensor:
    """A number of steps as AdamW holds it, whatever a program has set as default dtype and device."""
    return torch.tensor(float(count), dtype=torch.float32, device="cpu")
