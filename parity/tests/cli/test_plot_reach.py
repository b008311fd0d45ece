"""How far back a token matters: the gradients against complex steps, documents, bins, and what is expected at first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity.proof.problems.complex_step import complex_step
from spec import LiquidNetConfig, LiquidSSMConfig, initial_parameters
from spec.data import document_resets
from spec.reference import activations
from spec.reference.model import cross_entropy, input_gradients
from tools.plot.half_lives import spread
from tools.plot.reach import drawn_parameters, expected_shape, quartiles, reach

LIQUID = LiquidNetConfig(vocab_size=9, d_model=4, d_ff=6, n_layers=2, max_seq_len=8)
DIAGONAL = LiquidSSMConfig(9, d_model=4, d_ff=6, n_layers=2, max_seq_len=8, d_state=4, d_tau=3, state="diagonal")
END = 8


def perturbed(config) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        path: array + 0.3 * random.standard_normal(array.shape) for path, array in initial_parameters(config).items()
    }


@pytest.mark.parametrize(
    "config", [LIQUID, DIAGONAL, replace(DIAGONAL, state="dense")], ids=["net", "diagonal", "dense"]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_the_gradient_of_each_token_against_complex_steps(config, fresh):
    params = perturbed(config)
    # No token twice, so that a row of the embedding is one position's; the logits take another copy of it.
    tokens, labels = np.array([[3, 0, 5, 1, 7], [2, 4, 8, 6, 0]]), np.array([2, 5])
    resets = np.zeros(tokens.shape, bool)
    resets[0, 2] = fresh

    def loss(embedding_vd: np.ndarray) -> complex:
        moved = {**params, "embedding.weight": embedding_vd}
        hidden = activations(moved, config, tokens[row : row + 1], resets=resets[row : row + 1], dtype=np.complex128)
        logits = hidden["final_norm"][:, -1:] @ params["embedding.weight"].T
        return cross_entropy(logits, labels[row : row + 1, None])[0]

    mean, found = input_gradients(params, config, tokens, labels, resets)
    losses = []
    for row in range(2):
        expected = complex_step(loss, params["embedding.weight"])[tokens[row]]
        np.testing.assert_allclose(2.0 * found[row], expected, rtol=1e-11, atol=1e-13)
        losses.append(loss(params["embedding.weight"].astype(complex)).real)
    assert mean == pytest.approx(np.mean(losses), rel=1e-14)
    assert (np.abs(found[0]).max(axis=-1) > 0).tolist() == [not fresh] * 2 + [True] * 3


def test_what_was_before_a_document_cannot_matter_and_is_left_out():
    text = np.array([1, 2, END, 3, END, 5, 6, 7])
    norms = reach(perturbed(LIQUID), LIQUID, text, END)
    assert np.isfinite(norms).tolist() == [True, True, False, False, False, False, False]
    _, gradient = input_gradients(
        perturbed(LIQUID), LIQUID, text[None, :-1], text[-1:], document_resets(text[None, :-1], END)
    )
    np.testing.assert_array_equal(norms[:2], np.linalg.norm(gradient[0, [6, 5]], axis=-1))
    assert not gradient[0, :5].any()


def test_at_the_start_only_the_last_token_matters():
    """Which is why the picture has drawn outputs in place of those that begin as zero."""
    text = np.arange(8)
    norms = reach(initial_parameters(LIQUID), LIQUID, text, END)
    assert norms[0] > 0 and not norms[1:].any()
    drawn = drawn_parameters(LIQUID, 0)
    assert (reach(drawn, LIQUID, text, END) > 0).all()
    for path, array in initial_parameters(LIQUID).items():
        if array.any():
            np.testing.assert_array_equal(drawn[path], array)
        else:
            assert 0.005 < drawn[path].std() < 0.05, path


def test_log_spaced_half_lives_make_a_power_law():
    config = LiquidNetConfig(vocab_size=9, d_model=512)
    distance = np.array([8.0, 64.0, 512.0])
    shape = expected_shape(config, distance)
    slopes = np.diff(np.log(shape)) / np.diff(np.log(distance))
    np.testing.assert_allclose(slopes, -1.0, atol=0.1)


def test_the_initial_weights_follow_it():
    config = LiquidNetConfig(vocab_size=31, d_model=96, d_ff=128, n_layers=2, max_seq_len=64)
    tokens = np.random.default_rng(0).integers(0, 30, (6, 257))
    norms = np.stack([reach(drawn_parameters(config, 0), config, row, 30) for row in tokens])
    distance, (low, median, high) = quartiles(norms)
    ratio = (median / expected_shape(config, distance))[distance > 3]
    assert ratio.max() / ratio.min() < 1.4
    assert (low <= median).all() and (median <= high).all() and low[5] < high[5]


def test_quartiles_are_over_windows_and_the_distances_of_a_bin():
    norms = np.tile(np.arange(1.0, 101.0), (5, 1)) * np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    distance, found = quartiles(norms)
    np.testing.assert_array_equal(found[:, :2], [[2.0, 4.0], [3.0, 6.0], [4.0, 8.0]])
    assert distance[0] == 1.0 and distance[1] == 2.0 and 90 < distance[-1] < 100
    np.testing.assert_allclose(found[1], 3.0 * distance, rtol=0.07)


def test_a_bin_that_few_windows_reach_is_left_out():
    norms = np.ones((5, 100))
    norms[:2, 50:] = np.nan
    assert quartiles(norms)[0].max() < 60
    norms[1, :] = 1.0
    assert quartiles(norms)[0].max() > 90


def test_windows_are_spread_over_the_text():
    tokens = np.arange(100, dtype="<u2")
    np.testing.assert_array_equal(spread(tokens, 3, 10)[:, 0], [0, 45, 90])
    np.testing.assert_array_equal(spread(tokens, 3, 10)[-1], np.arange(90, 100))
    assert len(spread(tokens, 5, 99)) == 2 and len(spread(tokens, 5, 100)) == 1
