"""A model of either backend against the reference, everything that it gives at once."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from parity.bounds import assert_within, double_bound, plain_bound, relative_error
from parity.strategies import ModelCase
from spec.reference import forward, loss_and_gradients

OUTPUTS = ("logits", "last")
NEIGHBOURS = 8


@lru_cache(maxsize=128)
def reference(case: ModelCase, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Logits, last states, loss, gradient of the initial states and of every parameter, in NumPy of this dtype."""
    arrays, params = case.arrays(), case.parameters
    inputs = arrays.tokens, arrays.states, arrays.resets, arrays.padding
    outputs = dict(zip(OUTPUTS, forward(params, case.config, *inputs, dtype=dtype), strict=True))
    loss, gradients, state_gradient = loss_and_gradients(params, case.config, *arrays, dtype=dtype)
    return outputs | {"loss": np.asarray(loss), "state gradient": state_gradient} | gradients


def run(face: Any, case: ModelCase, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(logits, last states) of the case."""
    arrays = case.arrays()
    inputs = arrays.tokens, arrays.states, arrays.resets, arrays.padding
    return face.model(case.parameters, case.config, *inputs, **options)


def differentiate(face: Any, case: ModelCase, **options: Any) -> dict[str, np.ndarray]:
    """The rest of what `reference` gives, and the last states once more: the loss has a forward pass of its own."""
    loss, gradients, state_gradient, last = face.loss_and_gradients(
        case.parameters, case.config, *case.arrays(), **options
    )
    return {"last": last, "loss": np.asarray(loss), "state gradient": state_gradient, **gradients}


def bounds(case: ModelCase, compute_dtype: str) -> dict[str, np.ndarray]:
    """For everything in `reference(case)`: 1e-12 of scale in float64, 8 times NumPy's own error in float32."""
    truth = reference(case)
    if compute_dtype == "float64":
        return {name: double_bound(x) for name, x in truth.items()}
    errors = [plain_errors(replace(case, neighbour=k)) for k in range(1 + NEIGHBOURS)]
    return {name: plain_bound(x, [one[name] for one in errors]) for name, x in truth.items()}


def plain_errors(case: ModelCase) -> dict[str, float]:
    """Relative errors of the reference run in float32 NumPy."""
    truth, plain = reference(case), reference(case, np.float32)
    return {name: relative_error(plain[name], x) for name, x in truth.items()}


def check(
    face: Any,
    case: ModelCase,
    method: str = "auto",
    compute_dtype: str = "float64",
    label: str = "model",
    **options: Any,
) -> None:
    """Everything within its bound; `options` go to the loss."""
    dtypes = {"method": method, "compute_dtype": compute_dtype}
    logits, last = run(face, case, **dtypes)
    assert logits.dtype == last.dtype == np.dtype(compute_dtype)
    label = f"{label}, {face.NAME}"
    check_outputs(case, logits, last, compute_dtype, label)
    found, truth = differentiate(face, case, **dtypes, **options), reference(case)
    expected = {name: truth[name] for name in found}
    assert len(expected) == len(truth) - 1
    assert_within(found, expected, bounds(case, compute_dtype), f"{label}, {compute_dtype}")


def check_outputs(case: ModelCase, logits: np.ndarray, last: np.ndarray, compute_dtype: str, label: str) -> None:
    """Logits and last states within their bounds."""
    expected = {name: reference(case)[name] for name in OUTPUTS}
    assert_within({"logits": logits, "last": last}, expected, bounds(case, compute_dtype), f"{label}, {compute_dtype}")
