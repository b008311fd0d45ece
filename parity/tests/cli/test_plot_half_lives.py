"""Half-lives against what the reference does to a state: over a text it is left with 2^(-tokens / half-life) of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from spec import LiquidNetConfig, LiquidSSMConfig, initial_parameters
from spec.mixers.liquidnet import LONGEST_HALF_LIFE
from spec.reference import forward
from tools.plot.compute_half_lives import half_lives, half_lives_on_text
from tools.plot.figure import new_figure
from tools.plot.half_lives import _split_histograms

LIQUID = LiquidNetConfig(vocab_size=11, d_model=6, d_ff=8, n_layers=3, max_seq_len=16)
DENSE = LiquidSSMConfig(11, d_model=6, d_ff=8, n_layers=2, max_seq_len=16, d_state=6, d_tau=4)
DIAGONAL = replace(DENSE, state="diagonal")
AS_PRINTED = replace(DENSE, hippo="as_printed")
ALL = pytest.mark.parametrize("config", [LIQUID, DENSE, DIAGONAL, AS_PRINTED], ids=lambda c: getattr(c, "state", "net"))
TOKENS = 7


def perturbed(config) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {
        path: array + 0.3 * random.standard_normal(array.shape) for path, array in initial_parameters(config, 1).items()
    }


def text(rows: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tokens_bt = np.tile(np.random.default_rng(seed).integers(0, 11, (1, TOKENS)), (rows, 1))
    return tokens_bt, np.zeros(tokens_bt.shape, bool)


def left_after(params, config, layer: int) -> np.ndarray:
    """What the text leaves of each unit vector of a layer's state, [n, n]: a difference of two final states."""
    tokens, _ = text(config.d_state)
    states = np.zeros((config.n_layers, config.d_state, config.d_state))
    base = forward(params, config, tokens, states)[1][layer]
    states[layer] = np.eye(config.d_state)
    return forward(params, config, tokens, states)[1][layer] - base


@ALL
def test_over_a_text_a_state_is_left_with_what_its_half_life_says(config):
    """Of a layer's own state alone: nothing below it changes, so neither do its gates, save by its own clock."""
    params = perturbed(config)
    # The clock of a Liquid SSM sees the state, and would answer to the unit vectors.
    params = {path: array * (not path.endswith("tau_state.weight")) for path, array in params.items()}
    expected = 2.0 ** (-TOKENS / half_lives_on_text(params, config, *text()))
    for layer in range(config.n_layers):
        left = left_after(params, config, layer)
        if config in (LIQUID, DENSE, AS_PRINTED):
            found = np.diag(left)
        else:
            m = config.modes
            found = np.tile(np.hypot(np.diag(left)[:m], np.diag(left[:m, m:])), 2)
        np.testing.assert_allclose(found, expected[layer], rtol=1e-9, atol=1e-13)


@ALL
def test_without_content_the_biases_alone_say_it(config):
    params = perturbed(config)
    silent = {path: array.copy() for path, array in params.items()}
    for path, array in silent.items():
        if path.endswith("mixer.input.weight"):
            array[config.d_state : 2 * config.d_state if config is LIQUID else None] = 0.0
        if path.endswith("tau_state.weight"):
            array[:] = 0.0
    np.testing.assert_allclose(half_lives_on_text(silent, config, *text()), half_lives(params, config), rtol=1e-12)
    assert abs(half_lives_on_text(params, config, *text()) / half_lives(params, config) - 1.0).max() > 1e-3


def test_at_the_start_they_are_log_spaced():
    found = half_lives(initial_parameters(LIQUID), LIQUID)
    assert found.shape == (3, 6)
    # delta_min of 1e-6 takes half a per cent from the longest; the bias is float32.
    np.testing.assert_allclose(found[0], LONGEST_HALF_LIFE ** (np.arange(6) / 5), rtol=7e-3)
    capped = replace(LIQUID, delta_min=0.1)
    assert half_lives(initial_parameters(capped), capped).max() == pytest.approx(math.log(2.0) / 0.1, rel=2e-3)


def test_a_channel_that_never_forgets_has_no_end():
    config = replace(LIQUID, delta_min=0.0)
    params = {**initial_parameters(config), "blocks.0.mixer.decay_bias": np.full(6, -1e4)}
    assert np.isinf(half_lives(params, config)[0]).all()


@ALL
def test_a_text_of_two_documents_is_the_mean_of_both(config):
    """Rates add up; and the second document starts from no state, whose clock would remember the first."""
    params = perturbed(config)
    (one, fresh), (other, _) = text(seed=1), text(seed=2)
    rates = [1.0 / half_lives_on_text(params, config, tokens, fresh) for tokens in (one, other)]
    both, resets = np.concatenate([one, other], axis=1), np.concatenate([fresh, fresh], axis=1)
    resets[0, TOKENS] = True
    found = half_lives_on_text(params, config, both, resets)
    np.testing.assert_allclose(1.0 / found, np.mean(rates, axis=0), rtol=1e-12)


def test_a_layer_with_fewer_channels_has_its_median():
    """Those of a hybrid differ in size: what is missing is filled up with NaN."""
    axes = new_figure(4, 3).subplots()
    values = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    _split_histograms(axes, np.array([1.0, 2.5, 6.0]), values, values + 1.0)
    middles = [line.get_ydata()[0] for line in axes.get_lines()]
    assert middles == [1.5, 4.0, 2.5, 5.0]
