"""What every scan method of both backends keeps besides its bound: masks, splits, causality, linearity, adjoint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.proof import adapters
from parity.proof.bounds import assert_within, scan_bounds, scan_truth, select
from parity.proof.problems.cases import BATCH, LENGTHS, SHAPES, WIDTH, ScanCase
from parity.proof.problems.strategies import scan_cases

few = settings(max_examples=max(1, settings().max_examples // 2))
SHORT = tuple(t for t in LENGTHS if t <= 63)
MIDDLE = tuple(shape for shape in SHAPES if shape[1] in (31, 63))
FORWARD = ("states", "last")


def check(actual, truth, bound, label):
    """As `assert_within`, for the outputs alone."""
    assert_within(actual, *select(FORWARD, truth, bound), label)


def outputs(adapter, case, method, **changes):
    """The outputs of a scan of the case in float32, some of its arrays replaced."""
    decay, drive, state, resets, padding, *_ = case.arrays()._replace(**changes)
    return dict(zip(FORWARD, adapter.scan(decay, drive, state, method, resets, padding), strict=True))


@pytest.mark.parametrize("t", [1, 63])
def test_decay_zero_forgets_and_decay_one_remembers(adapter, method, t):
    case = ScanCase((BATCH, t, WIDTH), "zero", "normal", "none", "none", seed=1)
    decay, drive, state, *_ = case.arrays()
    states, last = adapter.scan(decay, drive, state, method)
    np.testing.assert_array_equal(states, drive)
    np.testing.assert_array_equal(last, drive[:, -1])
    states, last = adapter.scan(np.ones_like(decay), np.zeros_like(drive), state, method)
    np.testing.assert_array_equal(states, np.broadcast_to(state[:, None], states.shape))
    np.testing.assert_array_equal(last, state)


@few
@given(data=st.data())
def test_split_anywhere_equals_whole(adapter, method, data):
    """A split is one more association of the same sum: it keeps the bound of the whole."""
    parts = data.draw(st.lists(st.sampled_from(SHORT), min_size=2, max_size=4), label="parts")
    case = data.draw(scan_cases(((BATCH, sum(parts), WIDTH),)), label="case")
    arrays = case.arrays()
    state, pieces, start = arrays.state, [], 0
    for length in parts:
        inside = slice(start, start + length)
        decay, drive, resets, padding = (getattr(arrays, x)[:, inside] for x in ("decay", "drive", "resets", "padding"))
        states, state = adapter.scan(decay, drive, state, method, resets, padding)
        pieces.append(states)
        start += length
    actual = {"states": np.concatenate(pieces, axis=1), "last": state}
    check(actual, scan_truth(*arrays), scan_bounds(*arrays), "scan, split")


@few
@given(case=scan_cases(MIDDLE, resets=("none",), padding=("none",)), at=st.integers(0, 30), seed=st.integers(0, 99))
def test_a_reset_is_a_fresh_start(adapter, method, case, at, seed):
    """What stands before a reset, the initial state too, changes nothing after it, not even a bit."""
    before = case.arrays()
    resets = before.resets.copy()
    resets[:, at] = True
    other = ScanCase(case.shape, "uniform", "normal", "none", "none", seed).arrays()
    early = (np.arange(case.shape[1]) < at)[None, :, None]
    changes = {name: np.where(early, getattr(other, name), getattr(before, name)) for name in ("decay", "drive")}
    actual = outputs(adapter, case, method, resets=resets)
    changed = outputs(adapter, case, method, resets=resets, state=other.state, **changes)
    np.testing.assert_array_equal(changed["states"][:, at:], actual["states"][:, at:])

    cut = before._replace(**{name: getattr(before, name)[:, at:] for name in ("decay", "drive", "resets", "padding")})
    cut = cut._replace(states_gradient=cut.states_gradient[:, at:], state=np.zeros_like(cut.state))
    actual["states"] = actual["states"][:, at:]
    check(actual, scan_truth(*cut), scan_bounds(*cut), "scan, after a reset")


@few
@given(data=st.data())
def test_the_amount_of_padding_changes_nothing(adapter, method, data):
    """Padded positions multiply by one and add zero, exactly: the bound is that of the sequence without them."""
    t, length = data.draw(st.sampled_from([(3, 1), (31, 3), (63, 31), (63, 3)]), label="padded, length")
    case = data.draw(scan_cases(((BATCH, length, WIDTH),), padding=("none",)), label="case")
    kept = np.sort(data.draw(st.permutations(range(t)), label="order")[:length])
    arrays = case.arrays()
    padding = np.ones((BATCH, t), bool)
    padding[:, kept] = False
    # Not-a-number where there is padding: a value read there would spread.
    wide = {name: np.full((BATCH, t, WIDTH), np.nan, np.float32) for name in ("decay", "drive")}
    for name, array in wide.items():
        array[:, kept] = getattr(arrays, name)
    resets = np.ones((BATCH, t), bool)
    resets[:, kept] = arrays.resets
    gradient = np.zeros((BATCH, t, WIDTH), np.float32)
    gradient[:, kept] = arrays.states_gradient
    inputs, gradients = (wide["decay"], wide["drive"], arrays.state), (gradient, arrays.final_gradient)
    actual = adapter.vjp("scan", inputs, (resets, padding), gradients, method=method)
    for name in ("decay gradient", "drive gradient"):
        assert not actual[name][padding].any()
    actual = {name: x[:, kept] if x.ndim == 3 else x for name, x in actual.items()}
    assert_within(actual, scan_truth(*arrays), scan_bounds(*arrays), "scan, padded")


@few
@given(case=scan_cases(MIDDLE), at=st.integers(0, 30), seed=st.integers(0, 99))
def test_the_future_changes_no_bit(adapter, method, case, at, seed):
    arrays = case.arrays()
    other = ScanCase(case.shape, "uniform", "normal", "some", "some", seed).arrays()
    late = np.arange(case.shape[1]) >= at
    changes = {name: np.where(late, getattr(other, name), getattr(arrays, name)) for name in ("resets", "padding")}
    late = late[:, None]
    changes |= {name: np.where(late, getattr(other, name), getattr(arrays, name)) for name in ("decay", "drive")}
    actual, changed = outputs(adapter, case, method), outputs(adapter, case, method, **changes)
    np.testing.assert_array_equal(changed["states"][:, :at], actual["states"][:, :at])


@few
@given(case=scan_cases(MIDDLE), seed=st.integers(0, 99))
def test_the_gradient_is_the_adjoint_of_the_derivative(adapter, method, case, seed):
    """<J x, y> = <x, J' y> in float64: J x is the same scan of the tangents, since the recurrence is bilinear."""
    arrays = case.arrays()
    doubles = (x.astype(np.float64) for x in (arrays.decay, arrays.drive, arrays.state))
    decay, drive, state = doubles
    random = np.random.default_rng(seed)
    tangents = [random.standard_normal(x.shape) * (1.0 + np.abs(x)) for x in (decay, drive, state)]
    outputs = [random.standard_normal(x.shape) for x in (drive, state)]
    masks = arrays.resets, arrays.padding
    found = adapter.vjp("scan", (decay, drive, state), masks, outputs, method=method)
    before = np.concatenate([state[:, None], found["states"][:, :-1]], axis=1)
    # A mask fixes decay at a reset, and both on padding: their tangents are nothing there.
    of_decay = np.where((masks[0] | masks[1])[..., None], 0.0, tangents[0] * before)
    moved, last = adapter.scan(decay, of_decay + tangents[1], tangents[2], method, *masks)
    gradients = (found[f"{name} gradient"] for name in ("decay", "drive", "state"))
    terms = [a * b for a, b in zip(outputs, (moved, last), strict=True)]
    others = [a * b for a, b in zip(tangents, gradients, strict=True)]
    left, right = (sum(x.sum() for x in group) for group in (terms, others))
    size = sum(np.abs(x).sum() for x in (*terms, *others))
    assert abs(left - right) <= 1e-12 * size


@few
@given(case=scan_cases(MIDDLE), seed=st.integers(0, 99), power=st.integers(-8, 8))
def test_linear_in_drive_and_state(adapter, method, case, seed, power):
    """scan(x + y) = scan(x) + scan(y) within the three bounds; a power of two as a factor changes no mantissa."""
    one = ScanCase(case.shape, case.decays, "normal", case.resets, case.padding, case.seed).arrays()
    other = ScanCase(case.shape, "uniform", "normal", "none", "none", seed).arrays()
    added = one._replace(drive=one.drive + other.drive, state=one.state + other.state)
    parts = one, one._replace(drive=other.drive, state=other.state), added
    states = [adapter.scan(x.decay, x.drive, x.state, method, x.resets, x.padding)[0] for x in parts]
    bound = sum(scan_bounds(*x)["states"] for x in parts)
    # The sum of the drives is rounded too: each term by u.
    bound = bound + 2.0**-24 * scan_truth(*(np.abs(x) for x in added))["states"]
    sum_of_states = states[0].astype(np.float64) + states[1]
    assert_within({"states": states[2]}, {"states": sum_of_states}, {"states": bound}, "scan, linearity")
    factor = np.float32(2.0**power)
    scaled, _ = adapter.scan(one.decay, factor * one.drive, factor * one.state, method, one.resets, one.padding)
    np.testing.assert_array_equal(scaled, factor * states[0])


@few
@given(case=scan_cases(MIDDLE, resets=("none",)), seed=st.integers(0, 99))
def test_a_leaky_integrator_contracts(adapter, method, case, seed):
    """|h| <= 1 where |v| <= 1 and |h_{-1}| <= 1, drive = (1 - decay) v: a mean of values, up to rounding."""
    arrays, random = case.arrays(), np.random.default_rng(seed)
    values, state = random.uniform(-1, 1, case.shape), np.sign(random.standard_normal(arrays.state.shape))
    drive = ((1.0 - arrays.decay.astype(np.float64)) * values).astype(np.float32)
    contracting = arrays._replace(drive=drive, state=state.astype(np.float32))
    states, _ = adapter.scan(arrays.decay, drive, contracting.state, method, arrays.resets, arrays.padding)
    bound = scan_bounds(*contracting)["states"]
    assert (np.abs(states) <= 1.0 + bound + 2.0**-23 * (1 + np.arange(case.shape[1]))[:, None]).all()


@given(st.lists(st.tuples(*[st.integers(-1000, 1000)] * 2), min_size=3, max_size=3))
def test_the_combine_is_associative(pairs):
    """Of integers, exactly: any bracketing of (a2, b2) after (a1, b1) = (a2 a1, a2 b1 + b2) is the same map."""
    associative = pytest.importorskip("jax_impl.ops.scan.associative", reason="the combine is JAX's")
    combine, (x, y, z) = associative.combine, pairs
    assert combine(combine(x, y), z) == combine(x, combine(y, z))
    h = 7
    first, second = x[0] * h + x[1], combine(x, y)
    assert y[0] * first + y[1] == second[0] * h + second[1]


@few
@given(case=scan_cases(MIDDLE), seed=st.integers(0, 99))
def test_rows_do_not_mix(adapter, method, case, seed):
    """Permuted rows give permuted results, and a changed row changes no bit of the other."""
    arrays = case.arrays()
    permuted = type(arrays)(*(x[::-1].copy() for x in arrays))
    actual = adapter.vjp("scan", permuted[:3], permuted[3:5], permuted[5:], method=method)
    actual = {name: x[::-1] for name, x in actual.items()}
    assert_within(actual, scan_truth(*arrays), scan_bounds(*arrays), "scan, rows permuted")
    other = ScanCase(case.shape, "mixture", "normal", "some", "some", seed).arrays()
    changed = arrays._replace(**{name: np.concatenate([getattr(arrays, name)[:1], getattr(other, name)[1:]])
                                 for name in ("decay", "drive", "state", "resets", "padding")})  # fmt: skip
    decay, drive, state, resets, padding, *_ = changed
    states, _ = adapter.scan(decay, drive, state, method, resets, padding)
    np.testing.assert_array_equal(states[0], outputs(adapter, case, method)["states"][0])


def test_without_state_and_masks(adapter, method):
    """None is a zero state and no mask."""
    case = ScanCase((BATCH, 31, WIDTH), "uniform", "normal", "none", "none", seed=2)
    decay, drive, state, resets, padding, *_ = case.arrays()
    plain = adapter.scan(decay, drive, method=method)
    full = adapter.scan(decay, drive, np.zeros_like(state), method, resets, padding)
    for one, other in zip(plain, full, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("t", [1, 31])
def test_auto_is_one_of_the_methods(adapter, t):
    case = ScanCase((BATCH, t, WIDTH), "uniform", "normal", "none", "none", seed=3)
    decay, drive, state, *_ = case.arrays()
    auto, _ = adapter.scan(decay, drive, state)
    named = [adapter.scan(decay, drive, state, method)[0] for method in adapter.METHODS["scan"]]
    assert any(np.array_equal(auto, states) for states in named)


@pytest.mark.parametrize(
    "name, hint", [("sequentail", "did you mean 'sequential'"), ("nothing-like-it", "choose one of sequential")]
)
def test_an_unknown_method_is_named(adapter, name, hint):
    one = np.ones((1, 2, 1), np.float32)
    with pytest.raises(ValueError, match=f"unknown scan method '{name}'.*{hint}"):
        adapter.scan(one, one, method=name)


def test_no_token_at_all_raises(adapter):
    """Other shapes: parity/tests/api/test_bad_inputs.py."""
    nothing = np.zeros((2, 0, 3), np.float32)
    with pytest.raises(ValueError, match=r"one shape \[b, t, d\] with t >= 1, got \(2, 0, 3\)"):
        adapter.scan(nothing, nothing)


def test_a_method_that_does_not_run_is_skipped_in_its_own_words(monkeypatch):
    class Face:
        @staticmethod
        def scan(decay, drive, method):
            raise NotImplementedError(f"{method} needs a device that is not here")

    monkeypatch.setattr(adapters, "load", lambda name: Face)
    assert adapters.refusal("planted", "kernel") == "kernel needs a device that is not here"
