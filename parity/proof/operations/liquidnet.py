"""The operations of a LiquidNet: its gates, whose bounds are theorems, and its mixer between its two matrices."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from parity.proof.adapters import GATES_RESULTS, MIXER_RESULTS
from parity.proof.bounds.layers import gates_bounds
from parity.proof.bounds.monte_carlo_arithmetic import Compute
from parity.proof.operations import models
from parity.proof.operations.base import Arrays, Estimated, Operation, SelfTest, cast, float32
from parity.proof.problems.cases import CONFIG, NANO, LayerCase, draw_values
from spec.mixers.liquidnet import gated_states, gated_states_adjoint, half_life_bias
from spec.reference.scan import decay_gates, sigmoid


class Gates(Operation):
    name, share = "gates", 3.0

    def arrays(self, case: LayerCase) -> tuple[np.ndarray, ...]:
        random, d = case.random, case.config.d_model
        pre = draw_values(random, case.values, (*case.shape, 3 * d))
        bias = random.standard_normal(d) if case.seed % 4 == 3 else half_life_bias(d)
        return float32(pre, bias, *random.standard_normal((3, *case.shape, d)))

    def truth(self, case: LayerCase) -> Arrays:
        pre, bias, grad_decay, grad_drive, grad_gate = (x.astype(np.float64) for x in self.arrays(case))
        value, p, gate = np.split(pre, 3, axis=-1)
        p = p + bias
        (decay, one_minus_decay), t, o = decay_gates(p, case.config.delta_min), np.tanh(value), sigmoid(gate)
        grad_p = decay * sigmoid(p) * (grad_drive * t - grad_decay)
        # 1 - tanh^2 and 1 - sigmoid without cancellation: the truth has to be right where they vanish.
        grad_value, grad_output = (
            grad_drive * one_minus_decay * (1.0 / np.cosh(value)) ** 2,
            grad_gate * o * sigmoid(-gate),
        )
        grad_pre = np.concatenate([grad_value, grad_p, grad_output], axis=-1)
        results = (decay, one_minus_decay * t, o, grad_pre, grad_p.sum(axis=(0, 1)))
        return dict(zip(GATES_RESULTS, results, strict=True))

    def bounds(self, case: LayerCase, dtype: Any = np.float32) -> Arrays:
        pre, bias, *gradients = self.arrays(case)
        return gates_bounds(pre, bias, case.config.delta_min, *gradients, dtype=dtype)

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        pre, bias, *gradients = (cast(x, dtype) for x in self.arrays(case))
        return adapter.vjp("gates", (pre, bias), (), gradients, delta_min=case.config.delta_min)

    def problems(self, draw: Any) -> Any:
        return draw.layer_cases(draw.GATES)


class Mixer(Estimated):
    name, choice, dtypes = "mixer", "mixer", ("float32", "float64")

    def arrays(self, case: LayerCase) -> tuple[np.ndarray, ...]:
        """Pre-activations, bias, initial state, and the gradients of both outputs."""
        random, d, b = case.random, case.config.d_model, case.shape[0]
        pre = draw_values(random, case.values, (*case.shape, 3 * d))
        bias = random.standard_normal(d) if case.seed % 4 == 3 else half_life_bias(d)
        state, grad_last = random.standard_normal((2, b, d))
        return float32(pre, bias, state, random.standard_normal((*case.shape, d)), grad_last)

    def compute(self, case: LayerCase) -> Compute:
        def run(lift):
            pre, bias, state, grad_gated, grad_last = (lift(x) for x in self.arrays(case))
            masks = case.masks()
            gated, last, saved = gated_states(pre, bias, case.config.delta_min, state, *masks)
            gradients = gated_states_adjoint(saved, grad_gated, grad_last)
            return dict(zip(MIXER_RESULTS, (gated, last, *gradients), strict=True))

        return run

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        pre, bias, state, *gradients = (cast(x, dtype) for x in self.arrays(case))
        inputs, options = (pre, bias, state), {"delta_min": case.config.delta_min, "method": method}
        return adapter.vjp("mixer", inputs, case.masks(), gradients, **options)

    def problems(self, draw: Any) -> Any:
        return draw.layer_cases(draw.GATES, masked=True)


class Block(models.Block):
    name = "block"

    def problems(self, draw: Any) -> Any:
        return draw.layer_cases(("normal", "small"), ((2, 31),), masked=True)


class Model(models.Model):
    name, choice = "model", "mixer"

    def problems(self, draw: Any) -> Any:
        return draw.model_cases(lengths=(31,))


OPERATIONS = (Gates, Mixer, Block, Model)
SELF_TEST = SelfTest(
    "mixer",
    tuple(
        LayerCase((3, 67), "normal", seed, config, "some", "left", "some") for seed, config in enumerate((CONFIG, NANO))
    ),
)
