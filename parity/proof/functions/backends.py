"""A function in PyTorch or JAX as NumPy in, NumPy out: its outputs, and the gradients of its inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

from parity.proof.functions.operation import InputError, Named, Problem, named
from parity.proof.functions.truth import gradient_name


def missing(backend: str) -> bool:
    """Whether the framework is not installed."""
    return importlib.util.find_spec(backend) is None


def require_device(device: str) -> None:
    """Raises ValueError where PyTorch has no such device here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"PyTorch has no device {device!r} here ({reason}); leave it out for cpu") from error


def run(backend: str, problem: Problem, dtype: str, device: str) -> Named:
    """Outputs and gradients of the operation's function, computed in `dtype`.

    Args:
        backend: `torch` or `jax`.
        problem: on which.
        dtype: `float32` or `float64`, of all float inputs.
        device: where PyTorch computes; JAX takes its default device.

    Raises:
        ValueError: it gives other outputs than the reference, by name or shape.
    """
    if backend == "torch":
        return _torch(problem, dtype, device)
    return _jax(problem, dtype)


def _torch(problem: Problem, dtype: str, device: str) -> Named:
    import torch

    inputs = {name: torch.tensor(problem.cast(x, dtype), device=device) for name, x in problem.inputs.items()}
    leaves = [inputs[name].requires_grad_() for name in problem.differentiated]
    with _full_float32_in_torch():
        outputs = _like_the_reference(problem, "torch", problem.operation.backends["torch"](*inputs.values()))
        reached = {name: x for name, x in outputs.items() if x.requires_grad}
        # What no output depends on has a gradient of zero.
        gradients: Any = [None] * len(leaves)
        if reached and leaves:
            given = [
                torch.tensor(problem.output_gradients[name], device=device).to(x.dtype) for name, x in reached.items()
            ]
            gradients = torch.autograd.grad([*reached.values()], leaves, given, allow_unused=True)
    named_gradients = {
        gradient_name(name): torch.zeros_like(x) if gradient is None else gradient
        for name, x, gradient in zip(problem.differentiated, leaves, gradients, strict=True)
    }
    return {name: _numpy(x.detach().cpu()) for name, x in (outputs | named_gradients).items()}


def _numpy(tensor: Any) -> np.ndarray:
    # torch gives no bfloat16 to NumPy.
    narrow = str(tensor.dtype) == "torch.bfloat16"
    return tensor.float().numpy().astype(ml_dtypes.bfloat16) if narrow else tensor.numpy()


def _jax(problem: Problem, dtype: str) -> Named:
    import jax
    import jax.numpy as jnp

    with _float64_in_jax(dtype == "float64"), jax.default_matmul_precision("highest"):
        arrays = {name: jnp.asarray(problem.cast(x, dtype)) for name, x in problem.inputs.items()}

        def function(*values: Any) -> dict[str, Any]:
            given = arrays | dict(zip(problem.differentiated, values, strict=True))
            return _like_the_reference(problem, "jax", problem.operation.backends["jax"](*given.values()))

        if not problem.differentiated:
            return {name: np.asarray(x) for name, x in function().items()}
        outputs, pull_back = jax.vjp(function, *(arrays[name] for name in problem.differentiated))
        given = {name: jnp.asarray(problem.output_gradients[name]).astype(x.dtype) for name, x in outputs.items()}
        gradients = dict(zip(map(gradient_name, problem.differentiated), pull_back(given), strict=True))
        return {name: np.asarray(x) for name, x in (outputs | gradients).items()}


def _like_the_reference(problem: Problem, backend: str, results: Any) -> dict[str, Any]:
    """The outputs by name, in the reference's order; their names and shapes are the reference's."""
    found, truth = named(results), problem.outputs
    who = f"{problem.operation.name}: {backend} gives"
    if set(found) != set(truth):
        raise InputError(f"{who} {list(found)}, the reference {list(truth)}; give the same outputs by the same names")
    for name, exact in truth.items():
        if tuple(np.shape(found[name])) != exact.shape:
            shapes = f"{list(np.shape(found[name]))}, the reference {list(exact.shape)}"
            raise InputError(
                f"{who} {name} of shape {shapes} on the problem of seed {problem.seed}; give the same shapes"
            )
    return {name: found[name] for name in truth}


@contextmanager
def _full_float32_in_torch() -> Iterator[None]:
    """float32 means float32: TensorFloat-32 is off, and is afterwards what it was."""
    import torch

    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [one.allow_tf32 for one in switches]
    for one in switches:
        one.allow_tf32 = False
    try:
        yield
    finally:
        for one, value in zip(switches, before, strict=True):
            one.allow_tf32 = value


def _float64_in_jax(wide: bool) -> Any:
    """JAX in float64 for a block, or not; `jax.enable_x64` since 0.8."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(wide)
    from jax.experimental import enable_x64

    return enable_x64(wide)
