"""The Liquid SSM's reference: every gradient against complex steps, masks, gaps, noise, configuration and start."""

import math
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from parity.proof.operations.liquid_ssm import KINDS
from parity.proof.problems.cases import perturbed_parameters
from parity.proof.problems.complex_step import complex_step
from spec import LiquidSSMConfig, initial_parameters, parameter_table
from spec.mixers.base import NO_MASKS, Masks
from spec.mixers.liquid_ssm import FAMILY
from spec.mixers.liquid_ssm.hippo import legs_frequencies
from spec.mixers.liquid_ssm.reference import liquid_states, liquid_states_adjoint
from spec.reference import forward, loss_and_gradients
from spec.reference.blocks import within
from spec.reference.model import cross_entropy

# What sets the step, and a target_dt for that; `problem` knows a better one for both.
TARGETS = {"target": 1e-3, "content": 1e3, "both": 1e3}
SMALL = LiquidSSMConfig(5, d_model=3, d_ff=4, n_layers=1, max_seq_len=8, d_state=4, d_tau=2, exploration_rate=0.3)


class Problem(NamedTuple):
    """A layer with noise on every weight, and what it reads."""

    config: LiquidSSMConfig
    weights: dict[str, np.ndarray]
    u: np.ndarray
    pre: np.ndarray
    state: np.ndarray
    resets: np.ndarray
    padding: np.ndarray
    noise: np.ndarray
    gaps: np.ndarray

    @property
    def given(self) -> tuple[np.ndarray, ...]:
        """The masks, the noise and the gaps, in the order of the reference."""
        return self.resets, self.padding, self.noise, self.gaps

    @property
    def masks_and_side(self) -> tuple[Masks, dict[str, np.ndarray]]:
        """The same as a family's reference takes them."""
        return Masks(self.resets, self.padding), {"noise": self.noise, "dt_scale": self.gaps}


def problem(kind: str, n: int = 4, sets_dt: str = "both", length: int = 6) -> Problem:
    """Two rows, padded at the same places, so that these can be left out; one reset is on padding."""
    config = replace(SMALL, d_state=n, target_dt=TARGETS[sets_dt], **KINDS[kind])
    weights = {path: x.astype(float) for path, x in within(perturbed_parameters(config, n), "blocks.0.mixer.").items()}
    random = np.random.default_rng(n)
    u_btd = random.standard_normal((2, length, config.d_model))
    resets, padding = np.zeros((2, 2, length), bool)
    resets[0, [3, 5]], resets[1, 1], padding[:, [0, 2, 5]] = True, True, True
    noise, gaps = random.standard_normal((2, length, n)), random.uniform(0.2, 5.0, (2, length))
    state = random.standard_normal((2, n))
    pre_btx = u_btd @ weights["input.weight"].T
    if sets_dt == "both":
        # The median of what the content asks for: about half of the tokens ask for more.
        at = liquid_states(pre_btx, weights, config, state, resets, padding, noise, gaps)[2].clock
        config = replace(config, target_dt=float(np.median(at.dt[..., 0] / gaps)))
    return Problem(config, weights, u_btd, pre_btx, state, resets, padding, noise, gaps)


def check_gradients(function, arrays: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Each gradient of a function of a dictionary of arrays."""
    wide = {name: x.astype(np.complex128) for name, x in arrays.items()}
    for name, x in arrays.items():
        expected = complex_step(lambda moved, name=name: function({**wide, name: moved}), x)
        # Both sides add some hundred rounded terms: 1e-13 of the largest entry.
        np.testing.assert_allclose(
            found[name], expected, rtol=0, atol=1e-13 * max(1.0, np.abs(expected).max()), err_msg=name
        )


CASES = [(kind, 4, sets_dt) for kind in KINDS for sets_dt in TARGETS] + [(kind, 16, "both") for kind in KINDS]


@pytest.mark.parametrize("kind, n, sets_dt", CASES)
def test_gradients_of_the_layer_against_complex_steps(kind, n, sets_dt):
    """Of its input, every weight and the initial state, with masks, noise, gaps and a gradient of the last state."""
    of = problem(kind, n, sets_dt)
    random = np.random.default_rng(1)
    weight, final = random.standard_normal(of.u.shape), random.standard_normal(of.state.shape)

    def objective(arrays):
        y, last, *_ = FAMILY.forward(arrays["u"], arrays, of.config, arrays["state"], *of.masks_and_side)
        return (weight * y).sum() + (final * last).sum()

    saved = FAMILY.forward(of.u, of.weights, of.config, of.state, *of.masks_and_side).saved
    set_by_content = saved.evolved.clock.fastest.any(axis=-1)
    assert {"target": not set_by_content.any(), "content": set_by_content.all(),
            "both": 0 < set_by_content.sum() < set_by_content.size}[sets_dt]  # fmt: skip
    of_input, gradients, of_state = FAMILY.adjoint(saved, weight, final)
    assert set(gradients) == set(of.weights)
    assert all(np.abs(gradient).max() > 1e-6 for gradient in gradients.values())
    check_gradients(objective, {**of.weights, "u": of.u, "state": of.state},
                    {**gradients, "u": of_input, "state": of_state})  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bare", [False, True])
def test_gradients_of_the_states_against_complex_steps(kind, bare):
    """Of the pre-activations and the weights of the dynamics, with everything that may be given and with nothing."""
    of = problem(kind)
    given: tuple[np.ndarray | None, ...] = (None,) * 4 if bare else of.given
    names = [name for name in of.weights if name not in ("input.weight", "output.weight", "skip")]
    start = {} if bare else {"state": of.state}
    weight = np.random.default_rng(2).standard_normal((*of.u.shape[:2], 4))

    def objective(arrays):
        return (weight * liquid_states(arrays["pre"], arrays, of.config, arrays.get("state"), *given)[0]).sum()

    saved = liquid_states(of.pre, of.weights, of.config, start.get("state"), *given)[2]
    of_pre, gradients, of_state = liquid_states_adjoint(saved, weight)
    check_gradients(objective, {**{name: of.weights[name] for name in names}, "pre": of.pre, **start},
                    {**gradients, "pre": of_pre, "state": of_state})  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_model_against_complex_steps(kind):
    """Two layers, so that the gradient of the residual stream passes through one layer to the other."""
    config = replace(SMALL, n_layers=2, **KINDS[kind])
    params = {path: x.astype(float) for path, x in perturbed_parameters(config, 3).items()}
    random, shape = np.random.default_rng(3), (2, 5)
    tokens, labels = random.integers(0, 5, (2, *shape))
    labels[0, 1] = -100
    states, final = random.standard_normal((2, 2, 2, 4))
    resets, padding = random.random((2, *shape)) < 0.3
    assert resets.any() and padding.any()
    of_ssm = {"noise": random.standard_normal((2, *shape, 4)), "gaps": random.uniform(0.5, 3.0, shape)}

    def objective(arrays):
        own = {path: arrays[path] for path in params}
        logits, last = forward(own, config, tokens, arrays["states"], resets, padding, dtype=np.complex128, **of_ssm)
        return cross_entropy(logits, labels)[0] + (final * last).sum()

    given = (states, resets, padding, final)
    _, gradients, of_states = loss_and_gradients(params, config, tokens, labels, *given, **of_ssm)
    assert list(gradients) == list(params)
    assert all(np.abs(gradient).max() > 1e-6 for gradient in gradients.values())
    check_gradients(objective, {**params, "states": states}, {**gradients, "states": of_states})


def states_of(of: Problem, **changed: Any) -> np.ndarray:
    """All states of a problem, some of what is given changed."""
    of = of._replace(**changed)
    return liquid_states(of.pre, of.weights, of.config, of.state, *of.given)[0]


def steps_of(of: Problem) -> np.ndarray:
    """The step of each token, [b, t, 1]."""
    return liquid_states(of.pre, of.weights, of.config, of.state, *of.given)[2].clock.dt


@pytest.mark.parametrize("sets_dt", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_is_a_factor_of_the_step(kind, sets_dt):
    """A gap of 1 is none, bit for bit; the first step, before any state differs, is scaled by exactly the gap."""
    of = problem(kind, sets_dt=sets_dt)
    ones = np.ones_like(of.gaps)
    np.testing.assert_array_equal(states_of(of, gaps=ones), states_of(of, gaps=None))
    np.testing.assert_array_equal(steps_of(of._replace(gaps=ones)), steps_of(of._replace(gaps=None)))
    plain = steps_of(of._replace(gaps=ones))
    np.testing.assert_array_equal(steps_of(of)[:, 0, 0], of.gaps[:, 0] * plain[:, 0, 0])
    # No time passes: the same numbers, whatever the input.
    still = states_of(of, gaps=0.0 * ones, resets=None)
    np.testing.assert_array_equal(still, np.repeat(of.state[:, None], ones.shape[1], axis=1))


@pytest.mark.parametrize("sets_dt", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_is_a_tenth_of_the_least_time_constant_or_the_target(kind, sets_dt):
    """gap min(target_dt, min tau / 10), in numbers: every implementation takes the tenth from one constant."""
    of = problem(kind, sets_dt=sets_dt)
    at = liquid_states(of.pre, of.weights, of.config, of.state, *of.given)[2].clock
    least = np.minimum(of.config.target_dt, at.tau.min(axis=-1, keepdims=True) / 10.0)
    np.testing.assert_allclose(at.dt, of.gaps[..., None] * least, rtol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_a_drive_times_the_exploration_rate(kind):
    """Bit for bit, and a rate of zero leaves nothing of it."""
    of = problem(kind)
    drive = of.pre[..., :4] + of.config.exploration_rate * of.noise
    by_hand = np.concatenate([drive, of.pre[..., 4:]], axis=-1)
    np.testing.assert_array_equal(states_of(of), states_of(of, pre=by_hand, noise=None))
    calm = of._replace(config=replace(of.config, exploration_rate=0.0))
    np.testing.assert_array_equal(states_of(calm), states_of(calm, noise=None))
    assert not np.array_equal(states_of(of), states_of(calm))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    """States of a row with padding are those of the row without it, bit for bit, and stand still there."""
    of = problem(kind, length=12)
    kept = ~of.padding[0]
    assert 0 < kept.sum() < kept.size and not kept[0]
    states = states_of(of)
    short = {name: getattr(of, name)[:, kept] for name in ("pre", "resets", "padding", "noise", "gaps")}
    np.testing.assert_array_equal(states[:, kept], states_of(of, **short))
    previous = np.concatenate([of.state[:, None], states[:, :-1]], axis=1)
    np.testing.assert_array_equal(states[:, ~kept], previous[:, ~kept])


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_forgets_and_a_row_may_be_cut_anywhere(kind):
    """From a reset on the states are those of a row that begins there; two halves, the state carried, are the whole."""
    of = problem(kind, length=8)._replace(resets=None, padding=None)
    whole = states_of(of)
    for cut in range(1, 8):
        head, tail = ({name: getattr(of, name)[:, part] for name in ("pre", "noise", "gaps")}
                      for part in (slice(0, cut), slice(cut, None)))  # fmt: skip
        first = states_of(of, **head)
        second = states_of(of, **tail, state=first[:, -1])
        np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
        resets = np.zeros((2, 8), bool)
        resets[:, cut] = True
        with_reset = states_of(of, resets=resets)
        np.testing.assert_array_equal(with_reset[:, :cut], whole[:, :cut])
        np.testing.assert_array_equal(with_reset[:, cut:], states_of(of, **tail, state=np.zeros_like(of.state)))


BAD = [
    *(({name: value}, f"{name} .* got {value!r}")
      for name in ("vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len", "d_state", "d_tau")
      for value in (0, -1, 2.0, True, "8", None)),
    ({"state": "sparse"}, "state 'sparse'"),
    ({"hippo": "legt"}, "hippo 'legt'"),
    ({"state": "diagonal", "d_state": 5}, "d_state 5"),
    ({"state": None}, "unknown state None"),
    ({"hippo": 5}, "unknown hippo 5"),
    ({"state": "diagonal", "d_state": 4, "hippo": "as_printed"}, "'as_printed'"),
    ({"hippo": "as_printed", "d_state": 17}, "d_state <= 16, got 17"),
    *(({"eta": value}, f"eta .* got {value!r}") for value in (0.0, -0.1, 1.0, math.nan, "0.5", True, None)),
    *(({name: value}, f"{name} .* got {value!r}") for name in ("target_dt", "tau_min", "tau_max")
      for value in (0.0, -1.0, 1e7, math.nan, math.inf)),
    ({"tau_min": 3.0, "tau_max": 2.5}, "tau_max 2.5 is below tau_min 3"),
    *(({"exploration_rate": value}, f"exploration_rate .* got {value!r}") for value in (-1e-9, 1001.0, math.nan)),
    *(({"norm_eps": value}, f"norm_eps .* got {value!r}") for value in (0.0, 1.1, math.nan)),
]  # fmt: skip


@pytest.mark.parametrize("values, message", BAD)
def test_a_bad_value_is_named(values, message):
    """Each ValueError says which field and what it was given."""
    with pytest.raises(ValueError, match=message) as raised:
        LiquidSSMConfig(**values)
    assert any(name in str(raised.value) for name in values)


def test_every_field_is_validated():
    assert {field.name for field in fields(LiquidSSMConfig)} == {name for values, _ in BAD for name in values}
    LiquidSSMConfig(hippo="as_printed", d_state=16, eta=0.999, tau_min=2.0, tau_max=2.0)


@pytest.mark.parametrize("kind, n", [("dense", 1), ("dense", 7), ("diagonal", 2), ("diagonal", 64)])
def test_a_fresh_layer_spans_the_time_constants_and_begins_at_legs(kind, n):
    """tau from tau_min to tau_max in equal ratios, A as published, and a block that at first adds nothing."""
    config = replace(SMALL, d_state=n, tau_min=0.5, tau_max=200.0, **KINDS[kind])
    values = initial_parameters(config, 0)
    assert {row.path: row.shape for row in parameter_table(config)} == {path: x.shape for path, x in values.items()}
    assert all(x.dtype == np.float32 for x in values.values())
    mixer = within(values, "blocks.0.mixer.")
    expected = 0.5 * 400.0 ** (np.arange(config.modes) / max(config.modes - 1, 1))
    # Half an ulp of |log tau| < 8, 2^-22, is the relative change of tau.
    np.testing.assert_allclose(np.exp(mixer["log_tau"].astype(float)), expected, rtol=2.0**-21.9)
    assert not any(mixer[name].any() for name in ("log_scale", "output.weight", "skip"))
    assert ("frequency" in mixer) == (kind == "diagonal")
    if kind == "diagonal":
        np.testing.assert_array_equal(mixer["frequency"], legs_frequencies(n))
    u_btd = np.random.default_rng(0).standard_normal((1, 5, config.d_model))
    assert not FAMILY.forward(u_btd, mixer, config, None, NO_MASKS, {}).y.any()
