"""AdamW of both backends from given gradients, within a derived bound of the float64 reference; the schedule."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.proof.bounds import assert_within, rounding, unit
from parity.proof.operations import check, label_of
from parity.proof.problems.cases import ADAMW, CONFIG, AdamWCase, perturbed_parameters
from parity.suite.support import tightness
from spec.config import TrainingConfig
from spec.optimizer import MOMENTS, decayed_paths
from spec.schedule import learning_rate

DECAYED = decayed_paths(CONFIG)
DEFAULT = TrainingConfig(peak_lr=3e-3)


def draw_gradients(seed: int, count: int) -> list[dict[str, np.ndarray]]:
    """Gradients that differ in size from parameter to parameter, a tenth of them exactly zero."""
    return AdamWCase("clip active", count, seed).arrays()[1]


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("kind", ADAMW)
def test_steps_within_the_rounding_bound(request, adapter, kind, steps):
    """Every kind, each tensor as near its bound as it was; test_operations.py draws some with other numbers."""
    check("adamw", adapter.NAME, "", "float32", AdamWCase(kind, steps, 2))
    tightness.judge(request, label_of("adamw", adapter.NAME, "", "float32"), f"{kind}, steps {steps}")


def test_the_norm_is_that_of_all_gradients_before_clipping(adapter):
    """Within the bound of the line `norm` of `adamw_truth_and_bounds`."""
    gradients = draw_gradients(3, 1)
    _, _, norms = adapter.adamw_steps(CONFIG, DEFAULT, perturbed_parameters(CONFIG, 1), {}, 0, gradients, [1e-3])
    truth = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients[0].values()))
    n = (max(g.size for g in gradients[0].values()) + len(gradients[0])) // 2 + 2
    assert_within({"norm": norms[0]}, {"norm": truth}, {"norm": rounding(n, 1, unit()) * truth}, "gradient norm")


def test_a_loaded_optimizer_goes_on_to_the_same_bits(adapter):
    """Moments and the step, which the bias correction counts, survive dump and load."""
    parameters, gradients, rates = perturbed_parameters(CONFIG, 1), draw_gradients(4, 10), [1e-2] * 10
    whole = adapter.adamw_steps(CONFIG, DEFAULT, parameters, {}, 0, gradients, rates)
    half = adapter.adamw_steps(CONFIG, DEFAULT, parameters, {}, 0, gradients[:5], rates[:5])
    rest = adapter.adamw_steps(CONFIG, DEFAULT, half[0], half[1], 5, gradients[5:], rates[5:])
    restarted = adapter.adamw_steps(CONFIG, DEFAULT, half[0], half[1], 0, gradients[5:], rates[5:])
    for path, after in whole[0].items():
        np.testing.assert_array_equal(rest[0][path], after)
        assert not np.array_equal(restarted[0][path], after)
        for name in MOMENTS:
            np.testing.assert_array_equal(rest[1][name][path], whole[1][name][path])


def test_zero_gradients_move_only_what_decays(adapter):
    """The clip divides by a norm of zero here."""
    parameters = perturbed_parameters(CONFIG, 1)
    zero = {path: np.zeros_like(x) for path, x in parameters.items()}
    found, moments, norms = adapter.adamw_steps(CONFIG, DEFAULT, parameters, {}, 0, [zero], [1e-2])
    assert norms == [0.0]
    for path, before in parameters.items():
        assert np.array_equal(found[path], before) == (path not in DECAYED)
        assert not any(moments[name][path].any() for name in MOMENTS)


@given(steps=st.integers(1, 50), warmup=st.integers(0, 60), floor=st.floats(0.0, 1.0), step=st.integers(0, 200))
def test_the_rate_stays_between_its_ends(steps, warmup, floor, step):
    training = TrainingConfig(steps=steps, warmup_steps=warmup, final_lr_fraction=floor, peak_lr=2.0)
    rate, following = learning_rate(step, training), learning_rate(step + 1, training)
    if step < warmup:
        assert 0.0 < rate < following <= 2.0
    else:
        assert 2.0 * floor <= following <= rate <= 2.0
    if step >= max(steps - 1, warmup + 1):
        assert rate == 2.0 * floor


def test_the_rate_at_its_corners():
    no_warmup = TrainingConfig(steps=11, warmup_steps=0, peak_lr=1.0, final_lr_fraction=0.1)
    assert learning_rate(0, no_warmup) == 1.0
    assert learning_rate(5, no_warmup) == pytest.approx(0.55, rel=1e-15)
    assert learning_rate(10, no_warmup) == learning_rate(10**9, no_warmup) == 0.1
    warmup = TrainingConfig(steps=100, warmup_steps=3, peak_lr=1.0)
    assert [learning_rate(step, warmup) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    single = TrainingConfig(steps=1, warmup_steps=0, peak_lr=1.0)
    assert learning_rate(0, single) == 1.0
    never_done = TrainingConfig(steps=1, warmup_steps=5, peak_lr=1.0)
    assert learning_rate(0, never_done) == pytest.approx(1 / 6, rel=1e-15) and learning_rate(5, never_done) == 1.0
