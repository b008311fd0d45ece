"""The strategies draw what they promise and the bounds find what they should, lest a test test nothing."""

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings

from parity.proof.bounds import WORST, assert_within, in_units, rounding, scan_bounds, scan_truth, select, unit
from parity.proof.problems import cases
from parity.proof.problems.cases import ALMOST_ONE, CONFIG, LENGTHS, SHAPES, LayerCase, perturbed_parameters
from parity.proof.problems.strategies import model_cases, scan_cases
from spec.init import initial_parameters
from spec.inputs import IGNORED_LABEL
from spec.reference.scan import mask, scan

SMALLEST = np.finfo(np.float32).tiny

OCCURS_IN_A_SCAN = {
    "decay 0": lambda x: (x.decay == 0).any(),
    "decay 1": lambda x: (x.decay == 1).any(),
    "decay 1 - 2^-24": lambda x: (x.decay == np.float32(ALMOST_ONE)).any() and np.float32(ALMOST_ONE) < 1,
    "decay subnormal": lambda x: ((x.decay > 0) & (x.decay < SMALLEST)).any(),
    "long half-lives": lambda x: ((x.decay > 0.9999) & (x.decay < ALMOST_ONE)).any(),
    "a mixture": lambda x: (x.decay == 0).any() and (x.decay == 1).any() and ((x.decay > 0.1) & (x.decay < 0.9)).any(),
    "drive 0": lambda x: not x.drive.any(),
    "drive subnormal": lambda x: ((x.drive > 0) & (x.drive < SMALLEST)).any(),
    "drive large": lambda x: (x.drive > 1e19).any(),
    "drives of many sizes": lambda x: x.drive.any() and np.ptp(np.log10(np.abs(x.drive[x.drive != 0]))) > 8,
    "a reset at the start": lambda x: x.resets[:, 0].all() and not x.resets[:, 1:].any(),
    "a reset inside": lambda x: x.resets[:, 1:-1].any() and not x.resets.all(),
    "a reset at the end": lambda x: x.resets[:, -1].all() and not x.resets[:, :-1].any(),
    "resets everywhere": lambda x: x.resets.all(),
    "no mask": lambda x: not x.resets.any() and not x.padding.any(),
    "reset and padding at once": lambda x: (x.resets & x.padding).any(),
    "rows padded differently": lambda x: np.ptp(x.padding.sum(axis=1)) > 0,
    "left padding": lambda x: x.padding[:, 0].any() and not x.padding[:, -1].any(),
    "right padding": lambda x: x.padding[:, -1].any() and not x.padding[:, 0].any(),
    "padding inside": lambda x: (x.padding[:, 1:-1] & ~x.padding[:, :-2] & ~x.padding[:, 2:]).any(),
    "padding everywhere": lambda x: x.padding.all(),
}
OCCURS_IN_A_MODEL = {
    "all labels ignored": lambda x: (x.labels == IGNORED_LABEL).all(),
    "some labels ignored": lambda x: 0 < (x.labels == IGNORED_LABEL).sum() < x.labels.size,
    "no label ignored": lambda x: (x.labels >= 0).all(),
    "zero state": lambda x: not x.states.any(),
    "random state": lambda x: x.states.all(),
    "a reset inside": lambda x: x.resets[:, 1:].any(),
    "left padding": lambda x: x.padding[:, 0].any() and not x.padding[:, -1].any(),
}
# Finding is enough: nobody reads the smallest example.
quick = settings(max_examples=500, derandomize=True, database=None, phases=[Phase.generate])


@pytest.mark.parametrize("name", OCCURS_IN_A_SCAN)
def test_it_occurs_in_a_scan(name):
    find(scan_cases(), lambda case: OCCURS_IN_A_SCAN[name](case.arrays()), settings=quick)


@pytest.mark.parametrize("name", OCCURS_IN_A_MODEL)
def test_it_occurs_in_a_model(name):
    find(model_cases(), lambda case: OCCURS_IN_A_MODEL[name](case.arrays()), settings=quick)


def test_the_ci_profile_meets_every_length_and_mask():
    """With the number of examples that the tests use; decays and drives are judged in test_operations.py."""
    seen = set()

    @given(case=scan_cases())
    def collect(case):
        seen.update({case.shape, f"resets {case.resets}", f"padding {case.padding}"})

    collect()
    kinds = {f"resets {kind}" for kind in cases.RESETS} | {f"padding {kind}" for kind in cases.PADDINGS}
    assert seen == {*SHAPES, *kinds}
    assert {t for _, t, _ in SHAPES} == set(LENGTHS)


@given(case=scan_cases())
def test_scan_cases_are_what_a_scan_accepts(case):
    for dtype in (np.float32, np.float64):
        arrays, again = case.arrays(dtype), case.arrays(dtype)
        assert (arrays.decay >= 0).all() and (arrays.decay <= 1).all()
        assert all(np.isfinite(x).all() for x in arrays)
        assert all(x.dtype in (dtype, bool) for x in arrays)
        assert all(np.array_equal(one, other) for one, other in zip(arrays, again, strict=True))
        assert arrays.decay.shape == arrays.drive.shape == arrays.states_gradient.shape == case.shape
    assert eval(repr(case), vars(cases)) == case


def test_every_parameter_is_perturbed():
    initial, perturbed = initial_parameters(CONFIG, 3), perturbed_parameters(CONFIG, 3)
    assert list(initial) == list(perturbed)
    for path, x in perturbed.items():
        assert x.dtype == np.float32 and (x != initial[path]).all()


@given(case=scan_cases())
def test_float32_numpy_keeps_the_scan_bound(case):
    """The plainest program of all, with gradual underflow; and a formula error of 1e-6 does not keep it."""
    arrays = case.arrays()
    truth, bounds = scan_truth(*arrays), scan_bounds(*arrays)
    masked = mask(arrays.decay, arrays.drive, arrays.resets, arrays.padding)
    states, last = scan(*(x.astype(np.float32) for x in masked), arrays.state)
    assert states.dtype == np.float32
    found = {"states": states, "last": last}
    assert_within(found, *select(found, truth, bounds), "scan, float32 NumPy")


def test_a_planted_error_is_found():
    case = cases.ScanCase((2, 31, 3), "uniform", "normal", "none", "none", seed=0)
    arrays = case.arrays()
    truth, bounds = scan_truth(*arrays), scan_bounds(*arrays)
    for name, expected in truth.items():
        planted = {**truth, name: expected + 1.01 * bounds[name]}
        with pytest.raises(AssertionError, match=rf"planted: {name}\[.* is off by 1\.01 units of its bound: got"):
            assert_within(planted, truth, bounds, "planted")
        spoilt = {**truth, name: np.where(expected == expected.max(), np.nan, expected)}
        with pytest.raises(AssertionError, match="inf units"):
            assert_within(spoilt, truth, bounds, "planted")
    assert WORST.pop("planted") == np.inf


WRONG_FORMS = {
    "a tensor that is absent": ({"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1}),
    "a tensor too many": ({"a": 1, "b": 1}, {"a": 1}, {"a": 1}),
    "a bound that is absent": ({"a": 1}, {"a": 1}, {}),
    "a bound too many": ({"a": 1}, {"a": 1}, {"a": 1, "b": 1}),
    "nothing": ({}, {}, {}),
    "no entries": ({"a": 0}, {"a": 0}, {"a": 0}),
    "fewer entries": ({"a": 1}, {"a": 2}, {"a": 2}),
    "entries that would be broadcast": ({"a": 2}, {"a": 2}, {"a": 1}),
}


@pytest.mark.parametrize("name", WRONG_FORMS)
def test_what_is_absent_or_empty_is_not_within_a_bound(name):
    """Every entry given is right, and still nothing has been shown."""
    arrays = [{tensor: np.ones(size) for tensor, size in group.items()} for group in WRONG_FORMS[name]]
    with pytest.raises(AssertionError, match="expected"):
        assert_within(*arrays, "form")


@pytest.mark.parametrize("place", range(3), ids=["found", "truth", "bound"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
def test_what_is_no_number_is_not_within_a_bound(place, value):
    """Nor is anything within a negative bound, and two infinities are not the same number."""
    arrays = [{"a": np.ones((2, 3))} for _ in range(3)]
    arrays[place]["a"][1, 1] = value
    with pytest.raises(AssertionError, match=r"form: a\[1, 1\] is off by"):
        assert_within(*arrays, "form")
    both = [{"a": np.full((), value if i < 2 else 9.0)} for i in range(3)]
    if not np.isfinite(value):
        with pytest.raises(AssertionError, match="is off by inf units"):
            assert_within(*both, "form")
    WORST.pop("form")


def test_bounds_by_hand():
    u = unit()
    assert u == 2.0**-24 and rounding(2, 2, u) == 4 * u
    t = np.array([0, 2894, 2895, 10**5])
    bound, gamma = rounding(2 * t + 2, 2, u), (2 * t + 2) * u / (1 - (2 * t + 2) * u)
    assert (
        (bound >= gamma).all() and (bound[:2] == (2 * t[:2] + 4) * u).all() and (bound[2:] > (2 * t[2:] + 4) * u).all()
    )
    np.testing.assert_array_equal(in_units(np.array([1.0, 2.0, 1.0]), np.ones(3), np.array([0.0, 0.5, 0.0])), [0, 2, 0])
    assert in_units(np.array(1.5), np.array(1.0), np.array(0.0)) == np.inf


def test_absorbed_values_are_lost_one_after_another():
    """The regime that makes a bound tight: in order, float32 never leaves 1, while the truth is 1 + 0.9 (n - 1) u."""
    x = cases.draw_values(np.random.default_rng(0), "absorbed", (128,)).astype(np.float32)
    total = np.float32(0.0)
    for term in x:
        total += term
    assert total == 1.0 and x.astype(np.float64).sum() == pytest.approx(1.0 + 0.9 * 127 * unit(), rel=1e-9)


def test_masks_and_ignored_labels_of_a_layer():
    case = LayerCase((2, 31), "normal", 4, resets="some", padding="left", ignored="some")
    resets, padding = case.masks()
    assert resets.any() and padding[:, 0].any() and not padding[:, -1].any()
    labels = case.ignore(np.ones((2, 31), int))
    assert 0 < (labels == IGNORED_LABEL).sum() < labels.size
