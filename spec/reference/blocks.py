"""The layers of a block, each beside its hand-written adjoint.

A layer returns its output and what its adjoint needs. An adjoint takes that and the gradient of the output
and returns the gradient of the input and of each weight, named as in the parameter table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spec.reference.liquid import decay_gates, mask, scan, scan_adjoint, sigmoid


def rms_norm(x_btd: np.ndarray, weight_d: np.ndarray, eps: float) -> tuple[np.ndarray, Any]:
    """y = weight * x / sqrt(mean(x^2) + eps), the mean over d. Source: Zhang and Sennrich 2019."""
    inverse_rms = 1.0 / np.sqrt((x_btd * x_btd).mean(axis=-1, keepdims=True) + eps)
    normal_btd = x_btd * inverse_rms
    return weight_d * normal_btd, (normal_btd, inverse_rms, weight_d)


def rms_norm_adjoint(saved: Any, gradient_btd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dL/dx = r (q - n mean(q n)) with n the normalised input, r the inverse RMS, q = weight * gradient."""
    normal_btd, inverse_rms, weight_d = saved
    q_btd = gradient_btd * weight_d
    x_gradient = inverse_rms * (q_btd - normal_btd * (q_btd * normal_btd).mean(axis=-1, keepdims=True))
    return x_gradient, (gradient_btd * normal_btd).sum(axis=(0, 1))


def linear_adjoint(x: np.ndarray, weight: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of x and W in y = x W^T."""
    return gradient @ weight, np.einsum("bto,bti->oi", gradient, x)


def mixer(
    z_btd: np.ndarray,
    weights: dict[str, np.ndarray],
    delta_min: float,
    state_bd: np.ndarray | None = None,
    resets_bt: np.ndarray | None = None,
    padding_bt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """The liquid mixer: y = W_y (o * h) over the recurrence h_t = alpha_t h_{t-1} + (1 - alpha_t) v_t.

    v = tanh(W_v z), alpha = exp(-softplus(W_delta z + b_delta) - delta_min), o = sigmoid(W_o z).

    Args:
        z_btd: normalised input.
        weights: `input.weight` (3d, d) = value | decay | output gate, `decay_bias` (d), `output.weight` (d, d).
        delta_min: least decay rate a token.
        state_bd: h_{-1}; None is zero.
        resets_bt: true clears the state before the token.
        padding_bt: true changes nothing.

    Returns:
        y_btd, the last state, and what the adjoint needs.
    """
    d = z_btd.shape[-1]
    pre_btx = z_btd @ weights["input.weight"].T
    value_btd = np.tanh(pre_btx[..., :d])
    p_btd = pre_btx[..., d : 2 * d] + weights["decay_bias"]
    gate_btd = sigmoid(pre_btx[..., 2 * d :])
    alpha_btd, fresh_btd = decay_gates(p_btd, delta_min)
    decay_btd, drive_btd = mask(alpha_btd, fresh_btd * value_btd, resets_bt, padding_bt)
    states_btd, last_bd = scan(decay_btd, drive_btd, state_bd)
    gated_btd = gate_btd * states_btd
    saved = (z_btd, weights, value_btd, p_btd, gate_btd, alpha_btd, fresh_btd, decay_btd, states_btd, state_bd)
    return gated_btd @ weights["output.weight"].T, last_bd, (*saved, resets_bt, padding_bt, gated_btd)


def mixer_adjoint(
    saved: Any, gradient_btd: np.ndarray, final_gradient_bd: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Gradients of the mixer's input, of its weights and of its initial state.

    With g the gradient that reaches h: dL/dp = alpha sigmoid(p) g (v - h_{t-1}), where h_{t-1} is 0 at a reset,
    and on padding the gradients of value and p are zero.
    """
    z_btd, weights, value_btd, p_btd, gate_btd, alpha_btd, fresh_btd, decay_btd, states_btd, state_bd, *rest = saved
    resets_bt, padding_bt, gated_btd = rest
    gated_gradient, output_gradient = linear_adjoint(gated_btd, weights["output.weight"], gradient_btd)
    decay_gradient, g_btd, state_gradient = scan_adjoint(
        decay_btd, states_btd, state_bd, gated_gradient * gate_btd, final_gradient_bd
    )
    if resets_bt is not None:
        decay_gradient = np.where(resets_bt[..., None], 0.0, decay_gradient)
    p_gradient = alpha_btd * sigmoid(p_btd) * (g_btd * value_btd - decay_gradient)
    value_gradient = g_btd * fresh_btd * (1.0 - value_btd * value_btd)
    if padding_bt is not None:
        p_gradient = np.where(padding_bt[..., None], 0.0, p_gradient)
        value_gradient = np.where(padding_bt[..., None], 0.0, value_gradient)
    gate_gradient = gated_gradient * states_btd * gate_btd * (1.0 - gate_btd)
    pre_gradient = np.concatenate([value_gradient, p_gradient, gate_gradient], axis=-1)
    z_gradient, input_gradient = linear_adjoint(z_btd, weights["input.weight"], pre_gradient)
    gradients = {
        "input.weight": input_gradient,
        "decay_bias": p_gradient.sum(axis=(0, 1)),
        "output.weight": output_gradient,
    }
    return z_gradient, gradients, state_gradient


def swiglu(r_btd: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, Any]:
    """u = W_d (silu(W_g r) * (W_a r)), silu(x) = x sigmoid(x). Source: Shazeer 2020.

    Args:
        r_btd: normalised input.
        weights: `input.weight` (2f, d) = gate | up, `output.weight` (d, f).
    """
    f = weights["output.weight"].shape[1]
    pre_btx = r_btd @ weights["input.weight"].T
    gate_btf, up_btf = pre_btx[..., :f], pre_btx[..., f:]
    product_btf = gate_btf * sigmoid(gate_btf) * up_btf
    return product_btf @ weights["output.weight"].T, (r_btd, weights, gate_btf, up_btf, product_btf)


def swiglu_adjoint(saved: Any, gradient_btd: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gradients of the MLP's input and weights; silu'(x) = sigmoid(x) (1 + x sigmoid(-x))."""
    r_btd, weights, gate_btf, up_btf, product_btf = saved
    product_gradient, output_gradient = linear_adjoint(product_btf, weights["output.weight"], gradient_btd)
    s_btf = sigmoid(gate_btf)
    gate_gradient = product_gradient * up_btf * s_btf * (1.0 + gate_btf * sigmoid(-gate_btf))
    up_gradient = product_gradient * gate_btf * s_btf
    pre_gradient = np.concatenate([gate_gradient, up_gradient], axis=-1)
    r_gradient, input_gradient = linear_adjoint(r_btd, weights["input.weight"], pre_gradient)
    return r_gradient, {"input.weight": input_gradient, "output.weight": output_gradient}
