"""The Liquid SSM's step: its solve against the full matrix, its stability under any clock, its order of convergence."""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from parity.proof.operations.liquid_ssm import KINDS
from spec import LiquidSSMConfig
from spec.mixers.liquid_ssm import log_time_constants
from spec.mixers.liquid_ssm.hippo import hippo_matrix, legs_frequencies
from spec.mixers.liquid_ssm.reference import clock, liquid_states, solve

EPS = np.finfo(np.float64).eps
STABLE = ("dense", "diagonal")


def matrix(tau: np.ndarray, weights: dict[str, np.ndarray], config: LiquidSSMConfig) -> np.ndarray:
    """diag(1 / tau) - A, all of it: a complex number a + i b as [[a, -b], [b, a]], real parts first."""
    square = np.exp(2.0 * weights["log_scale"])
    if config.state == "diagonal":
        real, imag = np.diag(1.0 / tau + 0.5 * square), np.diag(-square * weights["frequency"])
        return np.block([[real, -imag], [imag, real]])
    scale = np.exp(weights["log_scale"])
    return np.diag(1.0 / tau) - scale[:, None] * hippo_matrix(config.d_state, config.hippo) * scale


def drawn(config: LiquidSSMConfig, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights of the dynamics with scales of their own, the time constants still the first ones."""
    n, m, h = config.d_state, config.modes, config.d_tau
    weights = {
        "tau_state.weight": random.standard_normal((h, n)),
        "tau_output.weight": random.standard_normal((m, h)),
        "log_tau": log_time_constants(config).astype(float),
        "log_scale": 0.5 * random.standard_normal(m),
    }
    return {**weights, "frequency": legs_frequencies(n).astype(float)} if config.state == "diagonal" else weights


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_solve_against_the_full_matrix(kind, n, transposed):
    """O(n) and O(n^3) agree over steps from 1e-4 to 100, and the x found solves the equations."""
    config, random = LiquidSSMConfig(d_state=n, d_tau=2, **KINDS[kind]), np.random.default_rng(n)
    weights = drawn(config, random)
    tau, dt = np.exp(random.uniform(-2.0, 5.0, (20, config.modes))), 10.0 ** random.uniform(-4.0, 2.0, (20, 1))
    r = random.standard_normal((20, n))
    for x, rhs, step, constants in zip(solve(tau, dt, r, weights, config, transposed), r, dt, tau, strict=True):
        whole = np.eye(n) + step * matrix(constants, weights, config)
        whole = whole.T if transposed else whole
        # Substitution is backward stable (Higham 2002, theorem 8.5); ten roundings more in each entry of the matrix.
        rounding = (n + 10) * EPS * (np.abs(whole) @ np.abs(x) + np.abs(rhs)).max()
        assert np.abs(whole @ x - rhs).max() <= rounding
        off = rounding * np.linalg.norm(np.linalg.inv(whole), np.inf)
        # The other one is as far from the truth as this one.
        np.testing.assert_allclose(x, np.linalg.solve(whole, rhs), rtol=0, atol=2.0 * off)


@pytest.mark.parametrize("kind", STABLE)
def test_the_least_that_a_matrix_forgets(kind):
    """The symmetric part of diag(1 / tau) - A is at least min(1 / tau + s^2 / 2): the rate in every bound below."""
    random = np.random.default_rng(0)
    for n in (2, 4, 16, 64):
        config = LiquidSSMConfig(d_state=n, d_tau=2, **KINDS[kind])
        weights = drawn(config, random)
        tau = np.exp(random.uniform(-2.0, 5.0, config.modes))
        whole = matrix(tau, weights, config)
        least = np.linalg.eigvalsh((whole + whole.T) / 2.0)[0]
        assert least >= forgotten(tau, weights) - n * EPS * np.abs(whole).max()


def forgotten(tau: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """min(1 / tau + s^2 / 2) over the modes: the symmetric part is that diagonal, and half a square where dense."""
    return (1.0 / tau + 0.5 * np.exp(2.0 * weights["log_scale"])).min(axis=-1)


WIDE = 256
CLOCKS = 8


class Paced(NamedTuple):
    """A few clocks of a wide state: for each the step, the matrix, its inverse, and the rate at which it forgets."""

    dt: np.ndarray
    matrices: list[np.ndarray]
    inverses: list[np.ndarray]
    forgets: np.ndarray


def paced(kind: str, target_dt: float | None, random: np.random.Generator) -> Paced:
    """Time constants near ten times the target, so that either may set the step; None is a target for each clock."""
    config = LiquidSSMConfig(d_state=WIDE, d_tau=4, **KINDS[kind])
    weights, found, set_by_content = drawn(config, random), [], []
    for shortest in np.geomspace(0.5, 5.0, CLOCKS):
        target = target_dt or 10.0 ** random.uniform(-4.0, 1.0)
        weights["log_tau"] = np.log(10.0 * target * shortest) + np.linspace(0.0, np.log(100.0), config.modes)
        at = clock(np.zeros(WIDE), random.standard_normal(4), weights, replace(config, target_dt=target), None)
        whole = np.eye(WIDE) + at.dt * matrix(at.tau, weights, config)
        inverse = solve(at.tau, at.dt, np.eye(WIDE), weights, config).T
        found.append((at.dt[0], whole, inverse, forgotten(at.tau, weights)))
        set_by_content.append(at.fastest.any())
    assert 0 < sum(set_by_content) < CLOCKS
    dt, matrices, inverses, forgets = zip(*found, strict=True)
    return Paced(np.array(dt), list(matrices), list(inverses), np.array(forgets))


# A long row is one of a hundred thousand tokens.
LENGTHS = [5_000, pytest.param(100_000, marks=pytest.mark.long)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("target_dt", [1e-4, 1e-2, 1.0, 10.0, None])
@pytest.mark.parametrize("kind", STABLE)
def test_a_state_stays_within_its_bound_at_every_step(kind, target_dt, length):
    """x . M x = x . r and x . M x >= (1 + dt l) |x|^2 give |x_t| <= (|x_{t-1}| + dt |drive|) / (1 + dt l).

    That is a mean of |x_{t-1}| and |drive| / l, with weights 1 and dt l: no state ever leaves the larger of |x_{-1}|
    and the largest |drive| / l, whatever the clock does from token to token.
    """
    random = np.random.default_rng(0)
    of = paced(kind, target_dt, random)
    x_n = 1e4 * random.standard_normal(WIDE)
    norms, drives = [np.linalg.norm(x_n)], []
    picks = random.integers(CLOCKS, size=length)
    for t, pick in enumerate(picks):
        if t % 1000 == 0:
            drive_tn = 100.0 * random.standard_normal((1000, WIDE))
            drives += list(np.linalg.norm(drive_tn, axis=-1))
        x_n = of.inverses[pick] @ (x_n + of.dt[pick] * drive_tn[t % 1000])
        norms.append(np.linalg.norm(x_n))
    norm, drive, dt, forget = np.array(norms), np.array(drives), of.dt[picks], of.forgets[picks]
    # n roundings of each product of a row and a vector, of norms |row| <= 1: n^(3/2) of |r|.
    rounding = WIDE**1.5 * EPS * (norm[:-1] + dt * drive)
    assert (norm[1:] <= (norm[:-1] + dt * drive) / (1.0 + dt * forget) + rounding).all()
    assert norm.max() <= max(norm[0], (drive.max() / of.forgets).max()) * (1.0 + length * WIDE * EPS)


@pytest.mark.parametrize("target_dt", [1e-2, 1.0, 10.0, None])
@pytest.mark.parametrize("kind", STABLE)
def test_an_explicit_step_diverges_where_the_implicit_one_does_not(kind, target_dt):
    """x + dt (A x - x / tau + drive) = (2 I - M) x + dt drive: the same clocks, and 1e100 within five hundred steps."""
    random = np.random.default_rng(0)
    of, x_n = paced(kind, target_dt, random), np.zeros(WIDE)
    for t in range(500):
        pick = t % CLOCKS
        x_n = 2.0 * x_n - of.matrices[pick] @ x_n + of.dt[pick] * random.standard_normal(WIDE)
        if np.linalg.norm(x_n) > 1e100:
            return
    pytest.fail(f"an explicit step reached {np.linalg.norm(x_n):.1e} only")


@pytest.mark.parametrize("kind", STABLE)
def test_a_state_that_sets_its_own_clock_stays_within_the_bound(kind):
    """The same through `liquid_states`: steps of 1e-4 to 10 by gaps, a row each and one of all, inputs of scale 100."""
    config = LiquidSSMConfig(d_state=WIDE, d_tau=4, target_dt=1.0, tau_min=12.0, tau_max=1200.0, **KINDS[kind])
    random, length = np.random.default_rng(0), 100
    weights = drawn(config, random)
    gaps = np.concatenate([np.repeat([[1e-4], [1e-2], [1.0], [10.0]], length, axis=1),
                           10.0 ** random.uniform(-4.0, 1.0, (1, length))])  # fmt: skip
    drive, pre = 100.0 * random.standard_normal((5, length, WIDE)), 0.3 * random.standard_normal((5, length, 4))
    # A state of this size would hold the network at its ends.
    weights["tau_state.weight"] = 1e-3 * weights["tau_state.weight"]
    states, _, saved = liquid_states(np.concatenate([drive, pre], axis=-1), weights, config, dt_scale_bt=gaps)
    norm, size = np.linalg.norm(states, axis=-1), np.linalg.norm(drive, axis=-1)
    before = np.concatenate([np.zeros((5, 1)), norm[:, :-1]], axis=1)
    dt, rate = saved.clock.dt[..., 0], forgotten(saved.clock.tau, weights)
    assert 0 < saved.clock.fastest.any(axis=-1).sum() < gaps.size
    # Backward stable, and |x| <= |r|: a few n roundings of |r|.
    assert (norm <= (before + dt * size) / (1.0 + dt * rate) + 4 * WIDE * EPS * (before + dt * size)).all()
    assert (norm <= np.maximum.accumulate(size, axis=1) / np.minimum.accumulate(rate, axis=1)).all()


@pytest.mark.parametrize("kind", STABLE)
def test_half_the_step_is_half_the_error(kind):
    """Time constants held, inputs constant in pieces: the step converges at first order to what Radau IIA finds."""
    integrate = pytest.importorskip("scipy.integrate", reason="comes with JAX")
    config = LiquidSSMConfig(d_state=4, d_tau=2, target_dt=0.25, tau_min=3.0, tau_max=30.0, **KINDS[kind])
    random = np.random.default_rng(0)
    weights = drawn(config, random)
    weights["tau_output.weight"][:] = 0.0
    whole = matrix(np.exp(weights["log_tau"]), weights, config)
    start_n, drives = random.standard_normal(4), random.standard_normal((4, 4))
    exact = [start_n]
    for drive_n in drives:
        ode = integrate.solve_ivp(
            lambda _, x, drive_n=drive_n: drive_n - whole @ x, (0, 0.25), exact[-1], "Radau", rtol=1e-10, atol=1e-12
        )
        exact.append(ode.y[:, -1])
    errors = []
    for parts in (32, 64, 128, 256):
        pre = np.concatenate([np.repeat(drives, parts, axis=0), np.zeros((4 * parts, 2))], axis=-1)
        gaps = np.full((1, 4 * parts), 1.0 / parts)
        states = liquid_states(pre[None], weights, config, start_n[None], dt_scale_bt=gaps)[0]
        errors.append(np.abs(states[0, parts - 1 :: parts] - exact[1:]).max())
    # Of first order, with a second-order part that is a few hundredths at these steps; Radau's error is 1e-9.
    assert all(1.8 < one / other < 2.2 for one, other in pairwise(errors)), errors
