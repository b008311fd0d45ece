"""How far from the float64 truth a float32 result may lie: bounds with their proofs, and errors in units of them.

A rounded operation returns its exact result times (1 + e), |e| <= u, u = 2^-24 in float32. A quantity that n such
factors multiply is off by at most gamma_n = n u / (1 - n u), relatively (Higham 2002, lemma 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from parity.proof.adapters import SCAN_RESULTS
from spec.reference.scan import mask, scan, scan_adjoint

Arrays = Mapping[str, np.ndarray]

TIGHT = 1 / 30
"""A bound of which right code uses less than this would let mistakes through."""
WORST: dict[str, float] = {}
"""Label -> largest error seen, in units of its bound; conftest.py prints it after the run."""
BY_TENSOR: dict[str, dict[str, float]] = {}
"""The same of each tensor: how much of its bound was used."""
WIDTHS: dict[str, dict[str, list[float]]] = {}
"""How wide the bound of each tensor was each time, in units of 2^-53 of its largest entry."""


def unit(dtype: type[np.floating] = np.float32) -> float:
    """u, the largest relative error of one rounding."""
    return float(np.finfo(dtype).eps) / 2


def tiny(dtype: type[np.floating] = np.float32) -> float:
    """Smallest normal number: all that an operation may lose where subnormal numbers are flushed to zero."""
    return float(np.finfo(dtype).tiny)


def rounding(n: ArrayLike, spare: int, u: float) -> np.ndarray:
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
    grad_decay = np.where((resets | padding)[..., None], 0.0, gradients[0])
    grad_drive = np.where(padding[..., None], 0.0, gradients[1])
    return dict(zip(SCAN_RESULTS, (states, last, grad_decay, grad_drive, gradients[2]), strict=True))


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
    bound_states = rounding(2 * t + 2, 2, u) * h + h_flush
    bound_drive = rounding(2 * t[::-1] + 2, 2, u) * g + g_flush
    bound_decay = rounding(2 * steps + 1, 7, u) * g * before + g_flush * before + g * before_flush + least
    bound_state = rounding(2 * steps + 1, 3, u) * decay[:, 0] * g[:, 0] + g_flush[:, 0] + least * (g[:, 0] + 1.0)
    bound_decay = np.where((resets | padding)[..., None], 0.0, bound_decay)
    bound_drive = np.where(padding[..., None], 0.0, bound_drive)
    return dict(
        zip(SCAN_RESULTS, (bound_states, bound_states[:, -1], bound_decay, bound_drive, bound_state), strict=True)
    )


def _scan_size(decay, drive, state, least) -> tuple[np.ndarray, np.ndarray]:
    """H_t, and what flushing may cost h_t; of absolute values."""
    sizes, _ = scan(decay, drive, state)
    largest = np.maximum.accumulate(np.concatenate([state[:, None], sizes], axis=1), axis=1)[:, 1:]
    t = np.arange(decay.shape[1])[:, None]
    return sizes, (t + 2) * (3.0 + 2.0 * largest) * least


def double_bound(truth: np.ndarray) -> np.ndarray:
    """What a float64 result may differ from the reference: 1e-12 of the tensor's largest entry."""
    return np.full(np.shape(truth), 1e-12 * np.abs(truth).max(initial=0.0))


def in_units(actual: np.ndarray, truth: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """|actual - truth| / bound; 0 where both agree exactly.

    Infinite where either is not finite, or the bound is no number, negative, or 0 and the two differ.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(np.asarray(actual, np.float64) - truth)
        units = np.where(error == 0.0, 0.0, error / bound)
    return np.where(np.isfinite(units) & np.isfinite(bound) & (np.asarray(bound) >= 0.0), units, np.inf)


def select(names: Iterable[str], *groups: Arrays) -> tuple[dict[str, np.ndarray], ...]:
    """Of each group the tensors of these names; KeyError where one is not there."""
    chosen = tuple(names)
    return tuple({name: group[name] for name in chosen} for group in groups)


def assert_within(actual: Arrays, truth: Arrays, bound: Arrays, label: str) -> float:
    """The largest error in units, kept in WORST under `label`.

    Args:
        actual, truth, bound: the same tensors by name, of the same shapes, none of them empty.
        label: what was compared.

    Raises:
        AssertionError: an entry is off by more than its bound or is not finite, or the three are not of one form: what
            is absent or empty would be within every bound.
    """
    # No `assert`: what is proved is proved under `python -O` too.
    if not (truth and set(actual) == set(truth) == set(bound)):
        raise AssertionError(
            f"{label}: tensors {sorted(actual)}, expected {sorted(truth)}, with bounds {sorted(bound)}"
        )
    largest = 0.0
    for name, expected in truth.items():
        found, limit = np.asarray(actual[name]), np.asarray(bound[name])
        if len({found.shape, np.shape(expected), limit.shape}) != 1 or not found.size:
            raise AssertionError(
                f"{label}, {name}: shape {found.shape}, expected {np.shape(expected)}, with a bound of {limit.shape}"
            )
        units = in_units(found, expected, limit)
        worst = float(units.max())
        WORST[label] = max(worst, WORST.get(label, 0.0))
        used, widths = BY_TENSOR.setdefault(label, {}), WIDTHS.setdefault(label, {})
        used[name] = max(worst, used.get(name, 0.0))
        if size := float(np.abs(expected).max()):
            widths.setdefault(name, []).append(float(limit.max()) / size / unit(np.float64))
        if worst > 1.0:
            at = np.unravel_index(units.argmax(), units.shape)
            place = f"{name}[{', '.join(map(str, at))}]"
            values = f"got {found[at]!r}, expected {np.asarray(expected)[at]!r}, bound {limit[at]:.3g}"
            raise AssertionError(f"{label}: {place} is off by {worst:.3g} units of its bound: {values}")
        largest = max(largest, worst)
    return largest
