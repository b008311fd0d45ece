"""The tools that say how far rounding goes: running error analysis, and arrays that round at random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.proof.bounds.monte_carlo_arithmetic import FACTOR, Rounding, estimate
from parity.proof.bounds.running_error import either, exact, join
from parity.proof.problems.cases import CONFIG, ModelCase
from spec.reference import forward

UNIT = 2.0**-24
numbers = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_running_errors_bound_float32_numpy(pairs):
    """Sums, differences, products, quotients and inner products of what was computed before."""
    a, b = (np.array(x, np.float32) for x in zip(*pairs, strict=True))
    one, two = exact(a, np.float32), exact(b, np.float32)
    divisor = np.abs(b) + np.float32(1.0)
    results = {
        "sum of products": ((one * two).sum(-1), (a * b).sum(dtype=np.float32)),
        "product of sums": ((one + two) * (one - two), (a + b) * (a - b)),
        "quotient": ((one + two) / exact(divisor, np.float32), (a + b) / divisor),
        "inner product": (one.move(lambda x: x[None]) @ two.move(lambda x: x[:, None]), a[None] @ b[:, None]),
    }
    for name, (running, computed) in results.items():
        assert (np.abs(computed.astype(np.float64) - running.value) <= running.error).all(), name


def test_running_errors_by_hand():
    u, tiny = UNIT, float(np.finfo(np.float32).tiny)
    x = exact(np.array([3.0, 4.0]), np.float32)
    assert not x.error.any()
    product = x * x
    np.testing.assert_allclose(product.error, u * np.array([9.0, 16.0]), rtol=1e-12)
    total = product.sum(-1)
    # Two terms, one addition: their errors, and u / (1 - u) of the size of what is added.
    assert total.error == pytest.approx(25.0 * u + u / (1 - u) * (25.0 + 25.0 * u), rel=1e-12)
    assert either(x, product).error is not None and either(x, product).error[1] == product.error[1]
    assert join(x, product).value.tolist() == [3.0, 4.0, 9.0, 16.0]
    assert (x - x).error == pytest.approx(tiny)


def test_a_perturbed_array_rounds_at_every_operation():
    rounding = Rounding(0, UNIT)
    x = rounding(np.linspace(0.5, 2.0, 1000))
    for result, truth in (
        (x + x, 2 * np.asarray(x)),
        (np.sqrt(x), np.sqrt(np.asarray(x))),
        (x * 3.0, 3 * np.asarray(x)),
    ):
        assert isinstance(result, type(x))
        change = np.abs(np.asarray(result) / truth - 1.0)
        # Largest where the significand is smallest; ln 2 / 2 of it on the average over significands.
        assert 0.8 * UNIT < change.max() <= UNIT and change.mean() == pytest.approx(UNIT * np.log(2) / 2, rel=0.15)
    for result in (-x, x.reshape(10, 100), np.concatenate([x, x]), np.where(x > 1, x, 0.0), x.max(), np.stack([x, x])):
        # Moving numbers rounds nothing: every one is still there.
        assert np.isin(np.asarray(-result if result.min() < 0 else result), [0.0, *np.asarray(x)]).all()


def test_equal_numbers_round_equally():
    """As in true arithmetic: a token that comes again makes the same error, and over a text these add up."""
    rounding = Rounding(0, UNIT)
    x = rounding(np.tile([0.3, 0.7, 1.9], 50))
    for result in (x * x, np.exp(x), x + x):
        assert len(np.unique(np.asarray(result))) == 3
    rows = rounding(np.tile(np.linspace(0.1, 2.0, 7), (20, 1)))
    assert len(np.unique(np.asarray(rows @ np.ones((7, 1))))) == 1
    other = Rounding(1, UNIT)(np.asarray(x))
    assert not np.array_equal(np.asarray(x * x), np.asarray(other * other))
    # Another operation with the same result rounds at another place.
    assert not np.array_equal(np.asarray(x * 2.0), np.asarray(x + x))


def test_constants_are_off_by_the_same_amount_everywhere():
    """exp(-1e-6) is no float32: over a thousand tokens of a long half-life its error counts a thousand times."""
    x = Rounding(2, UNIT)(np.linspace(0.5, 2.0, 4000))
    exact = np.asarray(x)
    moved = (np.asarray(x * 0.999999) / (exact * 0.999999) - 1.0).mean()
    assert UNIT / 30 < abs(moved) <= UNIT
    assert abs((np.asarray(x * 0.5) / (exact * 0.5) - 1.0).mean()) < UNIT / 30


def test_a_perturbed_sum_takes_its_terms_one_after_another():
    """Of n numbers near one: first terms meet n additions, the last one; a deviation of u sqrt(n / 3) n / sqrt(3)."""
    n, rows = 300, 400
    terms = np.random.default_rng(0).uniform(0.99, 1.01, (rows, n))
    x, truth = Rounding(1, UNIT)(terms), terms.sum(axis=1)
    sums = {"sum": np.asarray(x.sum(axis=1)), "matmul": np.asarray(x @ np.ones((n, 1)))[:, 0]}
    sums["einsum"] = np.asarray(np.einsum("bto,bti->oi", x.T[None], np.ones((1, n, 1))))[:, 0]
    for name, found in sums.items():
        deviation = (found - truth).std()
        assert deviation == pytest.approx(UNIT * np.sqrt(n / 3) * n / np.sqrt(3), rel=0.2), name


def test_the_estimate_is_four_times_the_largest_change():
    truth = {"x": np.array([1.0, -2.0])}
    bound = estimate(lambda lift: {"x": lift(truth["x"]) * 1.0}, truth, UNIT)
    assert bound["x"].shape == (2,) and FACTOR * UNIT <= bound["x"][0] <= FACTOR * 2 * UNIT
    same = estimate(lambda lift: truth, truth, UNIT)
    np.testing.assert_array_equal(same["x"], FACTOR * 2.0 * UNIT)


def test_the_reference_runs_on_perturbed_arrays():
    """Every operation of the reference keeps the kind of array: none slips back into exact numbers."""
    case = ModelCase(7, "some", "left", "some", False, 3)
    arrays = case.arrays()
    rounding = Rounding(0, UNIT)
    params = {path: rounding(x) for path, x in case.parameters.items()}
    found = forward(params, CONFIG, arrays.tokens, rounding(arrays.states), arrays.resets, arrays.padding)
    truth = forward(case.parameters, CONFIG, arrays.tokens, arrays.states, arrays.resets, arrays.padding)
    for one, other in zip(found, truth, strict=True):
        assert isinstance(one, rounding.kind)
        change = np.abs(np.asarray(one) - other).max() / np.abs(other).max()
        assert UNIT / 4 < change < 1000 * UNIT
