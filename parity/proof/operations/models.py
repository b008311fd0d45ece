"""The operations whose bounds are estimates: the mixer between its matrices, a block, and the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.proof import adapters
from parity.proof.bounds.monte_carlo_arithmetic import Compute
from parity.proof.operations.base import Arrays, Estimated, cast, float32
from parity.proof.problems.cases import LayerCase, ModelCase, draw_values, perturbed_parameters
from spec.init import half_life_bias
from spec.reference import blocks, forward, loss_and_gradients


class Mixer(Estimated):
    name, choice, dtypes = "mixer", "mixer", ("float32", "float64")

    def arrays(self, case: LayerCase) -> tuple[np.ndarray, ...]:
        """Pre-activations, bias, initial state, and the gradients of both outputs."""
        random, d, b = case.random, case.config.d_model, case.shape[0]
        pre = draw_values(random, case.values, (*case.shape, 3 * d))
        bias = random.standard_normal(d) if case.seed % 4 == 3 else half_life_bias(d)
        state, of_last = random.standard_normal((2, b, d))
        return float32(pre, bias, state, random.standard_normal((*case.shape, d)), of_last)

    def compute(self, case: LayerCase) -> Compute:
        def run(lift):
            pre, bias, state, of_gated, of_last = (lift(x) for x in self.arrays(case))
            masks = case.masks()
            gated, last, saved = blocks.gated_states(pre, bias, case.config.delta_min, state, *masks)
            gradients = blocks.gated_states_adjoint(saved, of_gated, of_last)
            return dict(zip(adapters.MIXER_RESULTS, (gated, last, *gradients), strict=True))

        return run

    def run(self, adapter: Any, case: LayerCase, method: str, dtype: str) -> Arrays:
        pre, bias, state, *gradients = (cast(x, dtype) for x in self.arrays(case))
        inputs, options = (pre, bias, state), {"delta_min": case.config.delta_min, "method": method}
        return adapter.vjp("mixer", inputs, case.masks(), gradients, **options)


class Block(Estimated):
    """With the method that `auto` takes: any other one is proved in the mixer and in the model."""

    name = "block"

    def methods(self, adapter: Any) -> tuple[str, ...]:
        return ("auto",)

    def arrays(self, case: LayerCase) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Weights by path; input, initial state, and the gradients of both outputs."""
        random, c, b = case.random, case.config, case.shape[0]
        weights = blocks.within(perturbed_parameters(case.config, case.seed % 8), "blocks.0.")
        x = draw_values(random, case.values, (*case.shape, c.d_model))
        of_x, state = random.standard_normal(x.shape), random.standard_normal((b, c.d_state))
        return weights, float32(x, state, of_x, random.standard_normal(state.shape))

    def compute(self, case: LayerCase) -> Compute:
        def run(lift):
            weights, arrays = self.arrays(case)
            x, state, of_y, of_last = (lift(x) for x in arrays)
            lifted = {path: lift(array) for path, array in weights.items()}
            y, last, _, saved = blocks.block(x, lifted, case.config, state, *case.masks())
            of_x, gradients, of_state = blocks.block_adjoint(saved, case.config, of_y, of_last)
            return {"y": y, "last": last, "x gradient": of_x, "state gradient": of_state, **gradients}

        return run

    def run(self, adapter: Any, case: LayerCase, method: str, dtype: str) -> Arrays:
        weights, (x, state, *gradients) = self.arrays(case)
        outputs, (of_x, of_state), of_weights = adapter.layer_vjp(
            self.name, case.config, weights, (x, state), case.masks(), gradients, method, compute_dtype=dtype
        )
        given = dict(zip(("y", "last"), outputs, strict=True))
        return {**given, "x gradient": of_x, "state gradient": of_state, **of_weights}


class Model(Estimated):
    """Logits, final states, loss, and the gradients of every parameter and of the initial states."""

    name, choice = "model", "mixer"

    def of_ssm(self, case: ModelCase) -> tuple[np.ndarray, ...]:
        """Noise and gaps, where the model takes them."""
        return ()

    def compute(self, case: ModelCase) -> Compute:
        def run(lift):
            arrays = case.arrays()
            params = {path: lift(x) for path, x in case.parameters.items()}
            states = lift(arrays.states)
            inputs = arrays.tokens, states, arrays.resets, arrays.padding
            more = dict(zip(("noise", "gaps"), map(lift, self.of_ssm(case)), strict=False))
            outputs = dict(zip(("logits", "last"), forward(params, case.config, *inputs, **more), strict=True))
            loss, gradients, of_states = loss_and_gradients(
                params, case.config, *arrays._replace(states=states), **more
            )
            results = {**outputs, "last beside the loss": outputs["last"], "loss": np.asarray(loss)}
            return {**results, "state gradient": of_states, **gradients}

        return run

    def run(self, adapter: Any, case: ModelCase, method: str, dtype: str, **options: Any) -> Arrays:
        """`options` go to the loss."""
        arrays, chosen = case.arrays(), {"method": method, "compute_dtype": dtype, "of_ssm": self.of_ssm(case)}
        inputs = arrays.tokens, arrays.states, arrays.resets, arrays.padding
        logits, last = adapter.model(case.parameters, case.config, *inputs, **chosen)
        loss, gradients, of_states, last_too = adapter.loss_and_gradients(
            case.parameters, case.config, *arrays, **chosen, **options
        )
        # The loss has a forward pass of its own, without logits: its last states stand beside the model's.
        results = {"logits": logits, "last": last, "last beside the loss": last_too}
        return {**results, "loss": np.asarray(loss), "state gradient": of_states, **gradients}
