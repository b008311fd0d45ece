"""Bounds on the float32 errors of gates, RMSNorm, SwiGLU and cross-entropy: outputs and every gradient.

Each is written once in running error analysis (running_error.py). Where the two frameworks differentiate by different
formulas, all of them stand here and the largest bound counts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from parity.proof.bounds.running_error import EXP, LOG, RSQRT, SIGMOID, TANH, Running, either, exact, join
from spec.inputs import IGNORED_LABEL
from spec.reference.scan import sigmoid

Bounds = dict[str, np.ndarray]


def gates_bounds(
    pre, bias, delta_min, grad_decay, grad_drive, grad_gate, dtype: type[np.floating] = np.float32
) -> Bounds:
    """Decay, drive and output gate, and the gradients of pre-activations and bias.

    decay = c sigmoid(-p) and 1 - decay = (1 - c) + c sigmoid(p) add positive numbers only: 8 u and 9 u of the result.
    With e the gradient of t = tanh, that of value is e (1 - t^2), e (1 - t) (1 + t) or e (1 - t) + e (1 - t) t;
    sigmoid' is s (1 - s). Their errors are absolute: they cancel as the gates shut.
    The gradient of p, decay sigmoid(p) (g_one_minus_decay - g_decay), may take its difference first or last.
    """
    pre, bias, grad_decay, grad_drive, grad_gate = (
        exact(x, dtype) for x in (pre, bias, grad_decay, grad_drive, grad_gate)
    )
    value, p, gate = (pre.move(lambda x, i=i: np.split(x, 3, axis=-1)[i]) for i in range(3))
    p = p + bias
    c, one = pre.constant(math.exp(-delta_min)), exact(np.ones(()), dtype)
    sigmoid_p, sigmoid_minus_p = p.monotonic(sigmoid, SIGMOID), p.monotonic(lambda x: sigmoid(-x), SIGMOID)
    decay, one_minus_decay = c * sigmoid_minus_p, pre.constant(-math.expm1(-delta_min)) + c * sigmoid_p
    t, o = value.monotonic(np.tanh, TANH), gate.monotonic(sigmoid, SIGMOID)
    grad_t, grad_one_minus_decay, change = grad_drive * one_minus_decay, grad_drive * t, decay * sigmoid_p
    half = grad_t * (one - t)
    grad_value = either(grad_t * (one - t * t), half * (one + t), half + half * t)
    grad_p = either(change * (grad_one_minus_decay - grad_decay), change * grad_one_minus_decay - change * grad_decay)
    grad_pre = join(grad_value, grad_p, grad_gate * (one - o) * o)
    results = {"decay": decay, "drive": one_minus_decay * t, "gate": o, "pre gradient": grad_pre}
    return _errors(results | {"bias gradient": grad_p.sum((0, 1))})


def rms_norm_bounds(x, weight, eps, grad_y, dtype: type[np.floating] = np.float32) -> Bounds:
    """y = w x r, r = (mean(x^2) + eps)^(-1/2), and the gradients of x and w.

    The mean adds d positive terms, relative error (d + 3) u at most, halved by the root. The gradient of x is
    r (q - n mean(q n)), q = w g and n = x r, or term by term with r^3 as a power or as r / (mean + eps).
    """
    x, weight, grad_y = (exact(array, dtype) for array in (x, weight, grad_y))
    reciprocal = x.constant(1.0 / x.value.shape[-1])
    square = (x * x).sum(-1, keepdims=True) * reciprocal + x.constant(eps)
    r = square.monotonic(lambda m: 1.0 / np.sqrt(m), RSQRT)
    n, q = x * r, grad_y * weight
    total = (q * x).sum(-1, keepdims=True)
    forms = [r * (q - n * ((q * n).sum(-1, keepdims=True) * reciprocal))]
    for cube in (r * r * r, r / square):
        # Each of the two factors of x^2 brings half, added at once or one after the other.
        half = x * (total * cube * reciprocal * exact(np.asarray(0.5), dtype))
        forms += [q * r - (half + half), q * r - half - half]
    results = {"y": weight * n, "x gradient": either(*forms), "weight gradient": (grad_y * n).sum((0, 1))}
    return _errors(results)


def swiglu_bounds(r, weights: dict[str, np.ndarray], grad_u, dtype: type[np.floating] = np.float32) -> Bounds:
    """u = W_d (silu(W_g r) * (W_a r)), and the gradients of r and both matrices.

    silu' is s (1 + x (1 - s)) or s + x (s (1 - s)), as a factor of the gradient or with it in either term.
    """
    r, grad_u = (exact(x.reshape(-1, x.shape[-1]), dtype) for x in (r, grad_u))
    enter, leave = (exact(weights[f"{name}.weight"], dtype) for name in ("input", "output"))
    one = exact(np.ones(()), dtype)
    pre = r @ enter.T
    gate, up = (pre.move(lambda x, i=i: np.split(x, 2, axis=-1)[i]) for i in range(2))
    s = gate.monotonic(sigmoid, SIGMOID)
    silu = gate * s
    product = silu * up
    grad_product = grad_u @ leave
    slope = either(s * (one + gate * (one - s)), s + gate * (s * (one - s)))
    grad_silu = grad_product * up
    apart = grad_silu * s + grad_silu * gate * (s * (one - s))
    grad_gate = either(grad_silu * slope, grad_product * (up * slope), apart)
    grad_pre = join(grad_gate, grad_product * silu)
    results = {"u": product @ leave.T, "r gradient": grad_pre @ enter}
    return _errors(results | {"input.weight": grad_pre.T @ r, "output.weight": grad_u.T @ product})


def cross_entropy_bounds(hidden, embedding, labels, dtype: type[np.floating] = np.float32) -> Bounds:
    """Sum of -log softmax(hidden E^T)[label] over the counted labels, and the gradients of hidden and E.

    The largest logit m is subtracted whatever its error: the result does not depend on it. A nat is
    log(total) + m - z or log(total) - (z - m); a probability exp(z - m) / total or exp of either, negated.
    """
    h, e = (exact(x.reshape(-1, x.shape[-1]), dtype) for x in (hidden, embedding))
    labels = labels.reshape(-1)
    counted = (labels != IGNORED_LABEL)[:, None]
    target = np.where(counted[:, 0], labels, 0)[:, None]
    logits = h @ e.T
    most = exact(logits.value.max(axis=-1, keepdims=True), dtype)
    shifted = logits - most
    # The number subtracted is the computed largest logit: the rounding of the difference is off by u times its error.
    shifted = replace(shifted, error=shifted.error + shifted.unit * logits.error.max(axis=-1, keepdims=True))
    weight = shifted.monotonic(np.exp, EXP)
    total = weight.sum(-1, keepdims=True)
    log_total = total.monotonic(np.log, LOG)

    def at_target(x: Running) -> Running:
        return x.move(lambda array: np.take_along_axis(array, target, axis=-1))

    nats = either(log_total - at_target(shifted), (log_total + most) - at_target(logits))
    logs = shifted - log_total, logits - (log_total + most)
    one = exact(np.ones(()), dtype)
    probability = either(weight / total, weight * (one / total), *(log.monotonic(np.exp, EXP) for log in logs))
    one_hot = exact(np.arange(e.value.shape[0]) == target, dtype)
    grad_logits = (probability - one_hot).move(lambda x: np.where(counted, x, 0.0))
    nats = nats.move(lambda x: np.where(counted, x, 0.0)).sum((0, 1))
    return _errors({"nats": nats, "hidden gradient": grad_logits @ e, "embedding gradient": grad_logits.T @ h})


def _errors(results: dict[str, Running]) -> Bounds:
    return {name: result.error for name, result in results.items()}
