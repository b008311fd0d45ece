"""One step of a liquid state. Twin: jax_impl. Truth: spec/mixers/liquid_ssm/reference.py."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.mixers.liquid_ssm.hippo import NORMAL_RATE, coupling, legs_factor, legs_rates
from spec.mixers.liquid_ssm.reference import STEPS_A_TIME_CONSTANT
from torch_impl.ops.scan.chunked import chunked_scan


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
    dt_scale: Tensor | None
    resets: Tensor | None
    padding: Tensor | None

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
    if inputs.dt_scale is not None:
        dt = dt * inputs.dt_scale[..., None]
    fastest = set_by_content & (torch.arange(tau.shape[-1], device=tau.device) == index)
    return Clock(hidden, content, tau, dt, fastest)


def clock_adjoint(
    now: Clock, inputs: Inputs, of: Dynamics, config: LiquidSSMConfig, tau_gradient: Tensor, dt_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of log_tau and of both pre-activations of the network."""
    if inputs.dt_scale is not None:
        dt_gradient = dt_gradient * inputs.dt_scale[..., None]
    tau_gradient = tau_gradient + torch.where(now.fastest, dt_gradient / STEPS_A_TIME_CONSTANT, 0.0)
    of_content = tau_gradient * of.log_tau.exp() * config.eta * (1.0 - now.content * now.content)
    of_hidden = (of_content @ of.tau_output) * (1.0 - now.hidden * now.hidden)
    return tau_gradient * now.tau, of_hidden, of_content


class Dense:
    """I + dt (diag(1 / tau) - A), lower triangular: diag(m) + dt a (lower part of q q^T), never made as a matrix.

    x_i = (r_i - dt a q_i c_i) / m_i, where c_{i + 1} = (1 - dt a q_i^2 / m_i) c_i + q_i r_i / m_i is the sum of all
    q_j x_j before i: a linear recurrence over the index of the state.
    """

    def __init__(self, of: Dynamics, config: LiquidSSMConfig):
        scale = of.log_scale.exp()
        factor, rates = _legs(config.d_state, config.hippo, scale.device, scale.dtype)
        self.sign, self.q, self.p = -coupling(config.hippo), scale * factor, scale * scale * rates

    def solve(self, tau: Tensor, dt: Tensor, r: Tensor, transposed: bool = False) -> Tensor:
        m, step = 1.0 + dt * (1.0 / tau + self.p), self.sign * dt * self.q
        decay, drive = 1.0 - step * self.q / m, self.q * r / m
        if transposed:
            decay, drive = decay.flip(-1), drive.flip(-1)
        sums = chunked_scan(decay[..., None], drive[..., None], torch.zeros_like(r[..., :1]))[..., 0]
        before = _later(sums)
        return (r - step * (before.flip(-1) if transposed else before)) / m

    def of_clock(self, tau: Tensor, dt: Tensor, x: Tensor, y: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of tau and dt."""
        before = _later((self.q * x).cumsum(-1))
        rate = drive - (1.0 / tau + self.p) * x - self.sign * self.q * before
        return dt * y * x / (tau * tau), (y * rate).sum(-1, keepdim=True)

    def of_weights(self, dt: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
        """Gradients of log_scale and frequency, at each token."""
        before = _later((self.q * x).cumsum(-1))
        after = _later((self.q * y).flip(-1).cumsum(-1)).flip(-1)
        return -dt * (2.0 * self.p * (y * x) + self.sign * self.q * (y * before + x * after)), None


@cache
def _legs(n: int, hippo: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The constants of LegS where they are needed, copied there once: a CUDA graph allows no copy from the host."""
    # Not inference tensors, should generation ask first: training saves what is made of them.
    with torch.inference_mode(False):
        place: Any = {"device": device, "dtype": dtype}
        return torch.as_tensor(legs_factor(n), **place), torch.as_tensor(legs_rates(n, hippo), **place)


def _later(sums: Tensor) -> Tensor:
    """Sums over all before an index, from those that end with it."""
    return F.pad(sums[..., :-1], (1, 0))


class Diagonal:
    """1 + dt (1 / tau - s^2 (-1/2 + i w)), a complex number for each mode."""

    def __init__(self, of: Dynamics, config: LiquidSSMConfig):
        assert of.frequency is not None, "a diagonal state has frequencies"
        square = (2.0 * of.log_scale).exp()
        self.square, self.rate, self.turn = square, NORMAL_RATE * square, square * of.frequency

    def matrix(self, tau: Tensor, dt: Tensor) -> Tensor:
        return torch.complex(1.0 + dt * (1.0 / tau + self.rate), -dt * self.turn)

    def solve(self, tau: Tensor, dt: Tensor, r: Tensor, transposed: bool = False) -> Tensor:
        m = self.matrix(tau, dt)
        return as_real(as_complex(r) / (m.conj() if transposed else m))

    def of_clock(self, tau: Tensor, dt: Tensor, x: Tensor, y: Tensor, drive: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of tau and dt."""
        product = as_complex(y) * as_complex(x).conj()
        of_dt = product.imag * self.turn - product.real * (1.0 / tau + self.rate)
        dt_gradient = (y * drive).sum(-1, keepdim=True) + of_dt.sum(-1, keepdim=True)
        return dt * product.real / (tau * tau), dt_gradient

    def of_weights(self, dt: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of log_scale and frequency, at each token."""
        product = as_complex(y) * as_complex(x).conj()
        of_scale = 2.0 * dt * (product.imag * self.turn - product.real * self.rate)
        return of_scale, dt * product.imag * self.square


def as_complex(x: Tensor) -> Tensor:
    """Real parts and imaginary parts, side by side, as complex numbers."""
    real, imag = x.chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imag.contiguous())


def as_real(x: Tensor) -> Tensor:
    """The inverse of `as_complex`."""
    return torch.cat([x.real, x.imag], dim=-1)


def matrix_of(of: Dynamics, config: LiquidSSMConfig) -> Dense | Diagonal:
    """I + dt (diag(1 / tau) - A) of a layer, by `config.state`."""
    return Diagonal(of, config) if config.state == "diagonal" else Dense(of, config)
