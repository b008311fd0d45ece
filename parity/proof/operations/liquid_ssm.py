"""The operations of a Liquid SSM: the states of its layer, dense and diagonal; its bounds are estimates."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.proof.adapters import LIQUID_RESULTS
from parity.proof.bounds.monte_carlo_arithmetic import Compute
from parity.proof.operations.base import Arrays, Estimated, cast, float32
from parity.proof.operations.models import Block, Model
from parity.proof.problems.cases import LayerCase, ModelCase, draw_values, perturbed_parameters
from spec.config import LiquidSSMConfig
from spec.mixers.liquid_ssm.reference import (
    STEPS_A_TIME_CONSTANT,
    Clock,
    Sensed,
    liquid_states,
    liquid_states_adjoint,
)
from spec.reference import activations, blocks

NEAR = 2.0**-16
"""Two numbers that differ by less than this fraction: float32 may find the other one to be the least."""


class LiquidStates(Estimated):
    choice, dtypes = "liquid_ssm", ("float32", "float64")

    def arrays(self, case: LayerCase) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Weights by path; pre-activations, initial state, and the gradients of both outputs."""
        random, config = case.random, case.config
        assert isinstance(config, LiquidSSMConfig)
        n, b = config.d_state, case.shape[0]
        pre = draw_values(random, case.values, (*case.shape, n + config.d_tau))
        state, of_last = random.standard_normal((2, b, n))
        weights = blocks.within(perturbed_parameters(config, case.seed % 8), "blocks.0.mixer.")
        inside = {path: x for path, x in weights.items() if path.startswith(("tau", "log", "frequency"))}
        return inside, float32(pre, state, random.standard_normal((*case.shape, n)), of_last)

    def masks(self, case: LayerCase) -> tuple[np.ndarray, ...]:
        """Resets, padding, noise, in every second case zero, and gaps, in two of three all one."""
        random, config = np.random.default_rng((case.seed, 1)), case.config
        assert isinstance(config, LiquidSSMConfig)
        noise, gaps = random.standard_normal((*case.shape, config.d_state)), 10.0 ** random.uniform(-2, 1, case.shape)
        gaps = np.ones(case.shape) if case.seed % 3 else np.where(random.random(case.shape) < 0.1, 0.0, gaps)
        # Zeros and ones in place of None, which would be another program to compile.
        return *case.masks(), *float32(noise * (case.seed % 2), gaps)

    def compute(self, case: LayerCase) -> Compute:
        def run(lift):
            weights, arrays = self.arrays(case)
            pre, state, of_states, of_last = (lift(x) for x in arrays)
            masks = [x if x.dtype == bool else lift(x) for x in self.masks(case)]
            lifted = {path: lift(x) for path, x in weights.items()}
            states, last, saved = liquid_states(pre, lifted, case.config, state, *masks)
            of_pre, of_weights, of_state = liquid_states_adjoint(saved, of_states, of_last)
            found = dict(zip(LIQUID_RESULTS, (states, last, of_pre, of_state), strict=True))
            return found | {_field(path): x for path, x in of_weights.items()}

        return run

    def clocks(self, case: LayerCase) -> list[Clock]:
        """The true clock of each layer."""
        weights, (pre, state, *_) = self.arrays(case)
        return [liquid_states(*_doubles(pre), weights, case.config, *_doubles(state), *self.masks(case))[2].clock]

    def run(self, adapter: Any, case: LayerCase, method: str, dtype: str) -> Arrays:
        weights, (pre, state, *gradients) = self.arrays(case)
        masks = [cast(x, dtype) for x in self.masks(case)]
        of = {_field(path): cast(x, dtype) for path, x in weights.items()}
        gradients = [cast(x, dtype) for x in gradients]
        return adapter.liquid_states_vjp(
            case.config, cast(pre, dtype), cast(state, dtype), of, method, masks, gradients
        )


class DenseStates(LiquidStates):
    name = "dense_states"

    def methods(self, adapter: Any) -> tuple[str, ...]:
        """All but `parallel`, which refuses."""
        return tuple(method for method in super().methods(adapter) if method != "parallel")


class DiagonalStates(LiquidStates):
    name = "diagonal_states"


class SSMBlock(Block):
    """Not in bfloat16, where the least of the time constants is often another one, and its gradient with it."""

    name, dtypes = "ssm_block", ("float32", "float64")

    def clocks(self, case: LayerCase) -> list[Clock]:
        """The true clock of its layer."""
        weights, (x, state, *_) = self.arrays(case)
        visited = blocks.block(*_doubles(x), weights, case.config, *_doubles(state), *case.masks())[3]
        assert isinstance(visited.mixer, Sensed)
        return [visited.mixer.evolved.clock]


class SSMModel(Model):
    """With the method that `auto` takes: the others are proved on the states. Not in bfloat16, as its blocks."""

    name, choice, dtypes = "ssm_model", None, ("float32", "float64")

    def methods(self, adapter: Any) -> tuple[str, ...]:
        return ("auto",)

    def of_ssm(self, case: ModelCase) -> tuple[np.ndarray, ...]:
        """Noise of every layer; gaps up to ten, the same for all."""
        random, c, shape = np.random.default_rng((case.seed, 1)), case.config, (case.batch, case.length)
        return float32(random.standard_normal((c.n_layers, *shape, c.d_state)), 10.0 ** random.uniform(-1, 1, shape))

    def clocks(self, case: ModelCase) -> list[Clock]:
        """The true clock of each layer."""
        params, arrays, (noise, gaps) = case.parameters, case.arrays(), self.of_ssm(case)
        masks = arrays.resets, arrays.padding
        given = activations(params, case.config, arrays.tokens, arrays.states, *masks, noise=noise, gaps=gaps)
        found = []
        for i, (state,) in enumerate(map(_doubles, arrays.states)):
            weights = blocks.within(params, f"blocks.{i}.mixer.")
            inputs = given[f"blocks.{i}.mixer.input"], weights, case.config, state, *masks, noise[i], gaps
            found.append(liquid_states(*inputs)[2].clock)
        return found


def clear_of_ties(operation: LiquidStates | SSMBlock | SSMModel, case: Any) -> bool:
    """Whether at every token the step is set by what is clearly the least.

    A gradient jumps where another time constant becomes the least, or the target does: at such a place float32 is right
    with either, and no bound tells which.
    """
    for clock in operation.clocks(case):
        target = np.full((*clock.tau.shape[:-1], 1), case.config.target_dt)
        steps = np.sort(np.concatenate([clock.tau / STEPS_A_TIME_CONSTANT, target], axis=-1), axis=-1)
        if (steps[..., 1] - steps[..., 0] <= NEAR * steps[..., 0]).any():
            return False
    return True


def _field(path: str) -> str:
    """A weight's name in Dynamics."""
    return path.removesuffix(".weight")


def _doubles(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(x.astype(np.float64) for x in arrays)
