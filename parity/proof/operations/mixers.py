"""What is proved of a family that has no operations of its own here: its mixer, and the whole model around it."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from parity.proof.adapters import load_module
from parity.proof.bounds.monte_carlo_arithmetic import Compute
from parity.proof.operations import models
from parity.proof.operations.base import Arrays, Estimated, Operation, float32
from parity.proof.problems.cases import LayerCase, ModelCase, draw_values, perturbed_parameters
from spec.mixers import family
from spec.mixers.base import Masks
from spec.reference.blocks import within

VALUES = ("normal", "wide", "small")


class _OfFamily(Estimated):
    """An operation of one family.

    Args:
        family_name: whose.
    """

    def __init__(self, family_name: str):
        self.family = family(family_name)
        self.config = self.family.small_config()
        self.nano = replace(next(iter(self.family.presets.values())).config, vocab_size=257, n_layers=1)

    def methods(self, adapter: ModuleType) -> tuple[str, ...]:
        """`auto` alone where the methods are those of the scan, which is proved by itself."""
        mixers = load_module(adapter.NAME, "mixers")
        methods = tuple(mixers.mixer_module(self.family.name).METHODS)
        return ("auto",) if mixers.capabilities(self.config).scan_methods else methods

    def side(self, case: LayerCase | ModelCase, shape_bt: tuple[int, int], layers: bool) -> dict[str, np.ndarray]:
        """Side inputs between 0 and 1; of all layers, or of one."""
        random, c = np.random.default_rng((case.seed, 2)), case.config
        shapes = family(c).side_shapes(c, shape_bt, one_layer=not layers)
        return {name: float32(random.random(shape))[0] for name, shape in shapes.items()}


class Mixer(_OfFamily):
    """The mixer of block 0 with its matrices: output, last state, and the gradients of inputs and every weight."""

    def __init__(self, family_name: str):
        super().__init__(family_name)
        self.name = f"{family_name}_mixer"
        self.config, self.nano = (self.family.of_block(one, 0)[1] for one in (self.config, self.nano))

    def arrays(self, case: LayerCase) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Weights by path; input, initial state, and the gradients of both outputs."""
        random, c, b = case.random, case.config, case.shape[0]
        weights = within(perturbed_parameters(c, case.seed % 8), "blocks.0.mixer.")
        z = draw_values(random, case.values, (*case.shape, c.d_model))
        state, grad_last = random.standard_normal((2, b, family(c).state_size(c)))
        return weights, float32(z, state, random.standard_normal(z.shape), grad_last)

    def compute(self, case: LayerCase) -> Compute:
        own = family(case.config)

        def run(lift):
            weights, arrays = self.arrays(case)
            z, state, grad_y, grad_last = (lift(x) for x in arrays)
            lifted = {path: lift(x) for path, x in weights.items()}
            side = {name: lift(x) for name, x in self.side(case, case.shape, layers=False).items()}
            mixed = own.forward(z, lifted, case.config, state, Masks(*case.masks()), side)
            grad_z, gradients, grad_state = own.adjoint(mixed.saved, grad_y, grad_last)
            results = {"y": mixed.y, "last": mixed.last, "z gradient": grad_z, "state gradient": grad_state}
            return results | {path: gradients[path] for path in weights}

        return run

    def run(self, adapter: ModuleType, case: LayerCase, method: str, dtype: str) -> Arrays:
        weights, (z, state, *gradients) = self.arrays(case)
        side = self.side(case, case.shape, layers=False)
        outputs, (grad_z, grad_state), grad_weights = adapter.layer_vjp(
            "mixer", case.config, weights, (z, state), case.masks(), gradients, method, compute_dtype=dtype, side=side
        )
        results = dict(zip(("y", "last"), outputs, strict=True))
        return {**results, "z gradient": grad_z, "state gradient": grad_state, **grad_weights}

    def problems(self, draw: Any) -> Any:
        return draw.layer_cases(VALUES, ((2, 31),), (self.config,), masked=True)


class Model(_OfFamily, models.Model):
    """The whole model: logits, last states, loss, and every gradient."""

    def __init__(self, family_name: str):
        super().__init__(family_name)
        self.name = f"{family_name}_model"
        if self.family.of_block(self.config, 0)[0] is not self.family:
            # Products in bfloat16 are proved where they are, in the families that it is made of.
            self.dtypes = ("float32", "float64")

    def side(self, case: Any, shape_bt: Any = None, layers: bool = True) -> dict[str, np.ndarray]:
        return super().side(case, (case.batch, case.length), layers)

    def problems(self, draw: Any) -> Any:
        return draw.model_cases(lengths=(31,), config=self.config)


def operations_of(family_name: str) -> tuple[Operation, ...]:
    """The operations of a family that says nothing of its own; what is made of others has no mixer to prove."""
    own = family(family_name)
    if own.of_block(own.small_config(), 0)[0] is own:
        return Mixer(family_name), Model(family_name)
    return (Model(family_name),)
