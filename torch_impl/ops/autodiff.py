"""Derivatives of derivatives, and torch.func. No twin: JAX differentiates its rules. Truth: spec/reference/model.py.

A gradient written out by hand can be differentiated again where it is made of operations of PyTorch that start from the
inputs and outputs as autograd knows them. `once_differentiable` is no refusal: its error is silent for
`torch.autograd.grad(..., inputs)`, which goes only where those inputs are, and gives a wrong number.
Source: torch.autograd.Function, "Double Backward with Custom Functions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def in_transform() -> bool:
    """Whether this is inside torch.func (grad, vmap, jvp, jacrev, ...) or forward-mode differentiation.

    There `auto` takes operations of PyTorch, whose rules it has; a kernel that is named is refused.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def require_no_transform(method: str) -> None:
    """Raises NotImplementedError inside torch.func and forward-mode differentiation, for a method of its own rules."""
    if in_transform():
        raise NotImplementedError(
            f"method {method!r} has no rule for torch.func or forward-mode differentiation; use 'auto' there"
        )


def differentiated_again() -> bool:
    """Asked in a backward pass: whether its gradients will be differentiated (`create_graph=True`)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable_gradients(
    plain: Callable[..., Any], inputs: tuple[Any, ...], gradients: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient of each input, or None, made of operations that autograd can differentiate again.

    Args:
        plain: the same function of the inputs as such operations; it gives a tensor, or one for each of `gradients`.
        inputs: as `ctx.saved_tensors` has them, so that they are part of the graph; others are handed on as they are.
        gradients: of the outputs.
    """
    # A name of its own for each: one may be made of another, and what goes through that is not this function's.
    own = [x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs]
    wanted = [isinstance(x, Tensor) and x.requires_grad for x in own]
    sources = [x for x, want in zip(own, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(plain(*own), sources, gradients, create_graph=True, allow_unused=True))
    return tuple(next(found) if want else None for want in wanted)


def refuse_double_backward(what: str, instead: str) -> None:
    """Raises NotImplementedError in a backward pass whose gradients will be differentiated again."""
    if differentiated_again():
        raise NotImplementedError(f"{what} has no second derivative (create_graph=True); {instead}")
