"""All states of a row, one by one or together. Twin: torch_impl. Truth: spec/mixers/liquid_ssm/reference.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_impl.mixers.liquid_ssm.dynamics import (
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
from jax_impl.ops.scan.chunked import chunked_scan
from spec.config import require_known
from spec.mixers.liquid_ssm import LiquidSSMConfig

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

    values: Array
    carry: Array
    iterations: Array | int = 1
    residual: Array | float = 0.0
    converged: Array | bool = True


class Trajectory(NamedTuple):
    """What the adjoint needs: the states, and the clock at each."""

    inputs: Inputs
    of: Dynamics
    config: LiquidSSMConfig
    states: Array
    clock: Clock

    def through_clock(self, at: Clock, inputs: Inputs, x: Array, y: Array) -> Array:
        """What y passes on by the clock to the state before it."""
        of_clock = matrix_of(self.of, self.config).of_clock(at.tau, at.dt, x, y, inputs.drive)
        of_hidden = clock_adjoint(at, inputs, self.of, self.config, *of_clock)[1]
        return jnp.matmul(of_hidden, self.of.tau_state, precision="highest")


def shifted(states_btn: Array, state_bn: Array, inputs: Inputs) -> Array:
    """The state that each step starts from."""
    return inputs.forget(jnp.concatenate([state_bn[:, None], states_btn[:, :-1]], axis=1))


def sequential(inputs: Inputs, of: Dynamics, config: LiquidSSMConfig, state_bn: Array) -> Solved:
    """One state after another."""
    matrix = matrix_of(of, config)

    def step(state_bn: Array, now: Inputs) -> tuple[Array, Array]:
        previous = now.forget(state_bn)
        at = clock(previous, now, of, config)
        state_bn = now.skip(state_bn, matrix.solve(at.tau, at.dt, previous + at.dt * now.drive))
        return state_bn, state_bn

    last_bn, states_tbn = jax.lax.scan(step, state_bn, _over_time(inputs))
    return Solved(jnp.moveaxis(states_tbn, 0, 1), last_bn)


def sequential_adjoint(kept: Trajectory, gradient_btn: Array, final_bn: Array) -> Solved:
    """One y after another, from the last back."""
    matrix = matrix_of(kept.of, kept.config)

    def step(g_bn: Array, given: Any) -> tuple[Array, Array]:
        now, at, x_bn, gradient_bn = given
        g_bn = g_bn + gradient_bn
        y_bn = matrix.solve(at.tau, at.dt, now.skip(0.0, g_bn), transposed=True)
        return now.skip(g_bn, now.forget(y_bn + kept.through_clock(at, now, x_bn, y_bn))), y_bn

    at, x, gradient = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (kept.clock, kept.states, gradient_btn))
    given = (_over_time(kept.inputs), at, x, gradient)
    of_state, y_tbn = jax.lax.scan(step, final_bn, given, reverse=True)
    return Solved(jnp.moveaxis(y_tbn, 0, 1), of_state)


def parallel(inputs: Inputs, of: Dynamics, config: LiquidSSMConfig, state_bn: Array) -> Solved:
    """All states of a diagonal state together, by going over all of time until nothing changes but roundings.

    With the clock of the last guess x_t = a_t (x_{t-1} + dt_t drive_t), a = 1 / m, is one scan: a quasi-Newton step on
    all equations x_t = f(x_{t-1}) that leaves out the derivative of the clock. |a| < 1, so that no guess is larger than
    the inputs allow, and up to rounding each is exact for one step more than the last. Source: Lim et al. 2024 (DEER),
    Gonzalez et al. 2024 (quasi-DEER).
    """
    matrix = Diagonal(of, config)

    def improve(states_btn: Array) -> Array:
        at = clock(shifted(states_btn, state_bn, inputs), inputs, of, config)
        factor = 1.0 / matrix.matrix(at.tau, at.dt)
        drive = inputs.skip(0.0, factor * as_complex(at.dt * inputs.drive))
        return as_real(chunked_scan(inputs.skip(1.0, inputs.forget(factor)), drive, as_complex(state_bn)))

    states_btn, *told = _settled(improve, jnp.zeros_like(inputs.drive))
    return Solved(states_btn, states_btn[:, -1], *told)


def parallel_adjoint(kept: Trajectory, gradient_btn: Array, final_bn: Array) -> Solved:
    """All y of a diagonal state together: the clock passes on what the last guess says, the rest is a scan."""
    matrix, inputs = Diagonal(kept.of, kept.config), kept.inputs
    factor = inputs.skip(0.0, 1.0 / matrix.matrix(kept.clock.tau, kept.clock.dt).conj())
    decay = inputs.skip(1.0, inputs.forget(factor))
    # What reaches x_t is what step t + 1 passes on.
    following = jnp.flip(jnp.concatenate([decay[:, 1:], jnp.ones_like(decay[:, :1])], axis=1), 1)

    def passed(y_btn: Array) -> Array:
        return inputs.skip(0.0, inputs.forget(kept.through_clock(kept.clock, inputs, kept.states, y_btn)))

    def improve(g_btn: Array) -> Array:
        by_clock = passed(as_real(factor * as_complex(g_btn)))
        given = gradient_btn + jnp.concatenate([by_clock[:, 1:], jnp.zeros_like(by_clock[:, :1])], axis=1)
        return as_real(jnp.flip(chunked_scan(following, as_complex(jnp.flip(given, 1)), as_complex(final_bn)), 1))

    g_btn, *told = _settled(improve, jnp.zeros_like(gradient_btn))
    y_btn = as_real(factor * as_complex(g_btn))
    of_state = as_real(decay[:, 0] * as_complex(g_btn[:, 0])) + passed(y_btn)[:, 0]
    return Solved(y_btn, of_state, *told)


def _over_time(inputs: Inputs) -> Inputs:
    """With time first, to scan over."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs)


def _settled(improve: Callable[[Array], Array], guess: Array) -> tuple[Any, ...]:
    """Improve a guess until it changes by a few roundings of the largest value of its row.

    Where the first one is not finite the inputs are not: no method mends them, and they are left to flow on.
    """
    kind = jnp.finfo(guess.dtype)
    enough = _ROUNDINGS * float(kind.eps)

    def settled(iteration: Array, residual: Array) -> Array:
        return (residual <= enough) | ((iteration == 1) & ~jnp.isfinite(residual))

    def going_on(state: Any) -> Array:
        return (state[1] < MOST_ITERATIONS) & ~settled(*state[1:])

    def once(state: Any) -> Any:
        guess, iteration, _ = state
        better = improve(guess)
        change_b, scale_b = jnp.abs(better - guess).max(axis=(1, 2)), jnp.abs(better).max(axis=(1, 2))
        return better, iteration + 1, (change_b / jnp.maximum(scale_b, float(kind.tiny))).max()

    start = (guess, jnp.int32(0), jnp.asarray(jnp.inf, guess.dtype))
    guess, iterations, residual = jax.lax.while_loop(going_on, once, start)
    return guess, iterations, residual, settled(iterations, residual)


def require_takes(method: str, config: LiquidSSMConfig) -> None:
    """Raises ValueError for an unknown method, NotImplementedError for one that does not take this kind of state."""
    require_known("liquid_ssm method", method, ("auto", *METHODS))
    if method == "parallel" and config.state != "diagonal":
        raise NotImplementedError(
            f"method 'parallel' needs a diagonal state, this one is {config.state}; use 'sequential'"
        )


METHODS = {"sequential": (sequential, sequential_adjoint), "parallel": (parallel, parallel_adjoint)}
