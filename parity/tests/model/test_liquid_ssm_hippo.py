"""HiPPO: LegS entry by entry, the Legendre polynomials it stands for, and what is lost with the other signs."""

import itertools
import math

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss, legval

from spec.mixers.liquid_ssm.hippo import coupling, hippo_matrix, legs_factor, legs_frequencies, legs_rates

SIZES = (1, 2, 3, 4, 7, 16, 64)
EPS = np.finfo(np.float64).eps


def signal(t):
    """Smooth on [0, 1], with a few turns: more than polynomials of degree 7 can follow."""
    return np.sin(9.0 * t) + 0.5 * np.cos(23.0 * t * t)


def online(n: int, steps: int) -> np.ndarray:
    """The LegS state at t = 1 of `signal`, dc/dt = (A c + B f) / t by the trapezoidal rule, Gu et al. 2020, theorem 2.

    The first step is an implicit Euler step: 1 / t has no value at 0, where the state of a constant is f(0) e_0.
    """
    a_nn, b_n = hippo_matrix(n), legs_factor(n)
    f = signal(np.arange(steps + 1) / steps)
    c_n = np.linalg.solve(np.eye(n) - a_nn, f[0] * np.eye(n)[0] + b_n * f[1])
    for k in range(1, steps):
        rate_n = (a_nn @ c_n + b_n * f[k]) / k
        c_n = np.linalg.solve(np.eye(n) - a_nn / (2 * (k + 1)), c_n + 0.5 * (rate_n + b_n * f[k + 1] / (k + 1)))
    return c_n


def projection(n: int) -> np.ndarray:
    """c_i = integral over [0, 1] of f(r) sqrt(2 i + 1) P_i(2 r - 1) dr, by a rule exact to degree 255."""
    nodes, weights = leggauss(128)
    values = weights / 2.0 * signal((nodes + 1.0) / 2.0)
    return np.array([(values * legval(nodes, row)).sum() for row in np.diag(legs_factor(n))])


def reconstruction_error(c_n: np.ndarray) -> float:
    """The root mean square over [0, 1] of sum_i c_i sqrt(2 i + 1) P_i(2 r - 1) - f(r)."""
    nodes, weights = leggauss(128)
    wrong = legval(nodes, c_n * legs_factor(c_n.size)) - signal((nodes + 1.0) / 2.0)
    return math.sqrt((weights / 2.0 * wrong * wrong).sum())


@pytest.mark.parametrize(
    "hippo, sign, rate", [("legs", -1.0, lambda i: i + 1), ("as_printed", 1.0, lambda i: 2 * i + 1)]
)
@pytest.mark.parametrize("n", SIZES)
def test_every_entry_is_that_of_the_closed_form(n, hippo, sign, rate):
    """Written out with loops, since the functions under test share vectorised parts."""
    expected = np.zeros((n, n))
    for i in range(n):
        expected[i, i] = -rate(i)
        for j in range(i):
            expected[i, j] = sign * math.sqrt(2 * i + 1) * math.sqrt(2 * j + 1)
    found = hippo_matrix(n, hippo)
    # Products of the same two correctly rounded roots: the same bits.
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(legs_rates(n, hippo), -np.diag(found))
    assert found.dtype == np.float64 and coupling(hippo) == sign


@pytest.mark.parametrize("n", SIZES)
def test_legs_plus_its_transpose_is_minus_the_identity_and_one_square(n):
    """A + A^T = -(I + q q^T) is why a LegS state contracts."""
    a_nn, q_n = hippo_matrix(n), legs_factor(n)
    # q_i^2 is 2 i + 1 with three roundings: of the root, twice, and of the product.
    np.testing.assert_allclose(a_nn + a_nn.T, -(np.eye(n) + np.outer(q_n, q_n)), rtol=2 * EPS)


def test_an_online_state_is_the_projection_of_the_history():
    """Signs and factors of A and B both matter here: the state is the Legendre coefficients, at second order."""
    errors = [np.abs(online(16, steps) - projection(16)).max() for steps in (500, 1000, 2000)]
    # The trapezoidal rule is of second order: a quarter for half the step, within a tenth.
    assert all(3.6 < one / other < 4.4 for one, other in itertools.pairwise(errors)), errors
    # Measured 1.5e-5, of coefficients of up to 0.6.
    assert errors[-1] < 5e-5


def test_the_reconstruction_gets_better_with_size():
    """What the state is for: more numbers hold more of the history, close to the best polynomial of that degree."""
    errors = {n: reconstruction_error(online(n, 2000)) for n in (4, 8, 16, 32)}
    assert errors[4] > errors[8] > errors[16] > errors[32], errors
    for n, error in errors.items():
        # No polynomial of that degree is nearer than the projection; the steps add 3e-5 at n = 32.
        best = reconstruction_error(projection(n))
        assert best * (1.0 - 1e-9) <= error <= best + 1e-4, (n, error, best)


@pytest.mark.parametrize("n", [2, 4, 16, 64, 256])
def test_frequencies_are_the_eigenvalues_of_the_normal_part(n):
    """A + q q^T / 2 has the eigenvalues -1/2 +- i w: found here without its symmetry."""
    normal_nn = hippo_matrix(n) + np.outer(legs_factor(n), legs_factor(n)) / 2.0
    eigenvalues = np.linalg.eigvals(normal_nn)
    frequencies = legs_frequencies(n)
    assert frequencies.dtype == np.float32 and frequencies.shape == (n // 2,)
    assert frequencies[0] > 0.0 and (np.diff(frequencies) > 0.0).all()
    # Eigenvalues of a normal matrix move by no more than it does: n roundings of its norm.
    moved = n * EPS * np.linalg.norm(normal_nn, 2)
    np.testing.assert_allclose(eigenvalues.real, -0.5, rtol=0, atol=moved)
    found = np.sort(eigenvalues.imag)
    # The float32 of a frequency is off by half an ulp.
    np.testing.assert_allclose(found[n // 2 :], frequencies, rtol=2.0**-24, atol=moved)
    np.testing.assert_allclose(found[: n // 2], -frequencies[::-1], rtol=2.0**-24, atol=moved)
    if n == 2:
        assert frequencies[0] == np.float32(math.sqrt(3.0) / 2.0)


def largest_symmetric(a_nn: np.ndarray) -> float:
    """The largest eigenvalue of the symmetric part: how fast |x| can grow."""
    return float(np.linalg.eigvalsh((a_nn + a_nn.T) / 2.0)[-1])


@pytest.mark.parametrize("n", SIZES)
def test_only_the_printed_signs_let_a_norm_grow(n):
    """LegS' symmetric part is negative definite under any scale; as printed it is -3/2 D + q q^T / 2, D = diag(q^2).

    That is congruent to -3/2 I + 1 1^T / 2, whose largest eigenvalue is (n - 3) / 2: positive from n = 4 on.
    """
    random, a_nn = np.random.default_rng(n), hippo_matrix(n)
    rounding = n * EPS * np.abs(a_nn).max()
    # -(I + q q^T) / 2 has -1/2 on all that is orthogonal to q, and -1 where there is nothing else.
    assert largest_symmetric(a_nn) == pytest.approx(-0.5 if n > 1 else -1.0, abs=rounding)
    for _ in range(20):
        s_n = np.exp(random.standard_normal(n))
        assert largest_symmetric(s_n[:, None] * a_nn * s_n) < -0.49 * (s_n * s_n).min() + rounding * (s_n * s_n).max()
    printed = largest_symmetric(hippo_matrix(n, "as_printed"))
    assert abs(printed) < 1e-14 if n == 3 else (printed > 0.0) == (n > 3)


@pytest.mark.parametrize("n", SIZES[:-1])
def test_a_constant_signal_is_remembered_or_doubled_from_number_to_number(n):
    """Where dx/dt = A x + q rests: LegS at e_0, the constant polynomial; as printed at 2^i / q_i, exponential in n.

    Both matrices are triangular with no zero on the diagonal, so that A x = -q has one solution.
    """
    q_n = legs_factor(n)
    for hippo, rest_n in (("legs", np.eye(n)[0]), ("as_printed", 2.0 ** np.arange(n) / q_n)):
        a_nn = hippo_matrix(n, hippo)
        # A sum of n products: n roundings of the sum of their sizes, and three in each product.
        rounding_n = (n + 3) * EPS * (np.abs(a_nn) @ rest_n)
        assert (np.abs(a_nn @ rest_n + q_n) <= rounding_n).all()
