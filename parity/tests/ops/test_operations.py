"""One test class for every operation, backend, method and dtype: what is registered in METHODS is tested here."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.proof import adapters, interpreted_kernels
from parity.proof.bounds import WORST, in_units
from parity.proof.operations import OPERATIONS, check, expected, liquid_ssm
from parity.proof.operations.models import Model
from parity.proof.problems.cases import CONFIG, NANO, NANO_BLOCK, AdamWCase, LayerCase, ScanCase
from parity.proof.problems.strategies import CASES
from parity.suite.report.sweep import IMPORTS
from spec.mixers import families


def implementations() -> list:
    """(operation, backend, method, dtype), skipped with the reason where the backend is not here."""
    rows = []
    for name, operation in OPERATIONS.items():
        for backend in adapters.FRAMEWORKS:
            reason = adapters.missing(backend)
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            for method in ("",) if reason else operation.methods(adapters.load(backend)):
                for dtype in operation.dtypes:
                    label = "-".join(filter(None, (name, backend, method, dtype)))
                    rows.append(pytest.param(name, backend, method, dtype, id=label, marks=marks))
    return rows


# An estimate costs nine runs of the reference, and a problem of a new shape a compilation.
OFTEN = settings()
SELDOM = settings(max_examples=max(1, settings().max_examples // 8))
# Interpreted, an example takes seconds.
RARELY = settings(max_examples=max(1, settings().max_examples // 13))


# Its examples are drawn by a function inside: without the mark `make soak` would pass it by.
@pytest.mark.hypothesis
@pytest.mark.parametrize("name, backend, method, dtype", implementations())
class TestOperation:
    """Outputs and every gradient against the float64 reference, in units of the bound.

    float32: a theorem for the layers, an estimate for mixer, block and model. float64: the last digits, so that no
    formula error hides in a float32 bound. bfloat16: the estimate for products of bfloat16 operands in a float32 model.
    """

    def test_within_its_bound(self, name, backend, method, dtype):
        slow = interpreted_kernels.is_slow(backend, method)
        often = RARELY if slow else OFTEN if OPERATIONS[name].theorem else SELDOM

        @often
        @given(case=CASES[name])
        def every_case(case):
            check(name, backend, method, dtype, case)

        try:
            every_case()
        except NotImplementedError as error:
            pytest.skip(str(error))


def losses() -> list:
    """Every method of the loss of the backends that are here; in JAX each number of words is a compilation."""
    here = [backend for backend in adapters.FRAMEWORKS if not adapters.missing(backend)]
    numbers = {"torch": (1, 63, 64, 65, 129), "jax": (65, 129)}
    return [(one, method, v) for one in here for method in adapters.load(one).METHODS["loss"] for v in numbers[one]]


@pytest.mark.parametrize("backend, method, v", losses())
def test_any_word_may_stand_far_from_the_rest(backend, method, v):
    """Each word in turn, those beyond the last whole vector register too, as the label and as another word's row."""
    config = replace(CONFIG, vocab_size=v, d_model=v)
    for dtype in ("float32", "float64"):
        for seed in range(4):
            check("cross_entropy", backend, method, dtype, LayerCase((2, v), "peaked", seed, config))


@pytest.mark.parametrize("backend", adapters.FRAMEWORKS)
def test_a_saturated_gate_is_compared_with_what_it_cancels(backend):
    """A soak found 1.41 units of 1e-12 of the largest entry, where 1 - tanh^2 makes every entry small."""
    if adapters.missing(backend):
        pytest.skip(str(adapters.missing(backend)))
    check("mixer", backend, "sequential", "float64", LayerCase((1, 1), "wide", 1675254, resets="first"))


@pytest.mark.parametrize("backend", adapters.FRAMEWORKS)
@pytest.mark.parametrize("seed", [3563022, 118221757])
def test_bfloat16_keeps_eight_bits(backend, seed):
    """A soak found 1.04 units: the unit of bfloat16 is 2^-8, and it had stood as 2^-9."""
    if adapters.missing(backend):
        pytest.skip(str(adapters.missing(backend)))
    check("block", backend, "auto", "bfloat16", LayerCase((2, 31), "small", seed, resets="last"))
    check("block", backend, "auto", "bfloat16", LayerCase((2, 31), "normal", seed))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_case_repeats_from_what_it_prints(name):
    """The reproduction in a report is a constructor."""

    names: dict[str, object] = {one.Config.__name__: one.Config for one in families().values()}
    exec(IMPORTS, names)

    @settings(max_examples=3)
    @given(case=CASES[name])
    def every_case(case):
        assert eval(repr(case), names) == case

    every_case()


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=3)
@given(data=st.data())
def test_truth_and_bounds_fit(name, data):
    """Of one shape, finite, and not so wide that nothing at all would pass for the truth."""
    truth, bounds = expected(name, data.draw(CASES[name]), "float32")
    assert set(truth) == set(bounds)
    for tensor, exact in truth.items():
        assert np.shape(exact) == np.shape(bounds[tensor]), tensor
        assert np.isfinite(exact).all() and np.isfinite(bounds[tensor]).all(), tensor
        assert (bounds[tensor] >= 0).all()
    # Below 1e-30 a program may flush everything to zero, and rightly.
    if max(np.abs(exact).max() for exact in truth.values()) > 1e-30:
        assert max(in_units(np.zeros_like(x), x, bounds[tensor]).max() for tensor, x in truth.items()) > 1.0


NANO_CASES = {
    "scan": [ScanCase((2, 64, 128), decays, "normal", "none", "none", 1) for decays in ("uniform", "slow", "mixture")],
    "adamw": [AdamWCase("no clip", 1, 2, NANO_BLOCK)],
    # The reference takes a minute for a dense state of 128.
    "dense_states": [LayerCase((2, 31), "normal", 1, replace(liquid_ssm.NANO_BLOCK, state="dense", d_state=16))],
    "diagonal_states": [LayerCase((2, 31), "normal", 1, liquid_ssm.NANO_BLOCK)],
    "ssm_block": [LayerCase((2, 31), "normal", 1, liquid_ssm.NANO_BLOCK)],
}


@pytest.mark.parametrize("name", [name for name, one in OPERATIONS.items() if not isinstance(one, Model)])
def test_each_bound_is_tight_at_the_shapes_of_nano(name):
    """A bound that nothing comes near would let mistakes through: more than 1/30 of it is used; the report has more."""
    nano = getattr(OPERATIONS[name], "nano", NANO)
    usual = [LayerCase((2, 31), values, 1, nano) for values in ("normal", "small", "absorbed")]
    usual = [case for case in usual if case.values != "absorbed" or name in ("rms_norm", "swiglu", "cross_entropy")]
    here = [backend for backend in adapters.FRAMEWORKS if not adapters.missing(backend)]
    if not here:
        pytest.skip("no backend is installed")
    used = 0.0
    for backend in here:
        method = OPERATIONS[name].methods(adapters.load(backend))[-1]
        used = max([used, *(check(name, backend, method, "float32", case) for case in NANO_CASES.get(name, usual))])
    assert used > 1 / 30


def test_a_broken_bound_names_the_worst_entry(monkeypatch):
    """What check raises: label, tensor, place, units and values."""
    backend = next((name for name in adapters.FRAMEWORKS if not adapters.missing(name)), None)
    if backend is None:
        pytest.skip("no backend is installed")
    case = LayerCase((2, 31), "normal", 3)
    truth, bound = expected("rms_norm", case, "float32")
    right = OPERATIONS["rms_norm"].run(adapters.load(backend), case, "plain", "float32")
    wrong = {**right, "y": (truth["y"] + 3.0 * bound["y"]).astype(np.float32)}
    monkeypatch.setattr(OPERATIONS["rms_norm"], "run", lambda *arguments: wrong, raising=False)
    with pytest.raises(AssertionError, match=rf"rms_norm, float32, {backend}: y\[.*\] is off by 3.*units of its bound"):
        check("rms_norm", backend, "", "float32", case)
    assert WORST.pop(f"rms_norm, float32, {backend}") == pytest.approx(3.0, rel=0.2)
    wide = {name: x.astype(np.float64) for name, x in right.items()}
    monkeypatch.setattr(OPERATIONS["rms_norm"], "run", lambda *arguments: wide, raising=False)
    with pytest.raises(AssertionError, match="expected float32"):
        check("rms_norm", backend, "", "float32", case)
