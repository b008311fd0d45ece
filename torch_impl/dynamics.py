"""One step of a liquid state. Twin: jax_impl/dynamics.py. Truth: spec/reference/liquid_ssm.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spec.config import LiquidSSMConfig
from spec.hippo import LONGEST_MEMORY, coupling, legs_factor, legs_rates
from spec.reference.liquid_ssm import STEPS_A_TIME_CONSTANT


class Dynamics(NamedTuple):
    """The weights of a layer that its states depend on, besides the pre-activations."""

    tau_state: Tensor
    tau_output: Tensor
    log_tau: Tensor
    log_scale: Tensor
    frequency: Tensor | None


class Clock(NamedTuple):
    """Time constants and step of some tokens, and what their adjoint needs; leading axes are the tokens'."""

    hidden: Tensor
    content: Tensor
    tau: Tensor
    dt: Tensor
    fastest: Tensor


class Inputs(NamedTuple):
    """What drives the states of some tokens, and their masks; each may be None but the first two."""

    drive: Tensor
    pre: Tensor
    gaps: Tensor | None
    resets: Tensor | None
    padding: Tensor | None

    def at(self, t: int) -> Inputs:
        """Those of one step."""
        masks = (None if x is None else x[:, t] for x in self[2:])
        return Inputs(self.drive[:, t], self.pre[:, t], *masks)

    def forget(self, x: Tensor) -> Tensor:
        """Zero where a document begins."""
        return x if self.resets is None else x.masked_fill(self.resets[..., None], 0.0)

    def skip(self, there: Tensor | float, elsewhere: Tensor) -> Tensor:
        """Something else where a token is padding."""
        return elsewhere if self.padding is None else torch.where(self.padding[..., None], there, elsewhere)


def clock(previous: Tensor, inputs: Inputs, of: Dynamics, config: LiquidSSMConfig) -> Clock:
    """The time constants [..., m] and the step [..., 1] of each token from the state before it."""
    hidden = torch.tanh(inputs.pre + previous @ of.tau_state.T)
    content = torch.tanh(hidden @ of.tau_output.T)
    tau = of.log_tau.exp() * (1.0 + config.eta * content)
    # min takes any of the least; argmax of a mask takes the first.
    least = tau.amin(dim=-1, keepdim=True)
    index = (tau == least).to(torch.uint8).argmax(dim=-1, keepdim=True)
    of_content = least / STEPS_A_TIME_CONSTANT
    set_by_content = of_content < config.target_dt
    dt = of_content.clamp(max=config.target_dt)
    if inputs.gaps is not None:
        dt = dt * inputs.gaps[..., None]
    fastest = set_by_content & (torch.arange(tau.shape[-1], device=tau.device) == index)
    return Clock(hidden, content, tau, dt, fastest)


def clock_adjoint(
    now: Clock, inputs: Inputs, of: Dynamics, config: LiquidSSMConfig, tau_gradient: Tensor, dt_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of log_tau and of both pre-activations of the network."""
    if inputs.gaps is not None:
        dt_gradient = dt_gradient * inputs.gaps[..., None]
    tau_gradient = tau_gradient + torch.where(now.fastest, dt_gradient / STEPS_A_TIME_CONSTANT, 0.0)
    of_content = tau_gradient * of.log_tau.exp() * config.eta * (1.0 - now.content * now.content)
    of_hidden = (of_content @ of.tau_output) * (1.0 - now.hidden * now.hidden)
    return tau_gradient * now.tau, of_hidden, of_content


class Dense:
    """I + dt (diag(1 / tau) - A), lower triangular: diag(m) + dt a (lower part of q q^T)."""

    def __init__(self, of: Dynamics, config: LiquidSSMConfig):
        place = {"device": of.log_scale.device, "dtype": of.log_scale.dtype}
        scale, n = of.log_scale.exp(), config.d_state
        self.sign = -coupling(config.hippo)
        self.q = scale * torch.as_tensor(legs_factor(n), **place)
        self.p = scale * scale * torch.as_tensor(legs_rates(n, config.hippo), **place)
        self.lower = self.sign * torch.outer(self.q, self.q).tril(-1)
        self.later = torch.ones(n, n, **place).triu(1)

    def solve(self, tau: Tensor, dt: Tensor, r: Tensor, transposed: bool = False) -> Tensor:
        matrix = torch.diag_embed(1.0 + dt * (1.0 / tau + self.p)) + dt[..., None] * self.lower
        matrix = matrix.mT if transposed else matrix
        return torch.linalg.solve_triangular(matrix, r[..., None], upper=transposed)[..., 0]

    def adjoint(self, tau: Tensor, dt: Tensor, x: Tensor, y: Tensor, drive: Tensor) -> tuple[Any, ...]:
        before = (self.q * x) @ self.later
        rate = drive - (1.0 / tau + self.p) * x - self.sign * self.q * before
        after = (self.q * y) @ self.later.T
        of_scale = -dt * (2.0 * self.p * (y * x) + self.sign * self.q * (y * before + x * after))
        return dt * y * x / (tau * tau), (y * rate).sum(-1, keepdim=True), of_scale, None


class Diagonal:
    """1 + dt (1 / tau - s^2 (-1/2 + i w)), a complex number for each mode."""

    def __init__(self, of: Dynamics, config: LiquidSSMConfig):
        assert of.frequency is not None, "a diagonal state has frequencies"
        square = (2.0 * of.log_scale).exp()
        self.square, self.forget, self.turn = square, LONGEST_MEMORY * square, square * of.frequency

    def matrix(self, tau: Tensor, dt: Tensor) -> Tensor:
        return torch.complex(1.0 + dt * (1.0 / tau + self.forget), -dt * self.turn)

    def solve(self, tau: Tensor, dt: Tensor, r: Tensor, transposed: bool = False) -> Tensor:
        m = self.matrix(tau, dt)
        return as_real(as_complex(r) / (m.conj() if transposed else m))

    def adjoint(self, tau: Tensor, dt: Tensor, x: Tensor, y: Tensor, drive: Tensor) -> tuple[Any, ...]:
        product = as_complex(y) * as_complex(x).conj()
        along, across = -product.real, product.imag
        rate = along * (1.0 / tau + self.forget) + across * self.turn
        dt_gradient = (y * drive).sum(-1, keepdim=True) + rate.sum(-1, keepdim=True)
        of_scale = 2.0 * dt * (along * self.forget + across * self.turn)
        return -dt * along / (tau * tau), dt_gradient, of_scale, dt * across * self.square


def as_complex(x: Tensor) -> Tensor:
    """Real parts and imaginary parts, side by side, as complex numbers."""
    real, imag = x.chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imag.contiguous())


def as_real(x: Tensor) -> Tensor:
    """The inverse of `as_complex`."""
    return torch.cat([x.real, x.imag], dim=-1)


def matrix_of(of: Dynamics, config: LiquidSSMConfig) -> Dense | Diagonal:
    """The matrix of a step."""
    return Diagonal(of, config) if config.state == "diagonal" else Dense(of, config)
