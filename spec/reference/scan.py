"""The liquid recurrence and its adjoint, in plain NumPy.

    h_t = decay_t h_{t-1} + drive_t                     decay in [0, 1], elementwise

and the gates that make decay and drive from the pre-activations value, p and gate:

    delta = softplus(p) + delta_min      alpha = exp(-delta) = exp(-delta_min) sigmoid(-p)
    1 - alpha = -expm1(-delta_min) + exp(-delta_min) sigmoid(p)
    drive = (1 - alpha) tanh(value)

The second form of 1 - alpha has no cancellation: by subtraction, float32 loses over three digits at half-life 4096.
Every function keeps the dtype of its input: float64 is the truth, float32 shows what rounding alone does,
complex128 differentiates by complex steps.
"""

from __future__ import annotations

import math

import numpy as np

from spec.inputs import INEXACT, check_scan


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


def decay_gates(p: np.ndarray, delta_min: float) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, 1 - alpha) of the pre-activation p, each to full relative accuracy.

    alpha = c sigmoid(-p), 1 - alpha = (1 - c) + c sigmoid(p), with c = exp(-delta_min), since
    exp(-softplus(p)) = sigmoid(-p).
    """
    c = math.exp(-delta_min)
    return c * sigmoid(-p), -math.expm1(-delta_min) + c * sigmoid(p)


def mask(
    decay_btd: np.ndarray,
    drive_btd: np.ndarray,
    resets_bt: np.ndarray | None = None,
    padding_bt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decay and drive under the masks: a reset forgets (decay 0), padding is the identity (decay 1, drive 0).

    Padding wins where both are set: a padded position changes nothing.

    Raises:
        ValueError: shapes that do not agree, or a mask that is not bool.
    """
    check_scan(decay_btd, drive_btd, None, resets_bt, padding_bt, INEXACT)
    if resets_bt is not None:
        decay_btd = np.where(resets_bt[..., None], 0.0, decay_btd)
    if padding_bt is not None:
        decay_btd = np.where(padding_bt[..., None], 1.0, decay_btd)
        drive_btd = np.where(padding_bt[..., None], 0.0, drive_btd)
    return decay_btd, drive_btd


def scan(
    decay_btd: np.ndarray, drive_btd: np.ndarray, state_bd: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All states h_t = decay_t h_{t-1} + drive_t, and the last one.

    Args:
        decay_btd: in [0, 1], [b, t, d].
        drive_btd: [b, t, d].
        state_bd: h_{-1}; zero where it is None.

    Returns:
        states_btd, state_bd.

    Raises:
        ValueError: shapes that do not agree, or integers.
    """
    check_scan(decay_btd, drive_btd, state_bd, kind=INEXACT)
    state_bd = np.zeros_like(drive_btd[:, 0]) if state_bd is None else state_bd
    states_btd = np.empty_like(drive_btd)
    for t in range(drive_btd.shape[1]):
        state_bd = decay_btd[:, t] * state_bd + drive_btd[:, t]
        states_btd[:, t] = state_bd
    return states_btd, state_bd


def scan_adjoint(
    decay_btd: np.ndarray,
    states_btd: np.ndarray,
    state_bd: np.ndarray | None,
    states_gradient_btd: np.ndarray,
    final_gradient_bd: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of the scan, by the same recurrence in reversed time.

        g_t = dL/dh_t + decay_{t+1} g_{t+1},   g_T-1 takes the final state's gradient
        dL/d drive_t = g_t      dL/d decay_t = g_t h_{t-1}      dL/d h_{-1} = decay_0 g_0

    Args:
        decay_btd: as given to `scan`.
        states_btd: its result.
        state_bd: the initial state; None is zero.
        states_gradient_btd: gradient of each state as an output.
        final_gradient_bd: gradient of the last state as the second output; None is zero.

    Returns:
        Gradients of decay, drive and initial state.
    """
    state_bd = np.zeros_like(states_btd[:, 0]) if state_bd is None else state_bd
    previous_btd = np.concatenate([state_bd[:, None], states_btd[:, :-1]], axis=1)
    drive_gradient_btd = np.empty_like(states_gradient_btd)
    carry_bd = np.zeros_like(states_btd[:, 0]) if final_gradient_bd is None else final_gradient_bd
    for t in reversed(range(states_btd.shape[1])):
        drive_gradient_btd[:, t] = states_gradient_btd[:, t] + carry_bd
        carry_bd = decay_btd[:, t] * drive_gradient_btd[:, t]
    return drive_gradient_btd * previous_btd, drive_gradient_btd, carry_bd
