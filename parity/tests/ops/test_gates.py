"""decay and 1 - decay keep full relative accuracy in float32, where a subtraction loses over three digits."""

import math

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import assert_within, in_units
from parity.proof.bounds.running_error import EXP, LOG, RSQRT, SIGMOID, TANH
from spec.mixers.liquidnet import half_life_bias
from spec.reference.scan import decay_gates, sigmoid

LIBRARY = {
    "tanh": (np.tanh, TANH, np.concatenate([np.linspace(-12, 12, 400_001), np.geomspace(1e-30, 1, 100_001)])),
    "sigmoid": (sigmoid, SIGMOID, np.linspace(-80, 80, 400_001)),
    "exp": (np.exp, EXP, np.linspace(-80, 80, 400_001)),
    "log": (np.log, LOG, np.geomspace(1e-30, 1e30, 400_001)),
    "rsqrt": (lambda x: 1.0 / np.sqrt(x), RSQRT, np.geomspace(1e-30, 1e30, 400_001)),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_the_libraries_keep_what_the_bounds_assume(adapter, name):
    """Swept over the range in use; the assumption is at most ten times what is seen, so it is not empty."""
    function, units, x = LIBRARY[name]
    x = x.astype(np.float32)
    truth = function(x.astype(np.float64))
    found = adapter.elementary(name, x)
    bound = units * 2.0**-24 * np.abs(truth)
    assert_within({name: found}, {name: truth}, {name: bound}, f"library, {name}, {adapter.NAME}")
    assert in_units(found, truth, bound).max() > 0.1


def test_subtraction_would_fail_at_half_life_4096(adapter):
    """The same bound tells the algebra in use from the obvious one, by a factor of a hundred and more."""
    p = half_life_bias(2)[1:]
    alpha, fresh = adapter.decay_gates(p, 1e-6)
    _, truth = decay_gates(p.astype(np.float64), 1e-6)
    bound = (SIGMOID + 3.0) * 2.0**-24 * truth  # see gates_bounds
    assert truth[0] == pytest.approx(math.log(2.0) / 4096 + 1e-6, rel=1e-3)
    assert in_units(fresh, truth, bound) <= 1.0
    # alpha is within u of 1: its last bit is 2^-24 / 1.7e-4 = 3.5e-4 of the difference, whatever made it.
    alphas = np.nextafter(alpha, np.float32(0)), alpha, np.nextafter(alpha, np.float32(1))
    subtracted = [in_units(np.float32(1.0) - x, truth, bound)[0] for x in alphas]
    assert sorted(subtracted)[1] > 100.0


def test_ends_are_exact(adapter):
    """A decay gate that is shut or open all the way gives no value that is not a number, and stays in [0, 1]."""
    p = np.array([-200.0, -104.0, -89.0, 89.0, 104.0, 200.0], np.float32)
    alpha, fresh = adapter.decay_gates(p, 1e-6)
    for x in (alpha, fresh):
        assert np.isfinite(x).all() and (x >= 0).all() and (x <= 1).all()
    np.testing.assert_array_equal(alpha[:3], np.float32(math.exp(-1e-6)))
    np.testing.assert_array_equal(fresh[3:], np.float32(1.0))


def test_the_gradients_of_recurrence_gates_that_are_shut_are_numbers(adapter):
    """Where sigmoid(pre) or the whole exponent is 0 in float32, 1 - a^2 is, and its root has no derivative there."""
    gates = adapters.load_module(adapter.NAME, "mixers.rg_lru").recurrence_gates
    pre, logit = np.array([[[-200.0, -104.0, 0.5, 1.0, 1.0, 1.0]]], np.float32), np.array([0.5, 0.5, 200.0], np.float32)
    if adapter.NAME == "torch":
        leaves = [x.requires_grad_() for x in adapter._tensors(pre, logit)]
        sum(x.sum() for x in gates(*leaves)).backward()
        found = [leaf.grad.numpy() for leaf in leaves]
    else:
        import jax

        found = jax.grad(lambda *leaves: sum(x.sum() for x in gates(*leaves)), (0, 1))(pre, logit)
    for gradient in map(np.asarray, found):
        assert np.isfinite(gradient).all()
    # Nothing passes through a gate that is shut; the input gates beside them are open.
    assert not np.asarray(found[0])[..., :3].any() and np.asarray(found[0])[..., 3:].all()


def test_the_gradient_of_the_decay_gate_keeps_its_digits(adapter):
    """-decay sigmoid(p) at p from -12 to 12 and at every half-life: as y (1 - y), the last digits cancel.

    17 u for the decay, the sigmoid and their product (bounds/layers.py); doubled, since the bias is summed from it.
    """
    bias = np.concatenate([np.linspace(-12, 12, 257), half_life_bias(129)]).astype(np.float32)
    d = len(bias)
    zero, one = np.zeros((1, 1, d), np.float32), np.ones((1, 1, d), np.float32)
    inputs, gradients = (np.zeros((1, 1, 3 * d), np.float32), bias), (one, zero, zero)
    found = adapter.vjp("gates", inputs, (), gradients, delta_min=1e-6)["bias gradient"]
    p = bias.astype(np.float64)
    expected = -decay_gates(p, 1e-6)[0] * sigmoid(p)
    units = in_units(found, expected, 34 * 2.0**-24 * np.abs(expected))
    assert units.max() <= 1.0, f"the gradient at p = {p[units.argmax()]} is off by {units.max():.3g} units of its bound"
