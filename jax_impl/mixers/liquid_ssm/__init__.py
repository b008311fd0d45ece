"""The liquid state space model. Twin: torch_impl. Truth: spec/mixers/liquid_ssm/reference.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jax_impl.layers import Linear, accumulate_dtype
from jax_impl.mixers.liquid_ssm.dynamics import Dynamics, Inputs, clock, clock_adjoint, matrix_of
from jax_impl.mixers.liquid_ssm.model import LiquidSSMLanguageModel
from jax_impl.mixers.liquid_ssm.solvers import METHODS, Solved, Trajectory, require_takes, shifted
from spec.axes import BN, BT, BTD, BTN, BTX
from spec.mixers.base import NO_MASKS, Capabilities, Masks, Side
from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.mixers.liquid_ssm.reference import check_liquid_states


def choose_method(config: LiquidSSMConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    # `liquidnet bench --liquid-ssm`: on a CPU XLA's loop over time is the faster one at every length.
    return "sequential"


def _solve(config: LiquidSSMConfig, method: str, shape: tuple[int, ...], which: int, *given: Any) -> Solved:
    """States (0) or gradients (1) by a method.

    A program cannot raise: where a method that was named finds no solution, all it gives is NaN.
    """
    name = choose_method(config, *shape[:2]) if method == "auto" else method
    solved = METHODS[name][which](*given)
    if name == "sequential":
        return solved
    found = jax.tree.map(lambda x: jnp.where(solved.converged, x, jnp.nan), solved[:2])
    return solved._replace(values=found[0], carry=found[1])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _states(config: LiquidSSMConfig, method: str, state_bn: Array, inputs: Inputs, of: Dynamics) -> tuple[Array, Array]:
    solved = _solve(config, method, inputs.drive.shape, 0, inputs, of, config, state_bn)
    return solved.values, solved.carry


def _states_forward(config, method, state_bn, inputs, of):
    """Only the states are kept for the gradients: clock and matrices are made again."""
    results: Any = _states(config, method, state_bn, inputs, of)
    return results, (state_bn, results[0], inputs, of)


def _states_backward(config, method, saved, gradients):
    state_bn, states_btn, inputs, of = saved
    gradient_btn, final_bn = gradients
    previous = shifted(states_btn, state_bn, inputs)
    at = clock(previous, inputs, of, config)
    kept = Trajectory(inputs, of, config, states_btn, at)
    solved = _solve(config, method, states_btn.shape, 1, kept, gradient_btn, final_bn)
    matrix, y_btn = matrix_of(of, config), solved.values
    of_clock = matrix.of_clock(at.tau, at.dt, states_btn, y_btn, inputs.drive)
    of_scale, of_frequency = matrix.of_weights(at.dt, states_btn, y_btn)
    of_tau, of_hidden, of_content = clock_adjoint(at, inputs, of, config, *of_clock)
    of_dynamics = Dynamics(
        jnp.einsum("bth,btn->hn", of_hidden, previous, precision="highest"),
        jnp.einsum("btm,bth->mh", of_content, at.hidden, precision="highest"),
        of_tau.sum(axis=(0, 1)),
        of_scale.sum(axis=(0, 1)),
        None if of_frequency is None else of_frequency.sum(axis=(0, 1)),
    )
    return solved.carry, Inputs(at.dt * y_btn, of_hidden, None, None, None), of_dynamics


_states.defvjp(_states_forward, _states_backward)


def liquid_states(
    pre_btx: Float[Array, BTX],
    of: Dynamics,
    config: LiquidSSMConfig,
    state_bn: Float[Array, BN] | None = None,
    resets_bt: Bool[Array, BT] | None = None,
    padding_bt: Bool[Array, BT] | None = None,
    noise_btn: Float[Array, BTN] | None = None,
    dt_scale_bt: Float[Array, BT] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, BTN], Float[Array, BN]]:
    """All states of the layer and the last one.

    (I + dt_t (diag(1 / tau_t) - A)) x_t = x_{t-1} + dt_t (drive_t + exploration_rate xi_t), dt and tau by content.

    Args:
        pre_btx, config, state_bn, resets_bt, padding_bt, noise_btn: as in spec.mixers.liquid_ssm.reference.
        of: the weights that the states depend on.
        dt_scale_bt: as there; at least 0 (less gives NaN) and not differentiated.
        method: a key of METHODS, or `auto`.

    Raises:
        ValueError: shapes or dtypes that do not agree, or an unknown method.
        NotImplementedError: the method does not take this kind of state.
    """
    require_takes(method, config)
    check_liquid_states(config, pre_btx, state_bn, resets_bt, padding_bt, noise_btn, dt_scale_bt)
    dtype = of.log_tau.dtype
    drive, pre = jnp.split(pre_btx.astype(dtype), [config.d_state], axis=-1)
    if noise_btn is not None:
        drive = drive + config.exploration_rate * noise_btn.astype(dtype)
    if dt_scale_bt is not None:
        # Time does not run backward: what comes of it is no number.
        dt_scale_bt = jnp.where(dt_scale_bt >= 0, dt_scale_bt, jnp.nan).astype(dtype)
    state_bn = jnp.zeros_like(drive[:, 0]) if state_bn is None else state_bn.astype(dtype)
    return _states(config, method, state_bn, Inputs(drive, pre, dt_scale_bt, resets_bt, padding_bt), of)


class LiquidSSM(nnx.Module):
    """y = C x + D u over the states x, the rows of `input` = drive | time constants."""

    def __init__(self, config: LiquidSSMConfig, compute_dtype: str = "float32", method: str = "auto"):
        require_takes(method, config)
        self.config, self.method = config, method
        n, m, h, wide = config.d_state, config.modes, config.d_tau, accumulate_dtype(compute_dtype)
        self.input = Linear(config.d_model, n + h, compute_dtype)
        self.tau_state = Linear(n, h, compute_dtype)
        self.tau_output = Linear(h, m, compute_dtype)
        self.log_tau = nnx.Param(jnp.zeros(m, wide))
        self.log_scale = nnx.Param(jnp.zeros(m, wide))
        if config.state == "diagonal":
            self.frequency = nnx.Param(jnp.zeros(m, wide))
        self.output = Linear(n, config.d_model, compute_dtype)
        self.skip = nnx.Param(jnp.zeros(config.d_model, wide))

    def __call__(
        self,
        x: Float[Array, BTD],
        state: Float[Array, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Array, BTD], Float[Array, BN]]:
        more = ((side or {}).get(name) for name in ("noise", "dt_scale"))
        states_btn, state = liquid_states(
            self.input(x), self.dynamics(), self.config, state, *masks, *more, method=self.method
        )
        return self.output(states_btn) + self.skip[...] * x, state

    def dynamics(self) -> Dynamics:
        """The weights that the states depend on."""
        frequency = self.frequency[...] if self.config.state == "diagonal" else None
        return Dynamics(
            self.tau_state.weight[...], self.tau_output.weight[...], self.log_tau[...], self.log_scale[...], frequency
        )


Mixer, Model = LiquidSSM, LiquidSSMLanguageModel


def capabilities(config: LiquidSSMConfig, method: str = "auto") -> Capabilities:
    """What this backend can do with the mixer beyond what every mixer must."""
    # Whether a guess of `parallel` has settled is asked by the host.
    return Capabilities(graph_capture=method != "parallel")
