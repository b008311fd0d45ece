"""The float64 reference itself: gradients against complex steps, gates against their definition, AdamW's paper."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from parity.proof.problems.cases import ModelArrays, ModelCase, perturbed_parameters
from parity.proof.problems.complex_step import complex_step
from parity.proof.problems.strategies import model_cases
from spec import LiquidNetConfig, TrainingConfig
from spec.reference import adamw_step, clip_by_global_norm, forward, loss_and_gradients
from spec.reference.model import cross_entropy
from spec.reference.scan import decay_gates, scan, scan_adjoint

SMALL = LiquidNetConfig(vocab_size=5, d_model=3, d_ff=4, n_layers=2, max_seq_len=4)
very_few = settings(max_examples=max(1, settings().max_examples // 5))


def total(params, config, arrays: ModelArrays):
    """loss + sum(final_state_gradient * final states), in complex numbers."""
    logits, last = forward(
        params, config, arrays.tokens, arrays.states, arrays.resets, arrays.padding, dtype=np.complex128
    )
    return cross_entropy(logits, arrays.labels)[0] + (arrays.final_state_gradient * last).sum()


@very_few
@given(case=model_cases(lengths=(1, 2, 7), config=SMALL))
def test_every_gradient_against_complex_steps(case):
    arrays, params = case.arrays(), case.parameters
    loss, gradients, state_gradient = loss_and_gradients(params, case.config, *arrays)
    assert loss == pytest.approx(total(params, case.config, arrays._replace(final_state_gradient=0.0)).real, rel=1e-14)
    assert list(gradients) == list(params)
    expected = {path: complex_step(lambda x, p=path: total({**params, p: x}, case.config, arrays), params[path])
                for path in params}  # fmt: skip
    expected[""] = complex_step(lambda x: total(params, case.config, arrays._replace(states=x)), arrays.states)
    for path, found in {**gradients, "": state_gradient}.items():
        # Both sides add some hundred rounded terms: 1e-13 of the largest entry.
        np.testing.assert_allclose(found, expected[path], rtol=0, atol=1e-13 * max(1.0, abs(expected[path]).max()))


def test_gradients_are_not_all_zero():
    """The comparison above would hold for a model that ignores its parameters."""
    case = ModelCase(7, "last", "none", "some", False, 3, config=SMALL)
    _, gradients, state_gradient = loss_and_gradients(case.parameters, SMALL, *case.arrays())
    assert all(np.abs(gradient).max() > 1e-6 for gradient in (*gradients.values(), state_gradient))


def test_the_scan_adjoint_against_complex_steps():
    random = np.random.default_rng(0)
    decay, drive, weight = random.random((2, 5, 3)), *random.standard_normal((2, 2, 5, 3))
    decay[0, 2], decay[1, 3] = 0.0, 1.0
    state, final = random.standard_normal((2, 2, 3))

    def objective(decay, drive, state):
        states, last = scan(decay.astype(complex), drive.astype(complex), state.astype(complex))
        return (weight * states).sum() + (final * last).sum()

    found = scan_adjoint(decay, scan(decay, drive, state)[0], state, weight, final)
    expected = (
        complex_step(lambda x: objective(x, drive, state), decay),
        complex_step(lambda x: objective(decay, x, state), drive),
        complex_step(lambda x: objective(decay, drive, x), state),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("delta_min", [1e-6, 0.0, 0.5])
def test_decay_gates_against_the_definition(delta_min):
    """exp(-delta) and -expm1(-delta), delta = softplus(p) + delta_min, where long doubles are longer: p to +-40."""
    p = np.concatenate([np.linspace(-40, 40, 4001), [-40.0, 40.0]])
    wide = p.astype(np.longdouble)
    delta = np.logaddexp(np.longdouble(0), wide) + np.longdouble(delta_min)
    alpha, fresh = decay_gates(p, delta_min)
    # Five roundings in the reference (see `gates_bounds`); where long double is double, exp(-delta) at p = 40 turns the
    # rounding of delta into 40 of its result.
    worse = 0 if np.finfo(np.longdouble).eps < np.finfo(np.float64).eps else 45
    tolerance = (9 + worse) * np.finfo(np.float64).eps / 2
    np.testing.assert_allclose(alpha, np.exp(-delta).astype(np.float64), rtol=tolerance)
    np.testing.assert_allclose(fresh, -np.expm1(-delta).astype(np.float64), rtol=tolerance)
    np.testing.assert_allclose(alpha + fresh, 1.0, rtol=4e-16)


def test_ignored_labels_count_nothing():
    case = ModelCase(7, "none", "none", "all", False, 1, config=SMALL)
    arrays = case.arrays()._replace(final_state_gradient=None)
    loss, gradients, state_gradient = loss_and_gradients(case.parameters, SMALL, *arrays)
    assert loss == 0.0
    assert not any(gradient.any() for gradient in (*gradients.values(), state_gradient))
    labels = arrays.labels.copy()
    labels[0, 2] = 4
    logits, _ = forward(case.parameters, SMALL, arrays.tokens, arrays.states)
    loss, *_ = loss_and_gradients(case.parameters, SMALL, arrays.tokens, labels, arrays.states)
    row = logits[0, 2]
    assert loss == pytest.approx(np.log(np.exp(row).sum()) - row[4], rel=1e-14)


def test_a_large_logit_does_not_overflow():
    loss, gradient = cross_entropy(np.array([[[1e4, 0.0, -1e4]]]), np.array([[1]]))
    assert loss == 1e4
    np.testing.assert_array_equal(gradient, [[[1.0, -1.0, 0.0]]])


def test_adamw_against_the_paper():
    """Loshchilov and Hutter 2019, algorithm 2, line by line for one number, over several steps."""
    training = TrainingConfig(beta1=0.8, beta2=0.95, adam_eps=1e-3, weight_decay=0.2)
    random = np.random.default_rng(0)
    theta, m, v = 1.5, 0.0, 0.0
    params, first, second = ({"w": np.array([x])} for x in (theta, m, v))
    for t in range(1, 8):
        g, rate = random.standard_normal(), 0.1 * t
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g**2
        m_hat, v_hat = m / (1 - 0.8**t), v / (1 - 0.95**t)
        theta = theta - rate * (m_hat / (np.sqrt(v_hat) + 1e-3) + 0.2 * theta)
        gradients = {"w": np.array([g])}
        params, first, second = adamw_step(params, gradients, first, second, t, rate, training, frozenset({"w"}))
        found = [x["w"][0] for x in (params, first, second)]
        np.testing.assert_allclose(found, [theta, m, v], rtol=0, atol=1e-14)
    kept, *_ = adamw_step(params, gradients, first, second, 8, 0.1, training, frozenset())
    undecayed = dataclasses.replace(training, weight_decay=0.0)
    assert kept["w"] == adamw_step(params, gradients, first, second, 8, 0.1, undecayed, frozenset({"w"}))[0]["w"]


def test_clipping():
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    assert norm == 5.0
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-15)
    np.testing.assert_allclose(clipped["b"], [[0.8]], rtol=1e-15)
    for grad_clip in (5.0, 1e9, 0.0):
        assert all(np.array_equal(clip_by_global_norm(gradients, grad_clip)[0][path], gradients[path]) for path in "ab")
    zero, norm = clip_by_global_norm({"a": np.zeros(2)}, 1.0)
    assert norm == 0.0 and not zero["a"].any()


@pytest.mark.parametrize(
    "tokens, message",
    [
        (np.zeros((2, 0), int), r"shape \[b, t\].*\(2, 0\)"),
        (np.zeros(3, int), r"shape \[b, t\].*\(3,\)"),
        (np.array([[0, 5]]), r"\[0, 5\), got 5 in row 0, position 1"),
        (np.array([[-1, 2]]), r"\[0, 5\), got -1 in row 0, position 0"),
    ],
)
def test_bad_tokens_raise(tokens, message):
    with pytest.raises(ValueError, match=message):
        forward(perturbed_parameters(SMALL, 0), SMALL, tokens)


def test_bad_parameters_raise():
    params = perturbed_parameters(SMALL, 0)
    tokens = np.zeros((1, 1), int)
    for changed, message in [
        ({**params, "extra": np.zeros(1)}, "tensor extra is not part"),
        ({path: x for path, x in params.items() if path != "final_norm.weight"}, "tensor final_norm.weight is missing"),
        ({**params, "final_norm.weight": np.zeros(4)}, r"final_norm.weight has shape \(4,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            forward(changed, SMALL, tokens)
