"""One test class for every operation, backend, method and dtype: what is registered in METHODS is tested here."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, find, given, settings
from hypothesis import strategies as st

from parity.proof import adapters, environment, interpreted_kernels
from parity.proof.bounds import TIGHT, WORST, in_units
from parity.proof.operations import OPERATIONS, check, expected, label_of, mixers
from parity.proof.operations.models import Model
from parity.proof.problems import cases, features, strategies
from parity.proof.problems.cases import CONFIG, LayerCase
from parity.proof.problems.strategies import CASES
from parity.suite.report.sweep import IMPORTS
from parity.suite.support import tightness
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


def on_cpu(backend: str) -> bool:
    """Whether it computes where tightness.json was recorded."""
    return all(device.startswith("cpu") for device in environment.devices(backend))


# An estimate costs nine runs of the reference, and a problem of a new shape a compilation.
OFTEN = settings()
SELDOM = settings(max_examples=max(1, settings().max_examples // 13))
# Interpreted, an example takes seconds.
RARELY = settings(max_examples=max(1, settings().max_examples // 20))
HUGE = "values huge"
MASKED = {"scan", "mixer", "block", "dense_states", "diagonal_states", "ssm_block"}
GATED = {"gates", "mixer"}
KINDS = {
    "scan": {f"decays {kind}" for kind in cases.DECAYS} | {f"drives {kind}" for kind in cases.DRIVES} | {"one token"},
    "gates": {f"values {kind}" for kind in strategies.GATES} | {"one token"},
    "rms_norm": {f"values {kind}" for kind in cases.VALUES} | {"one token"},
    "swiglu": {f"values {kind}" for kind in strategies.HIDDEN} | {"one token"},
    "cross_entropy": {f"values {kind}" for kind in strategies.HIDDEN}
    | {f"ignored {kind}" for kind in cases.IGNORED}
    | {"one token"},
    "adamw": {f"kind {kind}" for kind in cases.ADAMW} | {"one step", "several steps"},
}
"""What the forty draws of an operation whose bound is a theorem must contain besides."""
WIDTHS = {"an odd width", "a width that blocks divide"}


def required(name: str, slow: bool) -> frozenset[str]:
    """What the draws of an operation must contain, all together, whatever the number of them."""
    own: set[str] = set() if name == "adamw" else set(features.BLOCKS)
    masked = name in MASKED or isinstance(OPERATIONS[name], Model | mixers.Mixer)
    own |= features.MASKS if masked else set()
    own |= {HUGE} if name in GATED else set()
    if OPERATIONS[name].theorem and not slow:
        own |= KINDS[name] | (WIDTHS if name != "adamw" else set())
        own |= {"no resets", "no padding"} if masked else set()
    return frozenset(own)


@cache
def always(name: str) -> tuple:
    """Cases that are always among the draws: every mask at once in several rows, and so again of huge values."""
    whole = (required(name, slow=True) - {HUGE}) & (features.MASKS | features.BLOCKS)
    some = settings(max_examples=5000, derandomize=True, database=None, phases=[Phase.generate])
    wanted = [whole] * (name != "adamw") + [whole | {HUGE}] * (name in GATED)
    return tuple(find(CASES[name], lambda case, of=of: of <= features.features(case), settings=some) for of in wanted)


def over_draws(name: str, slow: bool, use: Callable[[Any], object]) -> None:
    """Every case that an operation is tested on: those of `always`, and so many more."""

    @(RARELY if slow else OFTEN if OPERATIONS[name].theorem else SELDOM)
    @given(case=CASES[name])
    def every_case(case):
        use(case)

    for case in always(name):
        every_case = example(case=case)(every_case)
    every_case()


@pytest.mark.parametrize("slow", [False, True], ids=["", "interpreted"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_draws_contain_what_they_must(name, slow):
    """Those of the test below, on which nothing is computed here."""
    seen: set[str] = set()
    over_draws(name, slow, lambda case: seen.update(features.features(case)))
    assert required(name, slow) <= seen, sorted(required(name, slow) - seen)


# Its examples are drawn by a function inside: without the mark `make soak` would pass it by.
@pytest.mark.hypothesis
@pytest.mark.parametrize("name, backend, method, dtype", implementations())
class TestOperation:
    """Outputs and every gradient against the float64 reference, in units of the bound.

    float32: a theorem for the layers, an estimate for mixer, block and model. float64: the last digits, so that no
    formula error hides in a float32 bound. bfloat16: the estimate for products of bfloat16 operands in a float32 model.
    """

    def test_within_its_bound(self, request, name, backend, method, dtype):
        try:
            over_draws(
                name,
                interpreted_kernels.is_slow(backend, method),
                lambda case: check(name, backend, method, dtype, case),
            )
        except NotImplementedError as error:
            pytest.skip(str(error))
        if on_cpu(backend):
            tightness.judge(request, label_of(name, backend, method, dtype))


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


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_bound_was_tight_when_it_was_recorded(name):
    """A bound that nothing comes near would let mistakes through: more than 1/30 of it is used, by every method.

    Of each tensor what is used stands beside it, and `test_within_its_bound` holds that against what its draws use.
    """
    recorded = {label: used for label, used in tightness.read().items() if label.split(", ")[:2] == [name, "float32"]}
    assert recorded
    for label, used in recorded.items():
        assert max(used.values()) > TIGHT, label


def test_a_bound_that_grows_too_wide_is_named():
    """By its tensor, however tight the others are; so are tensors that are not those of the record."""
    recorded = {"scan, float32, x": {"states": 0.3, "last": 0.02}, "scan, float64, x": {"last": 50.0}}
    assert tightness.faults("scan, float32, x", {"states": 0.05, "last": 0.02}, recorded) == []
    (fault,) = tightness.faults("scan, float32, x", {"states": 0.9, "last": 0.0019}, recorded)
    assert fault.startswith("scan, float32, x, last: 0.0019 of the bound is used, and it was 0.02")
    assert "record" in tightness.faults("scan, float32, x", {"states": 1.0}, recorded)[0]
    assert "nothing is recorded" in tightness.faults("scan, float32, y", {"states": 1.0}, recorded)[0]
    assert tightness.faults("scan, float64, x", {"last": 499.0}, recorded) == []
    (fault,) = tightness.faults("scan, float64, x", {"last": 501.0}, recorded)
    assert fault.startswith("scan, float64, x, last: the bound is 5e+02 units of 2^-53 wide, and it was 50")


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
