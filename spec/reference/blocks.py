"""The layers of a block, each beside its hand-written adjoint.

A layer returns its output and what its adjoint needs. An adjoint takes that and the gradient of the output
and returns the gradient of the input and of each weight, named as in the parameter table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from spec.config import LiquidSSMConfig, ModelConfig
from spec.mixers.liquid_ssm.reference import Sensed, liquid_ssm, liquid_ssm_adjoint
from spec.reference.scan import decay_gates, mask, scan, scan_adjoint, sigmoid

Weights = Mapping[str, np.ndarray]


class Mixed(NamedTuple):
    """What the mixer's adjoint needs."""

    input: np.ndarray
    weights: Weights
    pre: np.ndarray
    recurrence: Any
    gated: np.ndarray


class Gated(NamedTuple):
    """What the MLP's adjoint needs."""

    input: np.ndarray
    weights: Weights
    pre: np.ndarray
    product: np.ndarray


class Visited(NamedTuple):
    """What a block's adjoint needs: of its two norms and of its two layers."""

    mixer_norm: Any
    mixer: Mixed | Sensed
    mlp_norm: Any
    mlp: Gated


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


def gated_states(
    pre_btx: np.ndarray,
    decay_bias_d: np.ndarray,
    delta_min: float,
    state_bd: np.ndarray | None = None,
    resets_bt: np.ndarray | None = None,
    padding_bt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """o * h over the recurrence h_t = alpha_t h_{t-1} + (1 - alpha_t) v_t: the mixer between its two matrices.

    v = tanh(value), alpha = exp(-softplus(p + b_delta) - delta_min), o = sigmoid(gate).

    Args:
        pre_btx: pre-activations value | p | gate.
        decay_bias_d: b_delta.
        delta_min: least decay rate a token.
        state_bd: h_{-1}; None is zero.
        resets_bt: true clears the state before the token.
        padding_bt: true changes nothing.

    Returns:
        o * h, the last state, and what the adjoint needs.
    """
    d = decay_bias_d.shape[0]
    value_btd = np.tanh(pre_btx[..., :d])
    p_btd = pre_btx[..., d : 2 * d] + decay_bias_d
    gate_btd = sigmoid(pre_btx[..., 2 * d :])
    alpha_btd, fresh_btd = decay_gates(p_btd, delta_min)
    decay_btd, drive_btd = mask(alpha_btd, fresh_btd * value_btd, resets_bt, padding_bt)
    states_btd, last_bd = scan(decay_btd, drive_btd, state_bd)
    saved = (value_btd, p_btd, gate_btd, alpha_btd, fresh_btd, decay_btd, states_btd, state_bd, resets_bt, padding_bt)
    return gate_btd * states_btd, last_bd, saved


def gated_states_adjoint(
    saved: Any, gated_gradient: np.ndarray, final_gradient_bd: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of the pre-activations, of b_delta and of the initial state.

    With g the gradient that reaches h: dL/dp = alpha sigmoid(p) g (v - h_{t-1}), where h_{t-1} is 0 at a reset,
    and on padding the gradients of value and p are zero.
    """
    value_btd, p_btd, gate_btd, alpha_btd, fresh_btd, decay_btd, states_btd, state_bd, resets_bt, padding_bt = saved
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
    return pre_gradient, p_gradient.sum(axis=(0, 1)), state_gradient


def mixer(
    z_btd: np.ndarray,
    weights: Weights,
    delta_min: float,
    state_bd: np.ndarray | None = None,
    resets_bt: np.ndarray | None = None,
    padding_bt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """The liquid mixer: y = W_y (o * h), the pre-activations of h and o being W z.

    Args:
        z_btd: normalised input.
        weights: `input.weight` (3d, d) = value | decay | output gate, `decay_bias` (d), `output.weight` (d, d).
        delta_min, state_bd, resets_bt, padding_bt: as in `gated_states`.

    Returns:
        y_btd, the last state, and what the adjoint needs.
    """
    pre_btx = z_btd @ weights["input.weight"].T
    gated_btd, last_bd, recurrence = gated_states(
        pre_btx, weights["decay_bias"], delta_min, state_bd, resets_bt, padding_bt
    )
    y_btd = gated_btd @ weights["output.weight"].T
    return y_btd, last_bd, Mixed(z_btd, weights, pre_btx, recurrence, gated_btd)


def mixer_adjoint(
    saved: Mixed, gradient_btd: np.ndarray, final_gradient_bd: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Gradients of the mixer's input, of its weights and of its initial state."""
    gated_gradient, of_output = linear_adjoint(saved.gated, saved.weights["output.weight"], gradient_btd)
    pre_gradient, of_bias, state_gradient = gated_states_adjoint(saved.recurrence, gated_gradient, final_gradient_bd)
    z_gradient, of_input = linear_adjoint(saved.input, saved.weights["input.weight"], pre_gradient)
    return z_gradient, {"input.weight": of_input, "decay_bias": of_bias, "output.weight": of_output}, state_gradient


def swiglu(r_btd: np.ndarray, weights: Weights) -> tuple[np.ndarray, Any]:
    """u = W_d (silu(W_g r) * (W_a r)), silu(x) = x sigmoid(x). Source: Shazeer 2020.

    Args:
        r_btd: normalised input.
        weights: `input.weight` (2f, d) = gate | up, `output.weight` (d, f).
    """
    f = weights["output.weight"].shape[1]
    pre_btx = r_btd @ weights["input.weight"].T
    gate_btf, up_btf = pre_btx[..., :f], pre_btx[..., f:]
    product_btf = gate_btf * sigmoid(gate_btf) * up_btf
    return product_btf @ weights["output.weight"].T, Gated(r_btd, weights, pre_btx, product_btf)


def swiglu_adjoint(saved: Gated, gradient_btd: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gradients of the MLP's input and weights; silu'(x) = sigmoid(x) (1 + x sigmoid(-x))."""
    r_btd, weights, pre_btx, product_btf = saved
    gate_btf, up_btf = np.split(pre_btx, 2, axis=-1)
    product_gradient, output_gradient = linear_adjoint(product_btf, weights["output.weight"], gradient_btd)
    s_btf = sigmoid(gate_btf)
    gate_gradient = product_gradient * up_btf * s_btf * (1.0 + gate_btf * sigmoid(-gate_btf))
    up_gradient = product_gradient * gate_btf * s_btf
    pre_gradient = np.concatenate([gate_gradient, up_gradient], axis=-1)
    r_gradient, input_gradient = linear_adjoint(r_btd, weights["input.weight"], pre_gradient)
    return r_gradient, {"input.weight": input_gradient, "output.weight": output_gradient}


def within(params: Weights, prefix: str) -> dict[str, np.ndarray]:
    """The parameters below one module, by their path inside it."""
    return {path.removeprefix(prefix): array for path, array in params.items() if path.startswith(prefix)}


def block(
    x_btd: np.ndarray,
    weights: Weights,
    config: ModelConfig,
    state_bd: np.ndarray | None = None,
    resets_bt: np.ndarray | None = None,
    padding_bt: np.ndarray | None = None,
    noise_btn: np.ndarray | None = None,
    gaps_bt: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], Visited]:
    """x += s Mixer(RMSNorm(x)); x += s SwiGLU(RMSNorm(x)), s = 1 / sqrt(2 l); noise and gaps are a Liquid SSM's.

    Returns:
        x, the last state, the output of each module by its path inside the block, and what the adjoint needs.
    """
    scale = x_btd.dtype.type(config.residual_scale)
    z_btd, of_norm = rms_norm(x_btd, weights["mixer_norm.weight"], config.norm_eps)
    of_mixing, masks = within(weights, "mixer."), (resets_bt, padding_bt)
    if isinstance(config, LiquidSSMConfig):
        y_btd, last_bd, of_mixer = liquid_ssm(z_btd, of_mixing, config, state_bd, *masks, noise_btn, gaps_bt)
        inside = {"mixer.states": of_mixer.states, "mixer.output": of_mixer.read}
    else:
        y_btd, last_bd, of_mixer = mixer(z_btd, of_mixing, config.delta_min, state_bd, *masks)
        inside = {"mixer.gated": of_mixer.gated, "mixer.output": y_btd}
    x_btd = x_btd + scale * y_btd
    r_btd, of_mlp_norm = rms_norm(x_btd, weights["mlp_norm.weight"], config.norm_eps)
    u_btd, of_mlp = swiglu(r_btd, within(weights, "mlp."))
    x_btd = x_btd + scale * u_btd
    outputs = {"mixer_norm": z_btd, "mixer.input": of_mixer.pre, **inside, "mixer.state": last_bd}
    outputs |= {"mlp_norm": r_btd, "mlp.input": of_mlp.pre, "mlp.product": of_mlp.product}
    return x_btd, last_bd, {**outputs, "mlp.output": u_btd}, Visited(of_norm, of_mixer, of_mlp_norm, of_mlp)


def block_adjoint(
    saved: Visited, config: ModelConfig, gradient_btd: np.ndarray, final_gradient_bd: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Gradients of the block's input, of its weights and of its initial state."""
    scale = gradient_btd.dtype.type(config.residual_scale)
    r_gradient, of_mlp = swiglu_adjoint(saved.mlp, scale * gradient_btd)
    residual, of_mlp_norm = rms_norm_adjoint(saved.mlp_norm, r_gradient)
    gradient_btd = gradient_btd + residual
    adjoint: Any = liquid_ssm_adjoint if isinstance(saved.mixer, Sensed) else mixer_adjoint
    z_gradient, of_mixer, of_state = adjoint(saved.mixer, scale * gradient_btd, final_gradient_bd)
    residual, of_norm = rms_norm_adjoint(saved.mixer_norm, z_gradient)
    gradients = {f"mixer.{name}": array for name, array in of_mixer.items()}
    gradients |= {f"mlp.{name}": array for name, array in of_mlp.items()}
    gradients |= {"mixer_norm.weight": of_norm, "mlp_norm.weight": of_mlp_norm}
    return gradient_btd + residual, gradients, of_state
