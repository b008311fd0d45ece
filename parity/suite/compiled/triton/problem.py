"""Problems for the fused mixer with pre-activations of 16 bits, and how far its results may lie from the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import ml_dtypes
import numpy as np

from parity.proof.adapters import MIXER_RESULTS
from parity.proof.bounds import unit
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from parity.proof.bounds.running_error import SIGMOID
from parity.proof.problems.cases import draw_padding, draw_resets
from spec.mixers import liquidnet
from spec.reference.scan import scan_adjoint, sigmoid

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
RATES = 1e-6, 50.0
"""Least and largest decay rate a token."""
SHUT = 1000.0
"""A p at which sigmoid(p) and sigmoid(-p) are 1 and 0 in every format: decay 0, and decay 1 where delta_min is 0."""
STORED = "gated", "pre gradient"
"""What has the dtype of the pre-activations; the rest is float32."""
TANH_ERROR = (2.0 * SIGMOID + 1.0) * unit()
"""2 sigmoid(2 x) - 1: twice a sigmoid, at most 2, off by SIGMOID units, and the unit of a subtraction below 1."""


class MixerInputs(NamedTuple):
    """Arguments and the gradients of both outputs."""

    pre: np.ndarray
    bias: np.ndarray
    state: np.ndarray
    grad_gated: np.ndarray
    grad_last: np.ndarray


@dataclass(frozen=True)
class MixerProblem:
    """Decay rates from RATES, all sizes alike, and among them decays of exactly 0 and 1.

    Args:
        shape: b, t, d.
        dtype: of pre-activations, gated states and their gradients, a key of DTYPES.
        resets, padding: kinds of parity/proof/problems/cases.py.
        small: the values and the state are of the size of 1e-4.
        seed: of everything drawn.
    """

    shape: tuple[int, int, int]
    dtype: str
    resets: str = "some"
    padding: str = "none"
    small: bool = False
    seed: int = 0
    delta_min: float = 0.0

    @cached_property
    def inputs(self) -> MixerInputs:
        random, (b, _, d), dtype = np.random.default_rng(self.seed), self.shape, DTYPES[self.dtype]
        size = 1e-4 if self.small else 1.0
        rates = np.exp(random.uniform(np.log(RATES[0]), np.log(RATES[1]), self.shape))
        # softplus(p) = rate.
        p = np.log(np.expm1(rates))
        p = np.choose(random.integers(12, size=self.shape).clip(max=2), [np.full_like(p, -SHUT), SHUT + 0 * p, p])
        value, gate = size * random.standard_normal(self.shape), random.standard_normal(self.shape)
        pre, grad_gated = np.concatenate([value, p, gate], axis=-1), random.standard_normal(self.shape)
        bias, (state, grad_last) = 0.1 * random.standard_normal(d), random.standard_normal((2, b, d))
        bias, state, grad_last = (x.astype(np.float32) for x in (bias, size * state, grad_last))
        return MixerInputs(pre.astype(dtype), bias, state, grad_gated.astype(dtype), grad_last)

    @cached_property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        return draw_resets(random, self.resets, self.shape[:2]), draw_padding(random, self.padding, self.shape[:2])

    def compute(self, lift: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        """The reference, given a function that makes its input arrays."""
        pre, bias, state, grad_gated, grad_last = (lift(x.astype(np.float64)) for x in self.inputs)
        gated, last, saved = liquidnet.gated_states(pre, bias, self.delta_min, state, *self.masks)
        gradients = liquidnet.gated_states_adjoint(saved, grad_gated, grad_last)
        return dict(zip(MIXER_RESULTS, (gated, last, *gradients), strict=True))

    @cached_property
    def truth(self) -> dict[str, np.ndarray]:
        return self.compute(np.asarray)

    def bounds(self, ulps: float) -> dict[str, np.ndarray]:
        """The float32 estimate; for 16 bits also what the plain tanh costs, and the rounding of what is stored.

        Args:
            ulps: of 16 bits that storing loses: 1/2 where it rounds to nearest, 1 where it truncates.
        """
        bounds = estimate(self.compute, self.truth, unit(), runs=4)
        if self.dtype == "float32":
            return bounds
        cost, kind = tanh_cost(self), ml_dtypes.finfo(DTYPES[self.dtype])
        bounds = {name: bound + cost[name] for name, bound in bounds.items()}
        for name in STORED:
            size = np.abs(self.truth[name]) + bounds[name]
            bounds[name] = bounds[name] + ulps * np.maximum(float(kind.eps) * size, float(kind.smallest_subnormal))
        return bounds


def tanh_cost(problem: MixerProblem) -> dict[str, np.ndarray]:
    """What an absolute error of e = TANH_ERROR in every v = tanh(value) changes each result by.

    A state is a sum of v with weights (1 - decay) times products of decays, which are at most 1 together, and of the
    initial state: it is off by e at most. The gradient g that reaches a state does not know v. To first order

        gated: o e          value: |g| (1 - decay) 2 |v| e          p: decay sigmoid(p) |g| 2 e, its bias the sum
        last: e             gate: |grad_gated| o (1 - o) e            initial state: 0.
    """
    pre, bias, state, grad_gated, grad_last = (x.astype(np.float64) for x in problem.inputs)
    saved = liquidnet.gated_states(pre, bias, problem.delta_min, state, *problem.masks)[2]
    v, p, o, decay, one_minus_decay, masked_decay, states = saved[:7]
    g = np.abs(scan_adjoint(masked_decay, states, state, grad_gated * o, grad_last)[1])
    grad_p = 2.0 * decay * sigmoid(p) * g
    grad_value, grad_gate = 2.0 * g * one_minus_decay * np.abs(v), np.abs(grad_gated) * o * (1.0 - o)
    grad_pre = np.concatenate([grad_value, grad_p, grad_gate], axis=-1)
    sizes = o, np.ones_like(state), grad_pre, grad_p.sum(axis=(0, 1)), np.zeros_like(state)
    return {name: TANH_ERROR * size for name, size in zip(MIXER_RESULTS, sizes, strict=True)}
