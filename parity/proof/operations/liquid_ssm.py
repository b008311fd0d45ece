"""The operations of a Liquid SSM: the states of its layer, dense and diagonal; its bounds are estimates."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from parity.proof.adapters import load_module
from parity.proof.bounds.monte_carlo_arithmetic import Compute
from parity.proof.operations.base import Arrays, Estimated, SelfTest, cast, float32
from parity.proof.operations.models import Block, Model
from parity.proof.problems.cases import LayerCase, ModelCase, draw_values, perturbed_parameters
from spec.mixers.base import Masks
from spec.mixers.liquid_ssm import LiquidSSMConfig, SavedMixer
from spec.mixers.liquid_ssm.reference import STEPS_A_TIME_CONSTANT, Clock, liquid_states, liquid_states_adjoint
from spec.presets import PRESETS
from spec.reference import activations, blocks

LIQUID_RESULTS = ("states", "last", "pre gradient", "state gradient")

# The content sets the step of about half of the tokens.
DENSE = LiquidSSMConfig(13, d_model=8, d_ff=12, n_layers=2, max_seq_len=8, d_state=4, d_tau=3, exploration_rate=0.5)
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "diagonal": {"state": "diagonal"},
    "as_printed": {"hippo": "as_printed"},
}
DIAGONAL = replace(DENSE, state="diagonal")
AS_PRINTED = replace(DENSE, hippo="as_printed")
WIDER, WIDER_DIAGONAL = (replace(config, d_state=16) for config in (DENSE, DIAGONAL))
NANO_BLOCK = replace(PRESETS["ssm-nano"], vocab_size=257, n_layers=1)
SHORT = ((1, 1), (2, 31))

NEAR = 2.0**-16
"""Two numbers that differ by less than this fraction: float32 may find the other one to be the least."""


def _states(backend, static, masks, pre, state, *weights):
    """`liquid_states` of a backend; static: configuration, method, and the fields of Dynamics that are given."""
    config, method, fields = static
    module = load_module(backend, "mixers.liquid_ssm")
    of = module.Dynamics(**{"frequency": None, **dict(zip(fields, weights, strict=True))})
    return module.liquid_states(pre, of, config, state, *masks, method=method)


class LiquidStates(Estimated):
    choice, dtypes, share = "liquid_ssm", ("float32", "float64"), 0.04

    def arrays(self, case: LayerCase) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Weights by path; pre-activations, initial state, and the gradients of both outputs."""
        random, config = case.random, case.config
        assert isinstance(config, LiquidSSMConfig)
        n, b = config.d_state, case.shape[0]
        pre = draw_values(random, case.values, (*case.shape, n + config.d_tau))
        state, grad_last = random.standard_normal((2, b, n))
        weights = blocks.within(perturbed_parameters(config, case.seed % 8), "blocks.0.mixer.")
        inside = {path: x for path, x in weights.items() if path.startswith(("tau", "log", "frequency"))}
        return inside, float32(pre, state, random.standard_normal((*case.shape, n)), grad_last)

    def masks(self, case: LayerCase) -> tuple[np.ndarray, ...]:
        """Resets, padding, noise, in every second case zero, and dt_scale, in two of three all one."""
        random, config = np.random.default_rng((case.seed, 1)), case.config
        assert isinstance(config, LiquidSSMConfig)
        noise, scale = random.standard_normal((*case.shape, config.d_state)), 10.0 ** random.uniform(-2, 1, case.shape)
        scale = np.ones(case.shape) if case.seed % 3 else np.where(random.random(case.shape) < 0.1, 0.0, scale)
        # Zeros and ones in place of None, which would be another program to compile.
        return *case.masks(), *float32(noise * (case.seed % 2), scale)

    def compute(self, case: LayerCase) -> Compute:
        def run(lift):
            weights, arrays = self.arrays(case)
            pre, state, grad_states, grad_last = (lift(x) for x in arrays)
            masks = [x if x.dtype == bool else lift(x) for x in self.masks(case)]
            lifted = {path: lift(x) for path, x in weights.items()}
            states, last, saved = liquid_states(pre, lifted, case.config, state, *masks)
            grad_pre, grad_weights, grad_state = liquid_states_adjoint(saved, grad_states, grad_last)
            found = dict(zip(LIQUID_RESULTS, (states, last, grad_pre, grad_state), strict=True))
            return found | {_field(path): x for path, x in grad_weights.items()}

        return run

    def clocks(self, case: LayerCase) -> list[Clock]:
        """The true clock of each layer."""
        weights, (pre, state, *_) = self.arrays(case)
        return [liquid_states(*_doubles(pre), weights, case.config, *_doubles(state), *self.masks(case))[2].clock]

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        weights, arrays = self.arrays(case)
        fields = tuple(_field(path) for path in weights)
        pre, state, *gradients = (cast(x, dtype) for x in arrays)
        masks, of = ([cast(x, dtype) for x in group] for group in (self.masks(case), weights.values()))
        results = adapter.function_vjp(_states, (case.config, method, fields), masks, gradients, pre, state, *of)
        return dict(zip((*LIQUID_RESULTS, *fields), results, strict=True))


class DenseStates(LiquidStates):
    name = "dense_states"

    def methods(self, adapter: ModuleType) -> tuple[str, ...]:
        """All but `parallel`, which refuses."""
        return tuple(method for method in super().methods(adapter) if method != "parallel")

    def problems(self, draw: Any) -> Any:
        return _clear(self, draw.layer_cases(draw.GATES, SHORT, (DENSE, AS_PRINTED, WIDER), masked=True))


class DiagonalStates(LiquidStates):
    name = "diagonal_states"

    def problems(self, draw: Any) -> Any:
        return _clear(self, draw.layer_cases(draw.GATES, SHORT, (DIAGONAL, WIDER_DIAGONAL), masked=True))


class SSMBlock(Block):
    """Not in bfloat16, where the least of the time constants is often another one, and its gradient with it."""

    name, dtypes, share = "ssm_block", ("float32", "float64"), 0.04

    def clocks(self, case: LayerCase) -> list[Clock]:
        """The true clock of its layer."""
        weights, (x, state, *_) = self.arrays(case)
        saved = blocks.block(*_doubles(x), weights, case.config, *_doubles(state), Masks(*case.masks()))[3]
        assert isinstance(saved.mixer, SavedMixer)
        return [saved.mixer.evolved.clock]

    def problems(self, draw: Any) -> Any:
        return _clear(self, draw.layer_cases(("normal", "small"), ((2, 31),), (DENSE, DIAGONAL), masked=True))


class SSMModel(Model):
    """The methods are proved on the states. Not in bfloat16, as its blocks."""

    name, dtypes, share = "ssm_model", ("float32", "float64"), 0.04

    def side(self, case: ModelCase) -> Arrays:
        """Noise of every layer; dt_scale up to ten, the same for all."""
        random, c, shape = np.random.default_rng((case.seed, 1)), case.config, (case.batch, case.length)
        assert isinstance(c, LiquidSSMConfig)
        noise = random.standard_normal((c.n_layers, *shape, c.d_state))
        return dict(zip(("noise", "dt_scale"), float32(noise, 10.0 ** random.uniform(-1, 1, shape)), strict=True))

    def clocks(self, case: ModelCase) -> list[Clock]:
        """The true clock of each layer."""
        params, arrays, side = case.parameters, case.arrays(), self.side(case)
        assert isinstance(case.config, LiquidSSMConfig)
        masks = arrays.resets, arrays.padding
        given = activations(params, case.config, arrays.tokens, arrays.states, *masks, **side)
        found = []
        for i, (state,) in enumerate(map(_doubles, arrays.states)):
            weights = blocks.within(params, f"blocks.{i}.mixer.")
            inputs = given[f"blocks.{i}.mixer.input"], weights, case.config, state, *masks
            found.append(liquid_states(*inputs, side["noise"][i], side["dt_scale"])[2].clock)
        return found

    def problems(self, draw: Any) -> Any:
        configs = draw.st.sampled_from((DENSE, DIAGONAL))
        return _clear(self, configs.flatmap(lambda config: draw.model_cases(lengths=(31,), config=config)))


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


def _clear(operation: LiquidStates | SSMBlock | SSMModel, cases: Any) -> Any:
    """Without those where rounding decides which time constant sets the step."""
    return cases.filter(lambda case: clear_of_ties(operation, case))


def _field(path: str) -> str:
    """A weight's name in Dynamics."""
    return path.removesuffix(".weight")


def _doubles(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(x.astype(np.float64) for x in arrays)


OPERATIONS = (DenseStates, DiagonalStates, SSMBlock, SSMModel)
SELF_TEST = SelfTest(
    "diagonal_states", tuple(LayerCase((3, 31), "normal", seed, DIAGONAL, "some", "left") for seed in (3, 4))
)
