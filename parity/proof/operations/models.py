"""What every family has: a block, and the whole model, whose bounds are estimates."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from parity.proof.bounds.monte_carlo_arithmetic import Compute
from parity.proof.operations.base import Arrays, Estimated, float32
from parity.proof.problems.cases import LayerCase, ModelCase, draw_values, perturbed_parameters
from spec.mixers import family
from spec.mixers.base import Masks
from spec.reference import blocks, forward, loss_and_gradients


class Block(Estimated):
    """With the method that `auto` takes: any other one is proved in the mixer."""

    def methods(self, adapter: ModuleType) -> tuple[str, ...]:
        return ("auto",)

    def arrays(self, case: LayerCase) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Weights by path; input, initial state, and the gradients of both outputs."""
        random, c, b = case.random, case.config, case.shape[0]
        weights = blocks.within(perturbed_parameters(case.config, case.seed % 8), "blocks.0.")
        x = draw_values(random, case.values, (*case.shape, c.d_model))
        grad_x, state = random.standard_normal(x.shape), random.standard_normal((b, family(c).state_size(c)))
        return weights, float32(x, state, grad_x, random.standard_normal(state.shape))

    def compute(self, case: LayerCase) -> Compute:
        def run(lift):
            weights, arrays = self.arrays(case)
            x, state, grad_y, grad_last = (lift(x) for x in arrays)
            lifted = {path: lift(array) for path, array in weights.items()}
            y, last, _, saved = blocks.block(x, lifted, case.config, state, Masks(*case.masks()))
            grad_x, gradients, grad_state = blocks.block_adjoint(saved, case.config, grad_y, grad_last)
            return {"y": y, "last": last, "x gradient": grad_x, "state gradient": grad_state, **gradients}

        return run

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        weights, (x, state, *gradients) = self.arrays(case)
        outputs, (grad_x, grad_state), grad_weights = adapter.layer_vjp(
            "block", case.config, weights, (x, state), case.masks(), gradients, method, compute_dtype=dtype
        )
        given = dict(zip(("y", "last"), outputs, strict=True))
        return {**given, "x gradient": grad_x, "state gradient": grad_state, **grad_weights}


class Model(Estimated):
    """Logits, final states, loss, and the gradients of every parameter and of the initial states.

    With the method that `auto` takes, unless a family has a `choice`.
    """

    def methods(self, adapter: ModuleType) -> tuple[str, ...]:
        return super().methods(adapter) if self.choice else ("auto",)

    def side(self, case: ModelCase) -> Arrays:
        """What the mixer reads besides, by name."""
        return {}

    def compute(self, case: ModelCase) -> Compute:
        def run(lift):
            arrays = case.arrays()
            params = {path: lift(x) for path, x in case.parameters.items()}
            states = lift(arrays.states)
            inputs = arrays.tokens, states, arrays.resets, arrays.padding
            more = {name: lift(x) for name, x in self.side(case).items()}
            outputs = dict(zip(("logits", "last"), forward(params, case.config, *inputs, **more), strict=True))
            loss, gradients, grad_states = loss_and_gradients(
                params, case.config, *arrays._replace(states=states), **more
            )
            results = {**outputs, "last beside the loss": outputs["last"], "loss": np.asarray(loss)}
            return {**results, "state gradient": grad_states, **gradients}

        return run

    def run(self, adapter: ModuleType, case: ModelCase, method: str, dtype: str, **options: Any) -> Arrays:
        """`options` go to the loss."""
        arrays, chosen = case.arrays(), {"method": method, "compute_dtype": dtype, "side": self.side(case)}
        inputs = arrays.tokens, arrays.states, arrays.resets, arrays.padding
        logits, last = adapter.model(case.parameters, case.config, *inputs, **chosen)
        loss, gradients, grad_states, last_too = adapter.loss_and_gradients(
            case.parameters, case.config, *arrays, **chosen, **options
        )
        # The loss has a forward pass of its own, without logits: its last states stand beside the model's.
        results = {"logits": logits, "last": last, "last beside the loss": last_too}
        return {**results, "loss": np.asarray(loss), "state gradient": grad_states, **gradients}
