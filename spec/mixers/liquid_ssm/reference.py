"""The liquid state space model and its adjoint, in plain NumPy: continuous time, at a pace that the content sets.

    tau_t = tau_base (1 + eta tanh(W_o tanh(W_x x_{t-1} + W_u u_t)))             a time constant for each mode
    dt_t  = scale_t min(target_dt, min_i tau_{t,i} / 10)
    (I + dt_t (diag(1 / tau_t) - A)) x_t = x_{t-1} + dt_t (B u_t + exploration_rate xi_t)
    y_t   = C x_t + D u_t

which is one linearly implicit Euler step of dx/dt = -x / tau + A x + B u + exploration_rate xi. An explicit step is
unstable as soon as dt n exceeds 2, LegS having the eigenvalues -1 to -n. Of this one the matrix is I plus one whose
symmetric part is positive definite: |x_t| <= |right-hand side|, whatever dt, and whatever s below.

A `dense` state has A = diag(s) (HiPPO-LegS) diag(s): with q_i = s_i sqrt(2 i + 1) and p_i = s_i^2 (i + 1) it is
-diag(p) - strictly lower part of q q^T, so that a solve takes O(n). A `diagonal` state is n / 2 complex numbers, the
real parts first and then the imaginary ones, with A_k = s_k^2 (-1/2 + i w_k).

Shapes: pre-activations u -> drive | tau [b, t, n + h], states [b, t, n], modes m = n or n / 2. Every function keeps
the dtype of its input: float64 is the truth, complex128 differentiates by complex steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from spec.inputs import FLOATING, INEXACT, REAL, check_masks, require_array, require_dtype
from spec.mixers.base import Arrays
from spec.mixers.liquid_ssm.config import LiquidSSMConfig
from spec.mixers.liquid_ssm.hippo import NORMAL_RATE, coupling, legs_factor, legs_rates

STEPS_A_TIME_CONSTANT = 10.0
"""The content's step is a tenth of the least time constant."""


class Clock(NamedTuple):
    """Time constants and step of some tokens, and what their adjoint needs; leading axes are the tokens'."""

    hidden: np.ndarray
    content: np.ndarray
    tau: np.ndarray
    dt: np.ndarray
    fastest: np.ndarray


def clock(
    previous: np.ndarray, pre_h: np.ndarray, weights: Arrays, config: LiquidSSMConfig, dt_scale: np.ndarray | None
) -> Clock:
    """The time constants [..., m] and the step [..., 1] of each token from the state before it.

    Where two are least the first one counts, and target_dt before any.
    """
    hidden = np.tanh(pre_h + previous @ weights["tau_state.weight"].T)
    content = np.tanh(hidden @ weights["tau_output.weight"].T)
    tau = np.exp(weights["log_tau"]) * (1.0 + config.eta * content)
    index = np.argmin(np.real(tau), axis=-1)[..., None]
    of_content = np.take_along_axis(tau, index, axis=-1) / STEPS_A_TIME_CONSTANT
    set_by_content = np.real(of_content) < config.target_dt
    dt = np.where(set_by_content, of_content, config.target_dt)
    dt = dt if dt_scale is None else dt * dt_scale[..., None]
    return Clock(hidden, content, tau, dt, set_by_content & (np.arange(tau.shape[-1]) == index))


def clock_adjoint(
    of: Clock, weights: Arrays, config: LiquidSSMConfig, dt_scale: Any, tau_gradient: Any, dt_gradient: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of log_tau and of both pre-activations of the network, [..., m], [..., h] and [..., m]."""
    dt_gradient = dt_gradient if dt_scale is None else dt_gradient * dt_scale[..., None]
    tau_gradient = tau_gradient + np.where(of.fastest, dt_gradient / STEPS_A_TIME_CONSTANT, 0.0)
    content_gradient = tau_gradient * np.exp(weights["log_tau"]) * config.eta * (1.0 - of.content * of.content)
    hidden_gradient = (content_gradient @ weights["tau_output.weight"]) * (1.0 - of.hidden * of.hidden)
    return tau_gradient * of.tau, hidden_gradient, content_gradient


def solve(tau: Any, dt: Any, r: np.ndarray, weights: Arrays, config: LiquidSSMConfig, transposed=False) -> np.ndarray:
    """x of (I + dt (diag(1 / tau) - A)) x = r, or of the transposed matrix.

    Dense: x_i = (r_i - dt a q_i c_i) / m_i with c_i = sum over j < i of q_j x_j, a = +1 (-1 `as_printed`); transposed,
    the same from the last row up. Diagonal: r / m, or r / conjugate(m).
    """
    scale = np.exp(weights["log_scale"])
    if config.state == "diagonal":
        m_real = 1.0 + dt * (1.0 / tau + NORMAL_RATE * (scale * scale))
        m_imag = dt * (scale * scale * weights["frequency"]) * (1.0 if transposed else -1.0)
        size = m_real * m_real + m_imag * m_imag
        real, imag = np.split(r, 2, axis=-1)
        return np.concatenate([real * m_real + imag * m_imag, imag * m_real - real * m_imag], axis=-1) / np.concatenate(
            [size, size], axis=-1
        )
    n, sign = config.d_state, -coupling(config.hippo)
    q = scale * legs_factor(n)
    m = 1.0 + dt * (1.0 / tau + scale * scale * legs_rates(n, config.hippo))
    columns: list[np.ndarray] = [r[..., 0]] * n
    so_far = np.zeros_like(r[..., 0])
    for i in reversed(range(n)) if transposed else range(n):
        columns[i] = (r[..., i] - sign * dt[..., 0] * q[i] * so_far) / m[..., i]
        so_far = so_far + q[i] * columns[i]
    return np.stack(columns, axis=-1)


def solve_adjoint(
    tau: Any, dt: Any, x: np.ndarray, y: np.ndarray, drive: np.ndarray, weights: Arrays, config: LiquidSSMConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Gradients of tau, of dt and, [..., m], of log_scale (and frequency) through matrix and right-hand side.

    With M x = previous + dt drive and M^T y = dL/dx: dL/dM = -y x^T, dL/d previous = y.
    """
    scale = np.exp(weights["log_scale"])
    if config.state == "diagonal":
        rate, turn = 1.0 / tau + NORMAL_RATE * (scale * scale), scale * scale * weights["frequency"]
        (y_real, y_imag), (x_real, x_imag) = np.split(y, 2, axis=-1), np.split(x, 2, axis=-1)
        along, across = -(y_real * x_real + y_imag * x_imag), y_imag * x_real - y_real * x_imag
        dt_gradient = (y * drive).sum(-1, keepdims=True) + (along * rate + across * turn).sum(-1, keepdims=True)
        of_scale = 2.0 * dt * (along * NORMAL_RATE * (scale * scale) + across * turn)
        of_weights = {"log_scale": of_scale, "frequency": dt * across * (scale * scale)}
        return -dt * along / (tau * tau), dt_gradient, of_weights
    n, sign = config.d_state, -coupling(config.hippo)
    q, p = scale * legs_factor(n), scale * scale * legs_rates(n, config.hippo)
    later = np.triu(np.ones((n, n)), 1)
    before, after = (q * x) @ later, (q * y) @ later.T
    dt_gradient = (y * (drive - (1.0 / tau + p) * x - sign * q * before)).sum(-1, keepdims=True)
    of_scale = -dt * (2.0 * p * (y * x) + sign * q * (y * before + x * after))
    return dt * y * x / (tau * tau), dt_gradient, {"log_scale": of_scale}


class Evolved(NamedTuple):
    """What the adjoint of the states needs."""

    previous: np.ndarray
    clock: Clock
    drive: np.ndarray
    states: np.ndarray
    weights: Arrays
    config: LiquidSSMConfig
    dt_scale: np.ndarray | None
    resets: np.ndarray | None
    padding: np.ndarray | None


def check_liquid_states(
    config: LiquidSSMConfig,
    pre: Any,
    state: Any = None,
    resets: Any = None,
    padding: Any = None,
    noise: Any = None,
    dt_scale: Any = None,
    kind: str = FLOATING,
) -> None:
    """Raises ValueError where the arguments of `liquid_states` do not fit: nothing is spread over other rows."""
    require_dtype("pre-activations", pre, kind)
    n, found = config.d_state, tuple(pre.shape)
    if len(found) != 3 or found[1] == 0 or found[2] != n + config.d_tau:
        width = n + config.d_tau
        raise ValueError(f"pre-activations must have shape [b, t, n + h] with t >= 1, n + h = {width}, got {found}")
    b, t, _ = found
    if state is not None:
        require_array("the state", state, "bn", (b, n), kind)
    check_masks((b, t), resets, padding)
    if noise is not None:
        require_array("noise", noise, "btn", (b, t, n), REAL)
    if dt_scale is not None:
        require_array("dt_scale", dt_scale, "bt", (b, t), REAL)


def liquid_states(
    pre_btx: np.ndarray,
    weights: Arrays,
    config: LiquidSSMConfig,
    state_bn: np.ndarray | None = None,
    resets_bt: np.ndarray | None = None,
    padding_bt: np.ndarray | None = None,
    noise_btn: np.ndarray | None = None,
    dt_scale_bt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Evolved]:
    """All states of the layer, the last one, and what the adjoint needs.

    Args:
        pre_btx: drive B u | W_u u, [b, t, n + h].
        weights: `tau_state.weight`, `tau_output.weight`, `log_tau`, `log_scale`, and `frequency` where diagonal.
        config: state, hippo, eta, target_dt, exploration_rate.
        state_bn: x_{-1}; None is zero.
        resets_bt: true clears the state before the token.
        padding_bt: true changes nothing.
        noise_btn: xi; None is zero.
        dt_scale_bt: time since the token before, in units of its usual distance; None is 1.

    Raises:
        ValueError: shapes or dtypes that do not agree.
    """
    check_liquid_states(config, pre_btx, state_bn, resets_bt, padding_bt, noise_btn, dt_scale_bt, INEXACT)
    n = config.d_state
    drive_btn, pre_bth = pre_btx[..., :n], pre_btx[..., n:]
    if noise_btn is not None:
        drive_btn = drive_btn + config.exploration_rate * noise_btn
    x_bn = np.zeros_like(pre_btx[:, 0, :n]) if state_bn is None else state_bn
    previous, clocks, states = [], [], []
    for t in range(pre_btx.shape[1]):
        before_bn = x_bn if resets_bt is None else np.where(resets_bt[:, t, None], 0.0, x_bn)
        now = clock(before_bn, pre_bth[:, t], weights, config, None if dt_scale_bt is None else dt_scale_bt[:, t])
        after_bn = solve(now.tau, now.dt, before_bn + now.dt * drive_btn[:, t], weights, config)
        x_bn = after_bn if padding_bt is None else np.where(padding_bt[:, t, None], x_bn, after_bn)
        previous.append(before_bn)
        clocks.append(now)
        states.append(x_bn)
    states_btn = np.stack(states, axis=1)
    whole = Clock(*(np.stack(parts, axis=1) for parts in zip(*clocks, strict=True)))
    saved = np.stack(previous, axis=1), whole, drive_btn, states_btn, weights, config
    return states_btn, x_bn, Evolved(*saved, dt_scale_bt, resets_bt, padding_bt)


def liquid_states_adjoint(
    saved: Evolved, states_gradient: np.ndarray, final_gradient_bn: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Gradients of the pre-activations, of the weights and of the initial state.

    Backward in time, with g the gradient that reaches x_t: M^T y = g, and x_{t-1} gets y and what the clock passes on.
    """
    previous, whole, drive, states, weights, config, dt_scale, resets, padding = saved
    g_bn = np.zeros_like(states[:, 0]) if final_gradient_bn is None else final_gradient_bn
    y_btn, of_hidden = np.empty_like(states), np.empty_like(whole.hidden)
    of_tau, of_content = np.empty_like(whole.tau), np.empty_like(whole.tau)
    of_mode = {name: np.empty_like(whole.tau) for name in ("log_scale", "frequency") if name in weights}
    for t in reversed(range(states.shape[1])):
        now = Clock(*(part[:, t] for part in whole))
        g_bn = g_bn + states_gradient[:, t]
        through_bn = g_bn if padding is None else np.where(padding[:, t, None], 0.0, g_bn)
        y_bn = solve(now.tau, now.dt, through_bn, weights, config, transposed=True)
        tau_gradient, dt_gradient, of_matrix = solve_adjoint(
            now.tau, now.dt, states[:, t], y_bn, drive[:, t], weights, config
        )
        dt_scale_b = None if dt_scale is None else dt_scale[:, t]
        of_tau[:, t], of_hidden[:, t], of_content[:, t] = clock_adjoint(
            now, weights, config, dt_scale_b, tau_gradient, dt_gradient
        )
        for name, gradient in of_matrix.items():
            of_mode[name][:, t] = gradient
        y_btn[:, t] = y_bn
        of_previous = y_bn + of_hidden[:, t] @ weights["tau_state.weight"]
        of_previous = of_previous if resets is None else np.where(resets[:, t, None], 0.0, of_previous)
        g_bn = of_previous if padding is None else np.where(padding[:, t, None], g_bn, of_previous)
    gradients = {
        "tau_state.weight": np.einsum("bto,bti->oi", of_hidden, previous),
        "tau_output.weight": np.einsum("bto,bti->oi", of_content, whole.hidden),
        "log_tau": of_tau.sum(axis=(0, 1)),
        **{name: array.sum(axis=(0, 1)) for name, array in of_mode.items()},
    }
    return np.concatenate([whole.dt * y_btn, of_hidden], axis=-1), gradients, g_bn
