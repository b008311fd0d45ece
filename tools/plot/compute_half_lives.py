"""Half-lives of the channels of a state, computed: in tokens, as the parameters alone set them, and as a text does."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from spec.config import ModelConfig
from spec.mixers import family
from spec.reference import activations
from spec.reference.blocks import within


def half_lives(parameters: Mapping[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """The tokens after which half of each channel is left where the content says nothing: by the biases alone.

    ln 2 over the rate of its family's `decay_rates`: what the model computes, where exp of a continuous rate would be
    what that approximates.

    Args:
        parameters: every parameter by path, of any dtype.
        config: the model.

    Returns:
        float64 [l, n], n channels of each layer's state; the real and the imaginary part of a mode have the same.
        Infinite where a channel never forgets; NaN where a layer has fewer channels than another.

    Raises:
        NotImplementedError: the family has no half-lives.
    """
    blocks = [(_mixer(parameters, i), *family(config).of_block(config, i)) for i in range(config.n_layers)]
    return _halved([own.decay_rates(weights, own_config) for weights, own, own_config in blocks])


def half_lives_on_text(
    parameters: Mapping[str, np.ndarray], config: ModelConfig, tokens_bt: np.ndarray, resets_bt: np.ndarray
) -> np.ndarray:
    """The tokens after which half of each channel is left on a text: ln 2 / mean_t(rate_t).

    Decays multiply, so that the mean of their rates is exact: over the text a channel decays as one of this half-life.
    That holds for a triangular matrix too, since the diagonal of a product of them is that of their diagonals.

    Args:
        parameters, config: as in `half_lives`.
        tokens_bt: the text, [b, t].
        resets_bt: true where a document begins, [b, t]; the forgetting there is not counted.

    Returns:
        float64 [l, n].
    """
    inside, rates = activations(parameters, config, tokens_bt, resets=resets_bt), []
    for i in range(config.n_layers):
        own, own_config = family(config).of_block(config, i)
        of_layer = within(inside, f"blocks.{i}.mixer.")
        rates.append(own.decay_rates(_mixer(parameters, i), own_config, of_layer, resets_bt))
    return _halved(rates)


def _halved(rates: list[np.ndarray]) -> np.ndarray:
    n = max(rate_btn.shape[-1] for rate_btn in rates)
    means = [rate_btn.mean(axis=(0, 1)) for rate_btn in rates]
    with np.errstate(divide="ignore"):
        return math.log(2.0) / np.stack([np.pad(x, (0, n - len(x)), constant_values=np.nan) for x in means])


def _mixer(parameters: Mapping[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    weights = within(parameters, f"blocks.{layer}.mixer.")
    return {name: np.asarray(array, np.float64) for name, array in weights.items()}
