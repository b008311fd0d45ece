"""decay and 1 - decay keep full relative accuracy in float32, where a subtraction loses over three digits."""

import math

import numpy as np
import pytest

from parity.bounds import assert_within, gates_bounds, gates_gradient_bound, in_units
from spec.init import half_life_bias
from spec.reference.liquid import decay_gates, sigmoid

P = np.concatenate([np.linspace(-30, 30, 6001), half_life_bias(257)]).astype(np.float32)
NAMES = ("alpha", "1 - alpha")


@pytest.mark.parametrize("delta_min", [1e-6, 0.0, 1e-3, 1.0])
def test_float32_within_the_rounding_bound(face, delta_min):
    found = face.decay_gates(P, delta_min)
    truth = decay_gates(P.astype(np.float64), delta_min)
    assert all(x.dtype == np.float32 for x in found)
    arrays = (dict(zip(NAMES, values, strict=True)) for values in (found, truth, gates_bounds(*truth)))
    assert_within(*arrays, f"gates, {face.NAME}")


def test_float64(face):
    p = P.astype(np.float64)
    found, truth = face.decay_gates(p, 1e-6), decay_gates(p, 1e-6)
    arrays = (dict(zip(NAMES, values, strict=True)) for values in (found, truth, gates_bounds(*truth, np.float64)))
    # Reference and backend both round: twice the bound of one.
    values, truth, bound = arrays
    assert_within(values, truth, {name: 2.0 * x for name, x in bound.items()}, f"gates, float64, {face.NAME}")


def test_subtraction_would_fail_at_half_life_4096(face):
    """The same bound tells the algebra in use from the obvious one, by a factor of a hundred and more."""
    p = half_life_bias(2)[1:]
    alpha, fresh = face.decay_gates(p, 1e-6)
    _, truth = decay_gates(p.astype(np.float64), 1e-6)
    _, bound = gates_bounds(truth, truth)
    assert truth[0] == pytest.approx(math.log(2.0) / 4096 + 1e-6, rel=1e-3)
    assert in_units(fresh, truth, bound) <= 1.0
    # alpha is within u of 1: its last bit is 2^-24 / 1.7e-4 = 3.5e-4 of the difference, whatever made it.
    alphas = np.nextafter(alpha, np.float32(0)), alpha, np.nextafter(alpha, np.float32(1))
    subtracted = [in_units(np.float32(1.0) - x, truth, bound)[0] for x in alphas]
    assert sorted(subtracted)[1] > 100.0


def test_the_gradient_within_the_rounding_bound(face):
    """No subtraction there either: sigmoid' = y (1 - y) would be off by 200 units at half-life 4096."""
    random = np.random.default_rng(0)
    of_alpha, of_fresh = random.standard_normal((2, len(P))).astype(np.float32)
    of_fresh[::2] = 0.0
    found = face.gates_gradient(P, 1e-6, of_alpha, of_fresh)
    p, of_alpha, of_fresh = (x.astype(np.float64) for x in (P, of_alpha, of_fresh))
    alpha, _ = decay_gates(p, 1e-6)
    truth = alpha * sigmoid(p) * (of_fresh - of_alpha)
    bound = gates_gradient_bound(alpha, sigmoid(p), of_alpha, of_fresh)
    assert_within({"p": found}, {"p": truth}, {"p": bound}, f"gates, gradient, {face.NAME}")


def test_ends_are_exact(face):
    """A decay gate that is shut or open all the way gives no value that is not a number, and stays in [0, 1]."""
    p = np.array([-200.0, -104.0, -89.0, 89.0, 104.0, 200.0], np.float32)
    alpha, fresh = face.decay_gates(p, 1e-6)
    for x in (alpha, fresh):
        assert np.isfinite(x).all() and (x >= 0).all() and (x <= 1).all()
    np.testing.assert_array_equal(alpha[:3], np.float32(math.exp(-1e-6)))
    np.testing.assert_array_equal(fresh[3:], np.float32(1.0))
