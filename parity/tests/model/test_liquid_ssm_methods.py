"""The methods for the states of a Liquid SSM: what they report, what where they find nothing, large problems."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.operations import OPERATIONS, check
from parity.proof.operations.liquid_ssm import DENSE, DIAGONAL, clear_of_ties
from parity.proof.problems.cases import LayerCase

NAMES = {"dense": "dense_states", "diagonal": "diagonal_states"}
CASE = LayerCase((2, 31), "normal", 3, DIAGONAL, resets="some", padding="right")


def own_arrays(adapter, *arrays):
    """Torch's tensors; JAX takes what it is given."""
    return adapter._tensors(*arrays) if adapter.NAME == "torch" else arrays


def given(adapter, case):
    """The modules of a backend that compute states, and the inputs of `liquid_states` in it."""
    modules = [adapters.load_module(adapter.NAME, name) for name in ("mixers.liquid_ssm", "mixers.liquid_ssm.solvers")]
    weights, (pre, state, *_) = OPERATIONS["diagonal_states"].arrays(case)
    own = partial(own_arrays, adapter)
    of = dict(zip((path.removesuffix(".weight") for path in weights), own(*weights.values()), strict=True))
    masks = own(*OPERATIONS["diagonal_states"].masks(case))
    return *modules, *own(pre), modules[0].Dynamics(**of), *own(state), masks


def results(adapter, case, method):
    """Outputs and gradients."""
    return OPERATIONS["diagonal_states"].run(adapter, case, method, "float32")


def test_parallel_reports_how_it_got_there(adapter):
    """A few iterations, a residual of a few roundings."""
    _, solvers, pre, of, state, (resets, padding, noise, scale) = given(adapter, CASE)
    n = DIAGONAL.d_state
    inputs = solvers.Inputs(pre[..., :n] + DIAGONAL.exploration_rate * noise, pre[..., n:], scale, resets, padding)
    solved = solvers.parallel(inputs, of, DIAGONAL, state)
    assert bool(solved.converged) and 2 <= int(solved.iterations) <= 16
    assert float(solved.residual) <= 4.0 * np.finfo(np.float32).eps
    stepped = solvers.sequential(inputs, of, DIAGONAL, state)
    assert (int(stepped.iterations), float(stepped.residual), bool(stepped.converged)) == (1, 0.0, True)


def test_parallel_says_where_it_did_not_converge(adapter, monkeypatch):
    """By name it raises, or where nothing can raise gives NaN; `auto`, in torch, steps instead and says so."""
    solvers = adapters.load_module(adapter.NAME, "mixers.liquid_ssm.solvers")
    stepped = results(adapter, CASE, "sequential")
    monkeypatch.setattr(solvers, "MOST_ITERATIONS", 2)
    fresh = replace(DIAGONAL, norm_eps=2e-6)  # another configuration, another compiled program
    case = replace(CASE, config=fresh)
    if adapter.NAME == "jax":
        found = results(adapter, case, "parallel")
        assert np.isnan(found["states"]).all() and np.isnan(found["last"]).all() and np.isnan(found["log_tau"]).any()
        return
    with pytest.raises(FloatingPointError, match=r"'parallel' did not settle in 2 iterations, its residual is .*'seq"):
        results(adapter, case, "parallel")
    with pytest.warns(RuntimeWarning, match=r"did not settle in 2 iterations.*'sequential' goes on instead"):
        fallen_back = results(adapter, case, "auto")
    for name, expected in stepped.items():
        np.testing.assert_array_equal(fallen_back[name], expected, err_msg=name)


@pytest.mark.parametrize("of_large", [0.5, 1.0])
def test_every_row_settles_by_its_own_size(adapter, of_large):
    """However large its neighbour, and however fast that has settled: a part of what is missing, again and again."""
    solvers = adapters.load_module(adapter.NAME, "mixers.liquid_ssm.solvers")
    target, rate = (np.array(rows, np.float32).reshape(2, 1, 1) for rows in ((1.0, 1e6), (0.5, of_large)))
    goal, share = own_arrays(adapter, target, rate)
    found, iterations, _, converged = solvers._settled(lambda guess: guess + share * (goal - guess), goal * 0.0)
    assert bool(converged) and int(iterations) < solvers.MOST_ITERATIONS
    np.testing.assert_allclose(np.asarray(found), target, rtol=8 * np.finfo(np.float32).eps)


def test_a_clock_that_hangs_on_every_bit_of_the_state_is_no_trap(adapter):
    """Weights of the clock a thousand times as large, over more steps than there are iterations."""
    liquid, solvers, pre, of, state, masks = given(adapter, replace(CASE, shape=(2, 100)))
    assert solvers.MOST_ITERATIONS < 100
    wild = of._replace(tau_state=of.tau_state * 1000.0)
    methods = ("parallel", "sequential")
    found = [liquid.liquid_states(pre, wild, DIAGONAL, state, *masks, method)[0] for method in methods]
    # A rounding of the state reaches the clock a thousand times as large.
    far = 1000.0 * float(np.finfo(np.float32).eps) * float(np.abs(np.asarray(found[1])).max())
    np.testing.assert_allclose(np.asarray(found[0]), np.asarray(found[1]), rtol=0, atol=far)


def test_either_direction_goes_by_the_length_of_the_row(monkeypatch):
    """In torch, where the choice depends on it: 20 tokens are many, 4 numbers of a state are not tokens."""
    torch = pytest.importorskip("torch", reason="JAX chooses without looking at the length")
    module = adapters.load_module("torch", "mixers.liquid_ssm")
    usual, asked = module.choose_method, []
    monkeypatch.setattr(module, "choose_method", lambda config, *shape: asked.append(shape) or usual(config, *shape))
    model = adapters.load_module("torch", "model").build(DIAGONAL)
    tokens = torch.zeros((1, 20), dtype=torch.long)
    model.loss(tokens, tokens)[0].backward()
    assert asked == [(1, 20)] * 2 * DIAGONAL.n_layers


def test_what_is_not_finite_is_no_fault_of_the_method(adapter):
    """It flows on, as from the stepping method, and nobody goes over it sixty-four times."""
    _, solvers, pre, of, state, _ = given(adapter, CASE)
    n = DIAGONAL.d_state
    inputs = solvers.Inputs(pre[..., :n] * np.inf, pre[..., n:], None, None, None)
    solved = solvers.parallel(inputs, of, DIAGONAL, state)
    assert bool(solved.converged) and int(solved.iterations) == 1
    assert not np.isfinite(np.asarray(solved.values)).any()


def test_time_does_not_run_backward(adapter):
    """A negative gap gives no number from there on, and no other row has anything of it."""
    liquid, _, pre, of, state, (resets, padding, noise, scale) = given(
        adapter, replace(CASE, resets="none", padding="none")
    )
    for method in adapter.METHODS["liquid_ssm"]:
        backward = np.where(np.arange(31) == 9, -1.0, np.asarray(scale))
        backward = adapter._tensors(backward)[0] if adapter.NAME == "torch" else backward
        states = np.asarray(liquid.liquid_states(pre, of, DIAGONAL, state, resets, padding, noise, backward, method)[0])
        assert np.isfinite(states[:, :9]).all() and np.isnan(states[0, 9:]).all()


def test_a_dense_state_is_stepped(adapter):
    """The named method refuses, `auto` does not take it."""
    with pytest.raises(NotImplementedError, match="needs a diagonal state, this one is dense"):
        results(adapter, replace(CASE, config=DENSE), "parallel")
    choose = adapters.load_module(adapter.NAME, "mixers.liquid_ssm").choose_method
    assert choose(DENSE, 2, 1024) == choose(DIAGONAL, 2, 1) == "sequential"
    # Measured by `liquidnet bench --liquid-ssm`: torch steps through Python, XLA in a compiled loop.
    assert choose(DIAGONAL, 2, 1024) == {"torch": "parallel", "jax": "sequential"}[adapter.NAME]


def test_unknown_methods_get_the_nearest_name(adapter):
    model = adapters.load_module(adapter.NAME, "model")
    with pytest.raises(ValueError, match=r"unknown liquid_ssm method 'paralel'.*did you mean 'parallel'"):
        model.build(DIAGONAL, method="paralel")


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("config", [DENSE, DIAGONAL], ids=lambda config: config.state)
def test_large_states(adapter, config, n):
    """Seven tokens: the reference goes over a dense state in a loop."""
    case = LayerCase((1, 7), "normal", 6, replace(config, d_state=n), resets="none")
    assert clear_of_ties(OPERATIONS[NAMES[config.state]], case)
    for method in adapter.METHODS["liquid_ssm"][: 1 if config is DENSE else None]:
        check(NAMES[config.state], adapter.NAME, method, "float32", case)


@pytest.mark.long
@pytest.mark.parametrize("config, n", [(DENSE, 4), (DIAGONAL, 64)], ids=lambda x: getattr(x, "state", x))
def test_a_thousand_tokens(config, n, report):
    case = LayerCase((1, 1000), "normal", 7, replace(config, d_state=n), resets="some", padding="left")
    assert clear_of_ties(OPERATIONS[NAMES[config.state]], case)
    for backend in adapters.FRAMEWORKS:
        for method in adapters.load(backend).METHODS["liquid_ssm"][: 1 if config is DENSE else None]:
            units = check(NAMES[config.state], backend, method, "float32", case)
            report(f"{config.state}, n {n}, 1000 tokens: {backend} {method} at {units:.2f} of the bound")


@pytest.mark.parametrize("target, fastest", [(0.1, []), (0.2, [0])])
def test_of_time_constants_that_are_least_the_first_sets_the_step_and_the_target_before_any(adapter, target, fastest):
    """All of them 1, so that a tenth is a step: the gradient goes to one of them, or to none."""
    _, solvers, pre, of, state, _ = given(adapter, CASE)
    n, config = DIAGONAL.d_state, replace(DIAGONAL, target_dt=target)
    equal = type(of)(*(None if weight is None else weight * 0.0 for weight in of))
    found = solvers.clock(state * 0.0, solvers.Inputs(pre[:, 0, :n], pre[:, 0, n:], None, None, None), equal, config)
    assert np.asarray(found.tau).min() == np.asarray(found.tau).max() == 1.0
    assert [*np.flatnonzero(np.asarray(found.fastest).any(axis=0))] == fastest
