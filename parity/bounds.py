"""How far from the float64 truth a float32 result may lie: bounds with their proofs, and errors in units of them.

A rounded operation returns its exact result times (1 + e), |e| <= u, u = 2^-24 in float32. A quantity that n such
factors multiply is off by at most gamma_n = n u / (1 - n u), relatively (Higham 2002, lemma 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.backends import SCAN_RESULTS
from spec.config import TrainingConfig
from spec.reference import adamw_step, clip_by_global_norm
from spec.reference.liquid import mask, scan, scan_adjoint

Arrays = Mapping[str, np.ndarray]

WORST: dict[str, float] = {}
"""Label -> largest error seen, in units of its bound; conftest.py prints it after the run."""


def unit(dtype: Any = np.float32) -> float:
    """u, the largest relative error of one rounding."""
    return float(np.finfo(dtype).eps) / 2


def tiny(dtype: Any = np.float32) -> float:
    """Smallest normal number: all that an operation may lose where subnormal numbers are flushed to zero."""
    return float(np.finfo(dtype).tiny)


def rounding(n: Any, spare: int, u: float) -> np.ndarray:
    """A bound on gamma_n: (n + spare) u for as long as that holds, gamma_{n + spare} beyond.

    n u / (1 - n u) <= (n + spare) u  <=>  n (n + spare) u <= spare.
    """
    n = np.asarray(n, np.float64)
    plain = (n + spare) * u
    return np.where(n * plain <= spare, plain, plain / (1.0 - plain))


def scan_truth(decay, drive, state, resets, padding, states_gradient, final_gradient) -> dict[str, np.ndarray]:
    """SCAN_RESULTS in float64: the reference under its masks, whose gradient is zero where they fix the input."""
    doubles = (np.asarray(x, np.float64) for x in (decay, drive, state, states_gradient, final_gradient))
    decay, drive, state, states_gradient, final_gradient = doubles
    masked_decay, masked_drive = mask(decay, drive, resets, padding)
    states, last = scan(masked_decay, masked_drive, state)
    gradients = scan_adjoint(masked_decay, states, state, states_gradient, final_gradient)
    of_decay = np.where((resets | padding)[..., None], 0.0, gradients[0])
    of_drive = np.where(padding[..., None], 0.0, gradients[1])
    return dict(zip(SCAN_RESULTS, (states, last, of_decay, of_drive, gradients[2]), strict=True))


def scan_bounds(
    decay, drive, state, resets, padding, states_gradient, final_gradient, dtype=np.float32
) -> dict[str, np.ndarray]:
    """Bounds on the error of SCAN_RESULTS for every method that only adds and multiplies, in any association.

    Write H = scan(|decay|, |drive|, |state|), t from 0. h_t is the sum over j <= t of
    decay_t ... decay_{j+1} drive_j, and of the state times all decays. Whatever the association, that term meets

      t - j multiplications, one a decay;
      additions that join an earlier sum to it: at most j, each takes in an earlier drive; j + 1 with the state;
      additions that join a later sum to it: at most t - j, each takes in a later drive;

    and the state t + 1 multiplications and t + 1 additions: n = 2 t + 2 factors at most, hence
    |error of h_t| <= gamma_{2t+2} H_t <= eps (t + 2) H_t up to t = 2894, with eps = 2 u; gamma_{2t+4} H_t beyond.

    The adjoint is the same recurrence in reversed time: with r = T - 1 - t and G the reversed scan of absolute values,
    drive:   gamma_{2r+2} G_t <= eps (T - t + 1) G_t;
    decay:   g_t h_{t-1} has 2r + 2 factors of g, 2t of h and one of its own, n = 2 T + 1: eps (T + 4) G_t H_{t-1};
    state:   decay_0 g_0 has one factor more than g_0, n = 2 T + 1: eps (T + 2) |decay_0| G_0.

    Flushed subnormal numbers (XLA on CPU): each of the t + 2 inputs and of the at most t + 1 combinations
    (two products, one sum) loses at most `tiny` absolutely; decays do not enlarge a loss; a lost product of decays
    costs tiny times the sum that it multiplies, at most max H. In all (t + 2) (3 + 2 max H) tiny.
    """
    u, least = unit(dtype), tiny(dtype)
    doubles = (np.abs(np.asarray(x, np.float64)) for x in (decay, drive, state, states_gradient, final_gradient))
    decay, drive, state, states_gradient, final_gradient = doubles
    decay, drive = mask(decay, drive, resets, padding)
    steps = decay.shape[1]
    t = np.arange(steps)[:, None]
    h, h_flush = _scan_size(decay, drive, state, least)
    following = np.concatenate([np.ones_like(state)[:, None], decay[:, :0:-1]], axis=1)
    g, g_flush = (x[:, ::-1] for x in _scan_size(following, states_gradient[:, ::-1], final_gradient, least))
    before = np.concatenate([state[:, None], h[:, :-1]], axis=1)
    before_flush = np.concatenate([np.full_like(state, least)[:, None], h_flush[:, :-1]], axis=1)
    of_states = rounding(2 * t + 2, 2, u) * h + h_flush
    of_drive = rounding(2 * t[::-1] + 2, 2, u) * g + g_flush
    of_decay = rounding(2 * steps + 1, 7, u) * g * before + g_flush * before + g * before_flush + least
    of_state = rounding(2 * steps + 1, 3, u) * decay[:, 0] * g[:, 0] + g_flush[:, 0] + least * (g[:, 0] + 1.0)
    of_decay = np.where((resets | padding)[..., None], 0.0, of_decay)
    of_drive = np.where(padding[..., None], 0.0, of_drive)
    return dict(zip(SCAN_RESULTS, (of_states, of_states[:, -1], of_decay, of_drive, of_state), strict=True))


def _scan_size(decay, drive, state, least) -> tuple[np.ndarray, np.ndarray]:
    """H_t, and what flushing may cost h_t; of absolute values."""
    sizes, _ = scan(decay, drive, state)
    largest = np.maximum.accumulate(np.concatenate([state[:, None], sizes], axis=1), axis=1)[:, 1:]
    t = np.arange(decay.shape[1])[:, None]
    return sizes, (t + 2) * (3.0 + 2.0 * largest) * least


def gates_bounds(alpha: np.ndarray, fresh: np.ndarray, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on the errors of alpha = c sigmoid(-p) and 1 - alpha = (1 - c) + c sigmoid(p), from their exact values.

    sigmoid(x) = 1 / (1 + exp(-x)): an exponential within 2 ulp (4 u; the vector libraries of both frameworks promise
    1), which weighs exp(-x) / (1 + exp(-x)) < 1; a sum and a division. The rounded c and the product with it make 8 u.
    1 - alpha adds two positive numbers: the rounded 1 - c and that sum make 9 u. Nothing cancels.
    """
    u = unit(dtype)
    return 8.0 * u * alpha, 9.0 * u * fresh


def gates_gradient_bound(
    alpha: np.ndarray, open_gate: np.ndarray, alpha_gradient: np.ndarray, fresh_gradient: np.ndarray
) -> np.ndarray:
    """Bound on the float32 error of the gradient of p, alpha sigmoid(p) (fresh_gradient - alpha_gradient).

    8 u for alpha (see `gates_bounds`), 6 u for the sigmoid, one rounding for the difference and two for the products
    make 17 u. The order of the products is free; the difference may also be taken last, of two products rounded alike:
    17 u of the sum of their sizes.
    """
    return 17.0 * unit() * alpha * open_gate * (np.abs(fresh_gradient) + np.abs(alpha_gradient))


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest error of a tensor over its largest entry; 0 where both are zero."""
    scale = np.abs(truth).max(initial=0.0)
    return float(np.abs(found - truth).max(initial=0.0) / scale) if scale > 0.0 else 0.0


def plain_bound(truth: np.ndarray, plain_errors: Sequence[float]) -> np.ndarray:
    """What a float32 model may differ from the truth: 8 times what the float32 NumPy reference does.

        8 max |truth| max(plain_errors[0], median(plain_errors), 3 u)

    Largest over the tensor, since each program's errors fall on other entries. `plain_errors` are relative errors of
    the NumPy run: of this case first, then of neighbours whose parameters differ by a thousandth, each against a truth
    of its own: as well conditioned, rounded differently. One run may be lucky: at 1000 tokens the rounding of decay and
    the rounding of the scan were seen to cancel in NumPy, and not where the scan uses fused multiply-adds, a factor of
    ten for nobody's fault. Hence the median, what NumPy usually does to this problem. The last term is the error that
    no float32 program can promise to avoid: every tensor compared here ends in a product or quotient of two computed
    numbers, each stored with a relative error u, and rounded once more.
    """
    size = max(plain_errors[0], float(np.median(plain_errors)), 3.0 * unit())
    return np.full(np.shape(truth), 8.0 * size * np.abs(truth).max(initial=0.0))


def double_bound(truth: np.ndarray) -> np.ndarray:
    """What a float64 result may differ from the reference: 1e-12 of the tensor's largest entry."""
    return np.full(np.shape(truth), 1e-12 * np.abs(truth).max(initial=0.0))


def adamw_truth_and_bounds(before, errors, gradients, step, lr, training: TrainingConfig, decayed: frozenset[str]):
    """One clipped AdamW step in float64, and bounds on the error of the same step in float32.

    First order in u; `1 + 2^-10` covers the rest, since no count below exceeds 2^12. With theta, m, s the parameter and
    its moments, E the error of each, b = beta1 or beta2 >= 1/2, w = 1 - b, c = 1 - b^t:

      norm   each of n squares in the largest of l tensors meets n factors, the root halves; squaring and adding the l
             norms and the root of that: ((n + l) / 2 + 2) u. Where the clip is active, g = gradient * clip / norm has
             three roundings more and that of the constant: r = ((n + l) / 2 + 6) u. Inactive, it multiplies by 1: 0.
      m'     = b m + w g, or m + w (g - m), where constant, difference, product and sum are rounded:
               E <= b Em + w |g| r + 4 u (b |m| + w |g|)
      s'     = b s + w g g: E <= b Es + 2 w g^2 r + 4 u s'
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
    r = ((most + len(gradients)) / 2 + 6) * u if active else 0.0
    after = adamw_step(*before[:1], clipped, *before[1:], step, lr, training, decayed)
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
    s_error = b2 * s_error + 2.0 * (1.0 - b2) * g * g * r + 4.0 * u * new_s
    k1, k2 = ((2 * step + 4) * u * b**step / c + u for b, c in ((b1, c1), (b2, c2)))
    d = np.divide(s_error, 2.0 * new_s, out=np.zeros_like(new_s), where=new_s > 0.0) + k2 / 2 + 5.0 * u
    denominator = np.sqrt(new_s / c2) + training.adam_eps
    q = np.abs(new_m) / c1 / denominator
    q_error = m_error / (c1 * denominator) + q * (k1 + d + 2.0 * u)
    decay = training.weight_decay * is_decayed
    size = np.abs(theta)
    change = lr * (q_error + 3.0 * u * q + 5.0 * u * decay * size) + 2.0 * u * size * (decay > 0.0)
    return theta_error * (1.0 + lr * decay) + change + u * np.abs(new_theta), m_error, s_error


def in_units(actual: np.ndarray, truth: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """|actual - truth| / bound; 0 where both agree exactly, infinite where the error is not finite or the bound 0."""
    error = np.abs(np.asarray(actual, np.float64) - truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(error == 0.0, 0.0, error / bound)
    return np.where(np.isfinite(units), units, np.inf)


def assert_within(actual: Arrays, truth: Arrays, bound: Arrays, label: str) -> None:
    """Every tensor of `truth` is met within its bound; the largest error is kept in WORST under `label`."""
    for name, expected in truth.items():
        found, limit = np.asarray(actual[name]), np.asarray(bound[name])
        assert found.shape == np.shape(expected), f"{label}, {name}: shape {found.shape}, expected {np.shape(expected)}"
        units = in_units(found, expected, limit)
        worst = float(units.max(initial=0.0))
        WORST[label] = max(worst, WORST.get(label, 0.0))
        if worst > 1.0:
            at = np.unravel_index(units.argmax(), units.shape)
            place = f"{name}[{', '.join(map(str, at))}]"
            values = f"got {found[at]!r}, expected {np.asarray(expected)[at]!r}, bound {limit[at]:.3g}"
            raise AssertionError(f"{label}: {place} is off by {worst:.3g} units of its bound: {values}")
