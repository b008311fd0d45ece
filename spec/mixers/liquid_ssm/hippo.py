"""HiPPO: the matrices whose state remembers a signal's history as coefficients of Legendre polynomials.

LegS, of Gu et al. 2020 (HiPPO: Recurrent Memory with Optimal Polynomial Projections), with i, j from 0:

    A_ij = -sqrt(2 i + 1) sqrt(2 j + 1)  for i > j      A_ii = -(i + 1)      B_i = sqrt(2 i + 1)

A + A^T = -(I + q q^T), q = B: negative definite, so that dx/dt = A x forgets, and diag(s) A diag(s) does for any s.
With the signs that were printed for the Liquid SSM, A_ij = +sqrt(2 i + 1) sqrt(2 j + 1) and A_ii = -(2 i + 1), the
symmetric part is indefinite from n = 4 on: norms can grow before they decay, the more so the larger n. At rest under a
constant input x_i = 2^i / sqrt(2 i + 1).
"""

from __future__ import annotations

import numpy as np

NORMAL_RATE = 0.5
"""Minus the real part of every eigenvalue of LegS' normal part."""


def legs_factor(n: int) -> np.ndarray:
    """q_i = sqrt(2 i + 1): the lower part of LegS is -q q^T, its input vector q; float64."""
    return np.sqrt(2.0 * np.arange(n) + 1.0)


def legs_rates(n: int, hippo: str = "legs") -> np.ndarray:
    """-A_ii: i + 1, or 2 i + 1 `as_printed`; float64."""
    return np.arange(n) + 1.0 if hippo == "legs" else 2.0 * np.arange(n) + 1.0


def coupling(hippo: str = "legs") -> float:
    """The sign of the lower part, A_ij = coupling q_i q_j: -1, or +1 `as_printed`."""
    return -1.0 if hippo == "legs" else 1.0


def hippo_matrix(n: int, hippo: str = "legs") -> np.ndarray:
    """A, [n, n], float64."""
    q_n = legs_factor(n)
    return coupling(hippo) * np.tril(np.outer(q_n, q_n), -1) - np.diag(legs_rates(n, hippo))


def legs_frequencies(n: int) -> np.ndarray:
    """w_k > 0 of the n / 2 conjugate pairs -1/2 +- i w_k: the eigenvalues of LegS' normal part, ascending; float32.

    A + q q^T / 2 = -I/2 + S, S skew-symmetric: S4D-LegS (Gu et al. 2022) keeps these eigenvalues and drops q q^T / 2.
    """
    lower_nn = np.tril(np.outer(legs_factor(n), legs_factor(n)), -1) / 2.0
    # i S is Hermitian: its eigenvalues are real, come in pairs of either sign, and are those of S over i.
    w_n = np.linalg.eigvalsh(1j * (lower_nn.T - lower_nn))
    return w_n[n // 2 :].astype(np.float32)
