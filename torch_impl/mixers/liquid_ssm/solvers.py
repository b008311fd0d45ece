"""All states of a row, one by one or together. Twin: jax_impl. Truth: spec/mixers/liquid_ssm/reference.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spec.config import require_known
from spec.mixers.liquid_ssm import LiquidSSMConfig
from torch_impl.mixers.liquid_ssm.dynamics import (
    Clock,
    Diagonal,
    Dynamics,
    Inputs,
    as_complex,
    as_real,
    clock,
    clock_adjoint,
    matrix_of,
)
from torch_impl.ops.scan.chunked import chunked_scan

MOST_ITERATIONS = 64
_ROUNDINGS = 4.0


class Solved(NamedTuple):
    """What a method found.

    Args:
        values: the states x, or in the adjoint y, M^T y = dL/dx, [b, t, n].
        carry: the last state, or the gradient of the initial one, [b, n].
        iterations: how often all of time was gone over.
        residual: the last change, over the largest value of its row.
        converged: whether that is a matter of rounding.
    """

    values: Tensor
    carry: Tensor
    iterations: int = 1
    residual: float = 0.0
    converged: bool = True


class Trajectory(NamedTuple):
    """What the adjoint needs: the states, and the clock at each."""

    inputs: Inputs
    of: Dynamics
    config: LiquidSSMConfig
    states: Tensor
    clock: Clock

    def through_clock(self, at: Clock, inputs: Inputs, x: Tensor, y: Tensor) -> Tensor:
        """What y passes on by the clock to the state before it."""
        of_clock = matrix_of(self.of, self.config).of_clock(at.tau, at.dt, x, y, inputs.drive)
        of_hidden = clock_adjoint(at, inputs, self.of, self.config, *of_clock)[1]
        return of_hidden @ self.of.tau_state


def shifted(states_btn: Tensor, state_bn: Tensor, inputs: Inputs) -> Tensor:
    """The state that each step starts from."""
    return inputs.forget(torch.cat([state_bn[:, None], states_btn[:, :-1]], dim=1))


def sequential(inputs: Inputs, of: Dynamics, config: LiquidSSMConfig, state_bn: Tensor) -> Solved:
    """One state after another."""
    matrix, states = matrix_of(of, config), []
    for t in range(inputs.drive.shape[1]):
        now = _at(inputs, t)
        previous = now.forget(state_bn)
        at = clock(previous, now, of, config)
        state_bn = now.skip(state_bn, matrix.solve(at.tau, at.dt, previous + at.dt * now.drive))
        states.append(state_bn)
    return Solved(torch.stack(states, dim=1), state_bn)


def sequential_adjoint(kept: Trajectory, gradient_btn: Tensor, final_bn: Tensor) -> Solved:
    """One y after another, from the last back."""
    matrix, g_bn, found = matrix_of(kept.of, kept.config), final_bn, []
    for t in reversed(range(gradient_btn.shape[1])):
        at, now = Clock(*(part[:, t] for part in kept.clock)), _at(kept.inputs, t)
        g_bn = g_bn + gradient_btn[:, t]
        y_bn = matrix.solve(at.tau, at.dt, now.skip(0.0, g_bn), transposed=True)
        g_bn = now.skip(g_bn, now.forget(y_bn + kept.through_clock(at, now, kept.states[:, t], y_bn)))
        found.append(y_bn)
    return Solved(torch.stack(found[::-1], dim=1), g_bn)


def parallel(inputs: Inputs, of: Dynamics, config: LiquidSSMConfig, state_bn: Tensor) -> Solved:
    """All states of a diagonal state together, by going over all of time until nothing changes but roundings.

    With the clock of the last guess x_t = a_t (x_{t-1} + dt_t drive_t), a = 1 / m, is one scan: a quasi-Newton step on
    all equations x_t = f(x_{t-1}) that leaves out the derivative of the clock. |a| < 1, so that no guess is larger than
    the inputs allow, and up to rounding each is exact for one step more than the last. Source: Lim et al. 2024 (DEER),
    Gonzalez et al. 2024 (quasi-DEER).
    """
    matrix = Diagonal(of, config)

    def improve(states_btn: Tensor) -> Tensor:
        at = clock(shifted(states_btn, state_bn, inputs), inputs, of, config)
        factor = 1.0 / matrix.matrix(at.tau, at.dt)
        drive = inputs.skip(0.0, factor * as_complex(at.dt * inputs.drive))
        return as_real(chunked_scan(inputs.skip(1.0, inputs.forget(factor)), drive, as_complex(state_bn)))

    states_btn, *told = _settled(improve, torch.zeros_like(inputs.drive))
    return Solved(states_btn, states_btn[:, -1], *told)


def parallel_adjoint(kept: Trajectory, gradient_btn: Tensor, final_bn: Tensor) -> Solved:
    """All y of a diagonal state together: the clock passes on what the last guess says, the rest is a scan."""
    matrix, inputs = Diagonal(kept.of, kept.config), kept.inputs
    factor = inputs.skip(0.0, 1.0 / matrix.matrix(kept.clock.tau, kept.clock.dt).conj())
    decay = inputs.skip(1.0, inputs.forget(factor))
    # What reaches x_t is what step t + 1 passes on.
    following = torch.cat([decay[:, 1:], torch.ones_like(decay[:, :1])], dim=1).flip(1)

    def passed(y_btn: Tensor) -> Tensor:
        return inputs.skip(0.0, inputs.forget(kept.through_clock(kept.clock, inputs, kept.states, y_btn)))

    def improve(g_btn: Tensor) -> Tensor:
        by_clock = passed(as_real(factor * as_complex(g_btn)))
        given = gradient_btn + torch.cat([by_clock[:, 1:], torch.zeros_like(by_clock[:, :1])], dim=1)
        return as_real(chunked_scan(following, as_complex(given.flip(1)), as_complex(final_bn)).flip(1))

    g_btn, *told = _settled(improve, torch.zeros_like(gradient_btn))
    y_btn = as_real(factor * as_complex(g_btn))
    of_state = as_real(decay[:, 0] * as_complex(g_btn[:, 0])) + passed(y_btn)[:, 0]
    return Solved(y_btn, of_state, *told)


def _at(inputs: Inputs, t: int) -> Inputs:
    """Those of one step."""
    masks = (None if x is None else x[:, t] for x in inputs[2:])
    return Inputs(inputs.drive[:, t], inputs.pre[:, t], *masks)


def _settled(improve: Callable[[Tensor], Tensor], guess: Tensor) -> tuple[Any, ...]:
    """Improve a guess until it changes by a few roundings of the largest value of its row.

    Where the first one is not finite the inputs are not: no method mends them, and they are left to flow on.
    """
    kind = torch.finfo(guess.dtype)
    for iteration in range(1, MOST_ITERATIONS + 1):
        better = improve(guess)
        change_b, scale_b = (better - guess).abs().amax(dim=(1, 2)), better.abs().amax(dim=(1, 2))
        residual = (change_b / scale_b.clamp(min=kind.tiny)).max().item()
        guess = better
        if residual <= _ROUNDINGS * kind.eps or (iteration == 1 and not math.isfinite(residual)):
            return guess, iteration, residual, True
    return guess, MOST_ITERATIONS, residual, False


def require_takes(method: str, config: LiquidSSMConfig) -> None:
    """Raises ValueError for an unknown method, NotImplementedError for one that does not take this kind of state."""
    require_known("liquid_ssm method", method, ("auto", *METHODS))
    if method == "parallel" and config.state != "diagonal":
        raise NotImplementedError(
            f"method 'parallel' needs a diagonal state, this one is {config.state}; use 'sequential'"
        )


METHODS = {"sequential": (sequential, sequential_adjoint), "parallel": (parallel, parallel_adjoint)}
