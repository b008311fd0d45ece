"""What an operation is to the proof."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from parity.proof.bounds import double_bound
from parity.proof.bounds.monte_carlo_arithmetic import Compute, estimate

Arrays = Mapping[str, np.ndarray]
UNITS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}


class Operation:
    """One operation of the model, as inputs to outputs and output gradients to input gradients.

    `theorem`: its float32 bound is proved; else an estimate (monte_carlo_arithmetic.py). `choice` names the dict of
    METHODS that it has, if any. `share`: how many of the problems that a sweep was asked for it gets, by their cost.
    """

    name: str
    theorem = True
    choice: str | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    share = 1.0

    def methods(self, adapter: ModuleType) -> tuple[str, ...]:
        return adapter.METHODS[self.choice] if self.choice else ("",)

    def truth(self, case: Any) -> Arrays:
        """Everything that the operation gives, in float64."""
        raise NotImplementedError

    def bounds(self, case: Any, dtype: Any = np.float32) -> Arrays:
        """How far a result in this dtype may lie from each entry of the truth."""
        raise NotImplementedError

    def bounds_in(self, case: Any, dtype: str) -> Arrays:
        """`bounds`; in float64 twice, since the reference rounds too, and never more than 1e-12 of `scale`."""
        if dtype == "float32":
            return self.bounds(case)
        truth, proved = self.truth(case), self.bounds(case, np.float64)
        return {name: np.minimum(2.0 * proved[name], 1e-12 * self.scale(x)) for name, x in truth.items()}

    def scale(self, exact: np.ndarray) -> float:
        """What 1e-12 is taken of: the tensor's largest entry."""
        return float(np.abs(exact).max(initial=0.0))

    def run(self, adapter: ModuleType, case: Any, method: str, dtype: str) -> Arrays:
        """What a backend gives."""
        raise NotImplementedError

    def problems(self, draw: Any) -> Any:
        """A Hypothesis strategy of cases, from those of parity/proof/problems/strategies.py, a module, as `draw`."""
        raise NotImplementedError


class SelfTest(NamedTuple):
    """What stands for the methods of an operation in the self-test before training.

    Args:
        operation: a key of OPERATIONS.
        cases: few shapes, since each is compiled; several chunks and a rest.
    """

    operation: str
    cases: tuple[Any, ...]


class Estimated(Operation):
    """An operation without a theorem: its reference, run on arrays that round at random, says how far rounding goes."""

    theorem, share = False, 0.1
    dtypes = ("float32", "float64", "bfloat16")

    def compute(self, case: Any) -> Compute:
        """The reference as a function of how its inputs are lifted to arrays that round."""
        raise NotImplementedError

    def truth(self, case: Any) -> Arrays:
        return self.compute(case)(lambda x: np.asarray(x, np.float64))

    def bounds_in(self, case: Any, dtype: str) -> Arrays:
        """In float64 1e-12 of the tensor's largest entry; where all of it is small by cancellation, what that costs.

        The cost is the estimate for a unit of 2^-40, which float64 can show, scaled down to 2^-53; for both sides.
        """
        compute, truth = self.compute(case), self.truth(case)
        if dtype != "float64":
            return estimate(compute, truth, UNITS["float32"], product_unit=UNITS[dtype])
        cost = estimate(compute, truth, 2.0**-40, runs=4)
        return {name: np.maximum(double_bound(x), 2.0 * 2.0**-13 * cost[name]) for name, x in truth.items()}


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """Floats in the dtype of the computation; bfloat16 is a matter of the products, its arrays are float32."""
    wide = np.float64 if dtype == "float64" else np.float32
    return array.astype(wide) if array.dtype.kind == "f" else array


def float32(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """What was drawn, rounded to what both backends can be given exactly."""
    return tuple(np.asarray(x, np.float32) for x in arrays)
