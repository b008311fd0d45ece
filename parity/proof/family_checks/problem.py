"""A mixer, and what it is given: the problem that the checks of a reference are about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from parity.proof.problems.cases import perturbed_parameters
from spec.config import ModelConfig
from spec.mixers import families, family
from spec.mixers.base import Masks, Mixed, MixerFamily
from spec.reference.blocks import within

ROWS, STEPS = 3, 6


class MixerProblem(NamedTuple):
    """A mixer of the first layer, and what it is given: ROWS rows of STEPS tokens, everything in float64.

    Args:
        own, config: the family of that layer's mixer, and its configuration.
        weights: perturbed, by path from the mixer on.
        z, state: input and initial state.
        masks: resets, and padding on the left, none of it in the first row.
        side: every side input, between 0 and 1.
        side_axes: letters of each.
    """

    own: MixerFamily[Any]
    config: ModelConfig
    weights: dict[str, np.ndarray]
    z: np.ndarray
    state: np.ndarray
    masks: Masks
    side: dict[str, np.ndarray]
    side_axes: dict[str, list[str]]

    def run(self, **given: Any) -> Mixed:
        """The reference's forward pass, of the problem's own arrays where others are not given."""
        x = {"z": self.z, "state": self.state, "masks": self.masks, "side": self.side, **given}
        return self.own.forward(x["z"], self.weights, self.config, x["state"], x["masks"], x["side"])

    def of_rows(self, rows: Sequence[int]) -> dict[str, Any]:
        """The problem's arrays of some rows."""
        return self._cut("b", rows) | {"state": self.state[rows]}

    def of_steps(self, steps: Sequence[int]) -> dict[str, Any]:
        """The problem's arrays of some tokens; the state is left to the caller."""
        return self._cut("t", steps)

    def _cut(self, axis: str, index: Sequence[int]) -> dict[str, Any]:
        at = "bt".index(axis)
        side = {
            name: np.take(x, index, self.side_axes[name].index(axis)) if axis in self.side_axes[name] else x
            for name, x in self.side.items()
        }
        masks = Masks(*(np.take(x, index, at) for x in self.masks))
        return {"z": np.take(self.z, index, at), "masks": masks, "side": side}


@lru_cache(maxsize=32)
def mixer_problem(name: str) -> MixerProblem:
    """The problem that the checks of a reference are about; its arrays are not to be written to."""
    whole = families()[name].small_config()
    own, config = family(whole).of_block(whole, 0)
    draw, n = np.random.default_rng(7), own.state_size(config)
    found = within(perturbed_parameters(whole, 3), "blocks.0.mixer.")
    weights = {path: x.astype(np.float64) for path, x in found.items()}
    masks = Masks(draw.random((ROWS, STEPS)) < 0.3, np.arange(STEPS) < np.array([[0], [2], [0]]))
    axes = {one.name: [a for a in one.axes if a != "l"] for one in own.side_inputs(config)}
    shapes = own.side_shapes(config, (ROWS, STEPS), one_layer=True)
    side = {key: draw.random(shape) for key, shape in shapes.items()}
    z, state = draw.standard_normal((ROWS, STEPS, config.d_model)), draw.standard_normal((ROWS, n))
    return MixerProblem(own, config, weights, z, state, masks, side, axes)
