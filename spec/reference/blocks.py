"""The layers of a block, each beside its hand-written adjoint.

A layer returns its output and what its adjoint needs. An adjoint takes that and the gradient of the output
and returns the gradient of the input and of each weight, named as in the parameter table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from spec.config import ModelConfig
from spec.mixers import family
from spec.mixers.base import NO_MASKS, Arrays, Masks, Side
from spec.reference.scan import sigmoid


class SavedBlock(NamedTuple):
    """What a block's adjoint needs: of its two norms and of its two layers."""

    mixer_norm: Any
    mixer: Any
    mlp_norm: Any
    mlp: Any


def rms_norm(x_btd: np.ndarray, weight_d: np.ndarray, eps: float) -> tuple[np.ndarray, Any]:
    """y = weight * x / sqrt(mean(x^2) + eps), the mean over d. Source: Zhang and Sennrich 2019."""
    inverse_rms = 1.0 / np.sqrt((x_btd * x_btd).mean(axis=-1, keepdims=True) + eps)
    normal_btd = x_btd * inverse_rms
    return weight_d * normal_btd, (normal_btd, inverse_rms, weight_d)


def rms_norm_adjoint(saved: Any, grad_btd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dL/dx = r (q - n mean(q n)) with n the normalised input, r the inverse RMS, q = weight * gradient."""
    normal_btd, inverse_rms, weight_d = saved
    q_btd = grad_btd * weight_d
    grad_x = inverse_rms * (q_btd - normal_btd * (q_btd * normal_btd).mean(axis=-1, keepdims=True))
    return grad_x, (grad_btd * normal_btd).sum(axis=(0, 1))


def linear_adjoint(x: np.ndarray, weight: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of x and W in y = x W^T."""
    return grad @ weight, np.einsum("bto,bti->oi", grad, x)


def swiglu(r_btd: np.ndarray, weights: Arrays) -> tuple[np.ndarray, Any]:
    """u = W_d (silu(W_g r) * (W_a r)), silu(x) = x sigmoid(x). Source: Shazeer 2020.

    Args:
        r_btd: normalised input.
        weights: `input.weight` (2f, d) = gate | up, `output.weight` (d, f).
    """
    f = weights["output.weight"].shape[1]
    pre_btx = r_btd @ weights["input.weight"].T
    gate_btf, up_btf = pre_btx[..., :f], pre_btx[..., f:]
    product_btf = gate_btf * sigmoid(gate_btf) * up_btf
    return product_btf @ weights["output.weight"].T, (r_btd, weights, pre_btx, product_btf)


def swiglu_adjoint(saved: Any, grad_btd: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gradients of the MLP's input and weights; silu'(x) = sigmoid(x) (1 + x sigmoid(-x))."""
    r_btd, weights, pre_btx, product_btf = saved
    gate_btf, up_btf = np.split(pre_btx, 2, axis=-1)
    grad_product, grad_output = linear_adjoint(product_btf, weights["output.weight"], grad_btd)
    s_btf = sigmoid(gate_btf)
    grad_gate = grad_product * up_btf * s_btf * (1.0 + gate_btf * sigmoid(-gate_btf))
    grad_up = grad_product * gate_btf * s_btf
    grad_pre = np.concatenate([grad_gate, grad_up], axis=-1)
    grad_r, grad_input = linear_adjoint(r_btd, weights["input.weight"], grad_pre)
    return grad_r, {"input.weight": grad_input, "output.weight": grad_output}


def within(params: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """The parameters below one module, by their path inside it."""
    return {path.removeprefix(prefix): array for path, array in params.items() if path.startswith(prefix)}


def block(
    x_btd: np.ndarray,
    weights: Arrays,
    config: ModelConfig,
    state_bn: np.ndarray | None = None,
    masks: Masks = NO_MASKS,
    side: Side | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], SavedBlock]:
    """x += s Mixer(RMSNorm(x)); x += s SwiGLU(RMSNorm(x)), s = 1 / sqrt(2 l).

    Args:
        x_btd: the residual stream.
        weights: by path from the block on.
        config: whose family has the mixer.
        state_bn: the state before the first token; None is zero.
        masks: a reset clears the state before its token; padding changes nothing.
        side: what the layer's mixer reads besides, by name.

    Returns:
        x, the last state, the output of each module by its path inside the block, and what the adjoint needs.
    """
    scale = x_btd.dtype.type(config.residual_scale)
    z_btd, saved_norm = rms_norm(x_btd, weights["mixer_norm.weight"], config.norm_eps)
    mixed = family(config).forward(z_btd, within(weights, "mixer."), config, state_bn, masks, side or {})
    x_btd = x_btd + scale * mixed.y
    r_btd, saved_mlp_norm = rms_norm(x_btd, weights["mlp_norm.weight"], config.norm_eps)
    u_btd, saved_mlp = swiglu(r_btd, within(weights, "mlp."))
    x_btd = x_btd + scale * u_btd
    outputs = {"mixer_norm": z_btd, **{f"mixer.{name}": array for name, array in mixed.activations.items()}}
    *_, pre_btx, product_btf = saved_mlp
    outputs |= {"mixer.state": mixed.last, "mlp_norm": r_btd, "mlp.input": pre_btx}
    outputs |= {"mlp.product": product_btf, "mlp.output": u_btd}
    return x_btd, mixed.last, outputs, SavedBlock(saved_norm, mixed.saved, saved_mlp_norm, saved_mlp)


def block_adjoint(
    saved: SavedBlock, config: ModelConfig, grad_btd: np.ndarray, grad_last_bn: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Gradients of the block's input, of its weights and of its initial state."""
    scale = grad_btd.dtype.type(config.residual_scale)
    grad_r, of_mlp = swiglu_adjoint(saved.mlp, scale * grad_btd)
    residual, grad_mlp_norm = rms_norm_adjoint(saved.mlp_norm, grad_r)
    grad_btd = grad_btd + residual
    grad_z, of_mixer, grad_state = family(config).adjoint(saved.mixer, scale * grad_btd, grad_last_bn)
    residual, grad_norm = rms_norm_adjoint(saved.mixer_norm, grad_z)
    gradients = {f"mixer.{name}": array for name, array in of_mixer.items()}
    gradients |= {f"mlp.{name}": array for name, array in of_mlp.items()}
    gradients |= {"mixer_norm.weight": grad_norm, "mlp_norm.weight": grad_mlp_norm}
    return grad_btd + residual, gradients, grad_state
