"""A bound on the error of AdamW steps in float32, from given gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.proof.bounds import unit
from spec.config import TrainingConfig
from spec.reference import adamw_step, clip_by_global_norm

Arrays = Mapping[str, np.ndarray]


def adamw_truth_and_bounds(before, errors, gradients, step, lr, training: TrainingConfig, decayed: frozenset[str]):
    """One clipped AdamW step in float64, and bounds on the error of the same step in float32.

    First order in u; `1 + 2^-10` covers the rest, since no count below exceeds 2^12 but that of r, which is a gamma.
    With theta, m, s the parameter and its moments, E the error of each, b = beta1 or beta2 >= 1/2, w = 1 - b,
    c = 1 - b^t:

      norm   each of n squares in the largest of l tensors meets n factors, the root halves; squaring and adding the l
             norms and the root of that: ((n + l) / 2 + 2) u. Where the clip is active, g = gradient * clip / norm has
             three roundings more and that of the constant: r = ((n + l) / 2 + 6) u. Inactive, it multiplies by 1: 0.
      m'     = b m + w g, or m + w (g - m), where constant, difference, product and sum are rounded:
               E <= b Em + w |g| r + 4 u (b |m| + w |g|)
      s'     = b s + w g g: E <= b Es + (2 r + r^2) w g^2 + 4 u s'
      c      torch forms it in float64; optax rounds b, raises it to the power t (t roundings, 4 u for the library's
             power) and subtracts: k = (2 t + 4) u b^t / c + u, for either moment
      D      = sqrt(s' / c) + eps: relative error d = Es / (2 s') + k2 / 2 + 4 u + u, with eps and the sum
      q      = m' / c / D: E <= Em / (c D) + |q| (k1 + d + 2 u)
      theta' = theta - lr (q + decay theta), or theta (1 - lr decay) - lr q:
               E <= Etheta (1 + lr decay) + lr (Eq + 3 u |q| + 5 u decay |theta|) + 2 u |theta| + u |theta'|,
               the terms with decay and 2 u |theta| for decayed parameters only.

    Args:
        before: parameters, first and second moments by path, float64.
        errors: bounds on the errors of these three.
        gradients: before clipping, exact.
        step: t, from 1.

    Returns:
        The three after the step, bounds on their errors.
    """
    u = unit()
    clipped, norm = clip_by_global_norm(gradients, training.grad_clip)
    most = max(x.size for x in gradients.values())
    # Within rounding of the threshold either backend may clip by a factor that rounds to 1.
    active = 0.0 < training.grad_clip < norm * (1.0 + (most + len(gradients)) * u)
    if step > 2**10:
        raise AssertionError(f"the bound is derived for the first 1024 steps, not for step {step}")
    count = ((most + len(gradients)) / 2 + 6) * u
    r = count / (1.0 - count) if active else 0.0
    params, *moments = before
    after = adamw_step(params, clipped, moments[0], moments[1], step, lr, training, decayed)
    bounds: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
    for path, g in clipped.items():
        inputs = [(x[path], e[path]) for x, e in zip(before, errors, strict=True)]
        found = _adamw_errors(inputs, [x[path] for x in after], g, r, step, lr, training, path in decayed)
        for bound, error in zip(bounds, found, strict=True):
            bound[path] = error * (1.0 + 2.0**-10)
    return after, bounds


def _adamw_errors(inputs, after, g, r, step, lr, training, is_decayed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last four lines of the derivation above for one parameter; `inputs` are (value, error) of theta, m, s."""
    u = unit()
    (theta, theta_error), (m, m_error), (_, s_error) = inputs
    new_theta, new_m, new_s = after
    b1, b2 = training.beta1, training.beta2
    c1, c2 = 1.0 - b1**step, 1.0 - b2**step
    m_error = b1 * m_error + (1.0 - b1) * np.abs(g) * r + 4.0 * u * (b1 * np.abs(m) + (1.0 - b1) * np.abs(g))
    s_error = b2 * s_error + (2.0 * r + r * r) * (1.0 - b2) * g * g + 4.0 * u * new_s
    k1, k2 = ((2 * step + 4) * u * b**step / c + u for b, c in ((b1, c1), (b2, c2)))
    d = np.divide(s_error, 2.0 * new_s, out=np.zeros_like(new_s), where=new_s > 0.0) + k2 / 2 + 5.0 * u
    denominator = np.sqrt(new_s / c2) + training.adam_eps
    q = np.abs(new_m) / c1 / denominator
    q_error = m_error / (c1 * denominator) + q * (k1 + d + 2.0 * u)
    decay = training.weight_decay * is_decayed
    size = np.abs(theta)
    change = lr * (q_error + 3.0 * u * q + 5.0 * u * decay * size) + 2.0 * u * size * (decay > 0.0)
    return theta_error * (1.0 + lr * decay) + change + u * np.abs(new_theta), m_error, s_error
