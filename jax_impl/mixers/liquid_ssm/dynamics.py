"""One step of a liquid state. Twin: torch_impl. Truth: spec/mixers/liquid_ssm/reference.py."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_impl.ops.scan.chunked import chunked_scan
from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.mixers.liquid_ssm.hippo import NORMAL_RATE, coupling, legs_factor, legs_rates
from spec.mixers.liquid_ssm.reference import STEPS_A_TIME_CONSTANT


class Dynamics(NamedTuple):
    """The weights of a layer that its states depend on, besides the pre-activations."""

    tau_state: Array
    tau_output: Array
    log_tau: Array
    log_scale: Array
    frequency: Array | None


class Clock(NamedTuple):
    """Time constants and step of some tokens, and what their adjoint needs; leading axes are the tokens'."""

    hidden: Array
    content: Array
    tau: Array
    dt: Array
    fastest: Array


class Inputs(NamedTuple):
    """What drives the states of some tokens, and their masks; each may be None but the first two."""

    drive: Array
    pre: Array
    dt_scale: Array | None
    resets: Array | None
    padding: Array | None

    def forget(self, x: Array) -> Array:
        """Zero where a document begins."""
        return x if self.resets is None else jnp.where(self.resets[..., None], 0.0, x)

    def skip(self, there: Array | float, elsewhere: Array) -> Array:
        """Something else where a token is padding."""
        return elsewhere if self.padding is None else jnp.where(self.padding[..., None], there, elsewhere)


def clock(previous: Array, inputs: Inputs, of: Dynamics, config: LiquidSSMConfig) -> Clock:
    """The time constants [..., m] and the step [..., 1] of each token from the state before it."""
    hidden = jnp.tanh(inputs.pre + jnp.matmul(previous, of.tau_state.T, precision="highest"))
    content = jnp.tanh(jnp.matmul(hidden, of.tau_output.T, precision="highest"))
    tau = jnp.exp(of.log_tau) * (1.0 + config.eta * content)
    of_content = tau.min(axis=-1, keepdims=True) / STEPS_A_TIME_CONSTANT
    dt = jnp.minimum(of_content, config.target_dt)
    if inputs.dt_scale is not None:
        dt = dt * inputs.dt_scale[..., None]
    first = jnp.arange(tau.shape[-1]) == tau.argmin(axis=-1, keepdims=True)
    return Clock(hidden, content, tau, dt, (of_content < config.target_dt) & first)


def clock_adjoint(
    now: Clock, inputs: Inputs, of: Dynamics, config: LiquidSSMConfig, tau_gradient: Array, dt_gradient: Array
) -> tuple[Array, Array, Array]:
    """Gradients of log_tau and of both pre-activations of the network."""
    if inputs.dt_scale is not None:
        dt_gradient = dt_gradient * inputs.dt_scale[..., None]
    tau_gradient = tau_gradient + jnp.where(now.fastest, dt_gradient / STEPS_A_TIME_CONSTANT, 0.0)
    of_content = tau_gradient * jnp.exp(of.log_tau) * config.eta * (1.0 - now.content * now.content)
    of_hidden = jnp.matmul(of_content, of.tau_output, precision="highest") * (1.0 - now.hidden * now.hidden)
    return tau_gradient * now.tau, of_hidden, of_content


class Dense:
    """I + dt (diag(1 / tau) - A), lower triangular: diag(m) + dt a (lower part of q q^T), never made as a matrix.

    x_i = (r_i - dt a q_i c_i) / m_i, where c_{i + 1} = (1 - dt a q_i^2 / m_i) c_i + q_i r_i / m_i is the sum of all
    q_j x_j before i: a linear recurrence over the index of the state.
    """

    def __init__(self, of: Dynamics, config: LiquidSSMConfig):
        scale, n, dtype = jnp.exp(of.log_scale), config.d_state, of.log_scale.dtype
        self.sign = -coupling(config.hippo)
        self.q = scale * jnp.asarray(legs_factor(n), dtype)
        self.p = scale * scale * jnp.asarray(legs_rates(n, config.hippo), dtype)

    def solve(self, tau: Array, dt: Array, r: Array, transposed: bool = False) -> Array:
        m, step = 1.0 + dt * (1.0 / tau + self.p), self.sign * dt * self.q
        decay, drive = 1.0 - step * self.q / m, self.q * r / m
        if transposed:
            decay, drive = jnp.flip(decay, -1), jnp.flip(drive, -1)
        sums = chunked_scan(decay[..., None], drive[..., None], jnp.zeros_like(r[..., :1]))[..., 0]
        before = _later(sums)
        return (r - step * (jnp.flip(before, -1) if transposed else before)) / m

    def of_clock(self, tau: Array, dt: Array, x: Array, y: Array, drive: Array) -> tuple[Array, Array]:
        """Gradients of tau and dt."""
        before = _later(jnp.cumsum(self.q * x, axis=-1))
        rate = drive - (1.0 / tau + self.p) * x - self.sign * self.q * before
        return dt * y * x / (tau * tau), (y * rate).sum(-1, keepdims=True)

    def of_weights(self, dt: Array, x: Array, y: Array) -> tuple[Array, None]:
        """Gradients of log_scale and frequency, at each token."""
        before = _later(jnp.cumsum(self.q * x, axis=-1))
        after = jnp.flip(_later(jnp.cumsum(jnp.flip(self.q * y, -1), axis=-1)), -1)
        return -dt * (2.0 * self.p * (y * x) + self.sign * self.q * (y * before + x * after)), None


def _later(sums: Array) -> Array:
    """Sums over all before an index, from those that end with it."""
    return jnp.concatenate([jnp.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)


class Diagonal:
    """1 + dt (1 / tau - s^2 (-1/2 + i w)), a complex number for each mode."""

    def __init__(self, of: Dynamics, config: LiquidSSMConfig):
        assert of.frequency is not None, "a diagonal state has frequencies"
        square = jnp.exp(2.0 * of.log_scale)
        self.square, self.rate, self.turn = square, NORMAL_RATE * square, square * of.frequency

    def matrix(self, tau: Array, dt: Array) -> Array:
        return jax.lax.complex(1.0 + dt * (1.0 / tau + self.rate), -dt * self.turn)

    def solve(self, tau: Array, dt: Array, r: Array, transposed: bool = False) -> Array:
        m = self.matrix(tau, dt)
        return as_real(as_complex(r) / (m.conj() if transposed else m))

    def of_clock(self, tau: Array, dt: Array, x: Array, y: Array, drive: Array) -> tuple[Array, Array]:
        """Gradients of tau and dt."""
        product = as_complex(y) * as_complex(x).conj()
        of_dt = product.imag * self.turn - product.real * (1.0 / tau + self.rate)
        dt_gradient = (y * drive).sum(-1, keepdims=True) + of_dt.sum(-1, keepdims=True)
        return dt * product.real / (tau * tau), dt_gradient

    def of_weights(self, dt: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """Gradients of log_scale and frequency, at each token."""
        product = as_complex(y) * as_complex(x).conj()
        of_scale = 2.0 * dt * (product.imag * self.turn - product.real * self.rate)
        return of_scale, dt * product.imag * self.square


def as_complex(x: Array) -> Array:
    """Real parts and imaginary parts, side by side, as complex numbers."""
    return jax.lax.complex(*jnp.split(x, 2, axis=-1))


def as_real(x: Array) -> Array:
    """The inverse of `as_complex`."""
    return jnp.concatenate([x.real, x.imag], axis=-1)


def matrix_of(of: Dynamics, config: LiquidSSMConfig) -> Dense | Diagonal:
    """I + dt (diag(1 / tau) - A) of a layer, by `config.state`."""
    return Diagonal(of, config) if config.state == "diagonal" else Dense(of, config)
