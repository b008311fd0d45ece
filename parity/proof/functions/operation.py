"""An operation as its owner gives it: a NumPy reference, the same function in PyTorch and in JAX, and problems."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Named = dict[str, np.ndarray]


class InputError(ValueError):
    """What can be proved neither right nor wrong; one line, with a remedy."""


@contextmanager
def as_input_error(who: str, remedy: str) -> Iterator[None]:
    """Whatever a function that was given raises, as an InputError.

    Raises:
        InputError: who raises what, and the remedy.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever it raises: it is not ours
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{who} raises {reason}; {remedy}") from error


@dataclass(frozen=True, kw_only=True)
class FunctionOperation:
    """One operation, y = f(x), in NumPy, PyTorch and JAX; `parity.prove` holds them against each other.

        y = f(x)        gradient of x_i = sum_k <g_k, dy_k / dx_i>     g drawn at random, one for each output

    Each function is called with the inputs in the order in which `draw` names them, and gives an array, a tuple of
    arrays, or a dict of named ones; all three the same. Shapes are whatever `draw` draws.

    Args:
        name: what it is called in messages.
        reference: NumPy arrays to arrays, float64 for float64: the truth. It may loop, branch, and fill arrays that it
            makes with `np.zeros_like(x, shape=...)`; `np.asarray(x)`, `float(x)` and `math` lose what is measured.
        draw: a `np.random.Generator` to a dict of arrays, or a tuple that the parameters of `reference` name. Floats
            are rounded to float32, so that all are given the same; integers and booleans are constants.
        torch: tensors to tensors, differentiable; None where there is none.
        jax: arrays to arrays, differentiable, jitted or not as you use it; None where there is none.
        adjoint: the gradients by hand, `(*inputs, *output_gradients) -> gradient`, or a tuple of them: one for each
            float input that is no constant, in order. By default they are those of the reference, by complex steps.
        constants: names of float inputs that are not differentiated.

    Raises:
        ValueError: no backend, or something that is no function.

    Source of the complex step: Squire & Trapp 1998, SIAM Review 40(1).
    """

    name: str
    reference: Callable[..., Any]
    draw: Callable[[np.random.Generator], Any]
    torch: Callable[..., Any] | None = None
    jax: Callable[..., Any] | None = None
    adjoint: Callable[..., Any] | None = None
    constants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for role in ("reference", "draw", "torch", "jax", "adjoint"):
            value = getattr(self, role)
            if not callable(value) and not (value is None and role in ("torch", "jax", "adjoint")):
                raise InputError(f"{self.name}: {role} is {value!r}; give a function")
        if not self.backends:
            raise InputError(f"{self.name}: there is nothing to prove without a backend; give torch=, jax= or both")

    @property
    def backends(self) -> dict[str, Callable[..., Any]]:
        """The functions that are held against the reference, by backend."""
        return {name: one for name, one in (("torch", self.torch), ("jax", self.jax)) if one is not None}

    def problem(self, seed: int) -> Problem:
        """The problem that a seed draws.

        Raises:
            ValueError: `draw` draws another the second time, or what is no array, or is not finite.
        """
        inputs, again = (self._draw(seed) for _ in range(2))
        if list(inputs) != list(again) or any(not _same(inputs[name], again[name]) for name in inputs):
            raise InputError(
                f"{self.name}: draw draws another problem from the same seed {seed}; use its generator alone"
            )
        if unknown := set(self.constants) - set(inputs):
            raise InputError(f"{self.name}: constants name {sorted(unknown)}, which draw does not draw: {list(inputs)}")
        return Problem(self, seed, inputs)

    def _draw(self, seed: int) -> Named:
        with as_input_error(f"{self.name}: draw", "mend it"):
            drawn = self.draw(np.random.default_rng(seed))
        if isinstance(drawn, np.ndarray):
            drawn = (drawn,)
        if isinstance(drawn, tuple | list):
            names = [*inspect.signature(self.reference).parameters][: len(drawn)]
            if len(names) < len(drawn):
                raise InputError(f"{self.name}: draw draws {len(drawn)} inputs, reference names {names}; draw a dict")
            drawn = dict(zip(names, drawn, strict=True))
        if not isinstance(drawn, Mapping) or not drawn:
            raise InputError(f"{self.name}: draw gives {type(drawn).__name__}; give a dict or a tuple of arrays")
        return {name: self._input(name, value) for name, value in drawn.items()}

    def _input(self, name: str, value: Any) -> np.ndarray:
        with as_input_error(f"{self.name}: draw gives {name}, and NumPy", "give an array"):
            array = np.array(value)
        if array.dtype.kind not in "fiub":
            raise InputError(f"{self.name}: draw gives {name} as {array.dtype}; give floats, integers or booleans")
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        if not np.isfinite(array).all():
            raise InputError(f"{self.name}: draw gives {name} with numbers that float32 has not: draw finite ones")
        # All runs share the constants: a reference that writes into one would change the problem of the next.
        array.setflags(write=False)
        return array


@dataclass(frozen=True)
class Problem:
    """One problem of an operation: its inputs as both backends are given them, float32 and constants."""

    operation: FunctionOperation
    seed: int
    inputs: Named

    @property
    def differentiated(self) -> list[str]:
        """The inputs that have a gradient."""
        floats = (name for name, array in self.inputs.items() if array.dtype.kind == "f")
        return [name for name in floats if name not in self.operation.constants]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return sum(array.size for array in self.inputs.values())

    @cached_property
    def outputs(self) -> Named:
        """What the reference gives in float64.

        Raises:
            ValueError: not float64, not finite, or something else the second time.
        """
        who = f"{self.operation.name}: the reference"
        with as_input_error(who, "mend it, or what draw draws"):
            found, again = (
                named(self.operation.reference(*(self.cast(x, "float64") for x in self.inputs.values())))
                for _ in range(2)
            )
        for name, array in found.items():
            kind = array.dtype if isinstance(array, np.ndarray | np.generic) else type(array).__name__
            if getattr(kind, "kind", "") not in ("f", "c"):
                raise InputError(f"{who} gives {name} as {kind}; give arrays of floats, and leave out what is none")
            if array.dtype != np.float64:
                raise InputError(f"{who} gives {name} as {array.dtype} for float64 inputs; compute in their dtype")
            if not np.isfinite(array).all():
                raise InputError(
                    f"{who} gives {name} that is not finite on the problem of seed {self.seed}; draw others"
                )
            if not _same(array, again[name]):
                raise InputError(f"{who} gives another {name} the second time; make it a function of its inputs")
        return found

    @cached_property
    def output_gradients(self) -> Named:
        """One for each output, drawn from the seed; exact in float32."""
        random = np.random.default_rng((self.seed, 1))
        return {name: random.standard_normal(x.shape).astype(np.float32) for name, x in self.outputs.items()}

    def cast(self, array: np.ndarray, dtype: str) -> np.ndarray:
        """Floats in the dtype of a computation; constants as they are."""
        return array.astype(dtype) if array.dtype.kind == "f" else array

    def __str__(self) -> str:
        """`x [4, 8] up to 0.0031, positions [8] up to 7`: what kind of a problem it is."""
        sizes = ((name, x.shape, np.abs(x.astype(np.float64)).max(initial=0.0)) for name, x in self.inputs.items())
        return ", ".join(f"{name} {list(shape)} up to {largest:.3g}" for name, shape, largest in sizes)


def named(results: Any) -> dict[str, Any]:
    """The outputs of a function by name: `output`, `output 0` and so on, the fields of a NamedTuple, a dict's keys."""
    if isinstance(results, Mapping):
        return {str(name): x for name, x in results.items()}
    if isinstance(results, tuple | list):
        names = getattr(results, "_fields", None) or [f"output {i}" for i in range(len(results))]
        return dict(zip(names, results, strict=True))
    return {"output": np.asarray(results) if isinstance(results, float | np.generic) else results}


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
