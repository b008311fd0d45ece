"""The liquid state space model. Twin: jax_impl. Truth: spec/mixers/liquid_ssm/reference.py."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from spec.axes import BN, BT, BTD, BTN, BTX
from spec.mixers.base import NO_MASKS, Capabilities, Masks, Side
from spec.mixers.liquid_ssm import LiquidSSMConfig
from spec.mixers.liquid_ssm.reference import check_liquid_states
from torch_impl.layers import Linear, accumulate_dtype
from torch_impl.mixers.liquid_ssm.dynamics import Dynamics, Inputs, clock, clock_adjoint, matrix_of
from torch_impl.mixers.liquid_ssm.model import LiquidSSMLanguageModel
from torch_impl.mixers.liquid_ssm.solvers import METHODS, Solved, Trajectory, require_takes, shifted
from torch_impl.ops.autodiff import differentiated_again, in_transform, require_no_transform


def choose_method(config: LiquidSSMConfig, batch_size: int, seq_len: int) -> str:
    """The method that `auto` takes where training would run by default."""
    return "parallel" if config.state == "diagonal" and seq_len >= 16 else "sequential"


def _solve(config: LiquidSSMConfig, method: str, shape: tuple[int, ...], which: int, *given: Any) -> Solved:
    """States (0) or gradients (1) by a method; only `auto` may take another one instead.

    Raises:
        FloatingPointError: the method was named and found no solution.
    """
    name = choose_method(config, *shape[:2]) if method == "auto" else method
    solved = METHODS[name][which](*given)
    if not solved.converged:
        told = (
            f"method {name!r} did not settle in {solved.iterations} iterations, its residual is {solved.residual:.1e}"
        )
        if method != "auto":
            raise FloatingPointError(f"{told}; use 'sequential'")
        warnings.warn(f"{told}; 'sequential' goes on instead", RuntimeWarning, stacklevel=2)
        solved = METHODS["sequential"][which](*given)
    return solved


class _States(torch.autograd.Function):
    """Only the states are kept for the gradients: clock and matrices are made again."""

    @staticmethod
    def forward(ctx, config, method, state_bn, drive, pre, dt_scale, resets, padding, *of):
        inputs, dynamics = Inputs(drive, pre, dt_scale, resets, padding), Dynamics(*of)
        solved = _solve(config, method, drive.shape, 0, inputs, dynamics, config, state_bn)
        ctx.save_for_backward(state_bn, solved.values, *inputs, *dynamics)
        ctx.config, ctx.method = config, method
        return solved.values, solved.carry.clone()

    @staticmethod
    def backward(ctx, gradient_btn, final_bn):
        state_bn, states_btn, *rest = ctx.saved_tensors
        inputs, of, config = Inputs(*rest[:5]), Dynamics(*rest[5:]), ctx.config
        previous = shifted(states_btn, state_bn, inputs)
        at = clock(previous, inputs, of, config)
        kept = Trajectory(inputs, of, config, states_btn, at)
        # Of guesses that have settled the derivatives need not have.
        method = "sequential" if differentiated_again() else ctx.method
        solved = _solve(config, method, states_btn.shape, 1, kept, gradient_btn, final_bn)
        matrix, y_btn = matrix_of(of, config), solved.values
        of_clock = matrix.of_clock(at.tau, at.dt, states_btn, y_btn, inputs.drive)
        of_scale, of_frequency = matrix.of_weights(at.dt, states_btn, y_btn)
        of_tau, of_hidden, of_content = clock_adjoint(at, inputs, of, config, *of_clock)
        gradients = (
            torch.einsum("bth,btn->hn", of_hidden, previous),
            torch.einsum("btm,bth->mh", of_content, at.hidden),
            of_tau.sum(dim=(0, 1)),
            of_scale.sum(dim=(0, 1)),
            None if of_frequency is None else of_frequency.sum(dim=(0, 1)),
        )
        return None, None, solved.carry, at.dt * y_btn, of_hidden, None, None, None, *gradients


def liquid_states(
    pre_btx: Float[Tensor, BTX],
    of: Dynamics,
    config: LiquidSSMConfig,
    state_bn: Float[Tensor, BN] | None = None,
    resets_bt: Bool[Tensor, BT] | None = None,
    padding_bt: Bool[Tensor, BT] | None = None,
    noise_btn: Float[Tensor, BTN] | None = None,
    dt_scale_bt: Float[Tensor, BT] | None = None,
    method: str = "auto",
) -> tuple[Float[Tensor, BTN], Float[Tensor, BN]]:
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
        FloatingPointError: the method was named and found no solution.
    """
    require_takes(method, config)
    check_liquid_states(config, pre_btx, state_bn, resets_bt, padding_bt, noise_btn, dt_scale_bt)
    dtype = of.log_tau.dtype
    drive, pre = pre_btx.to(dtype).split([config.d_state, config.d_tau], dim=-1)
    if noise_btn is not None:
        drive = drive + config.exploration_rate * noise_btn.to(dtype)
    if dt_scale_bt is not None:
        # Time does not run backward: what comes of it is no number.
        dt_scale_bt = torch.where(dt_scale_bt >= 0, dt_scale_bt, torch.nan).to(dtype)
    state_bn = torch.zeros_like(drive[:, 0]) if state_bn is None else state_bn.to(dtype)
    if in_transform():
        if method not in ("auto", "sequential"):
            require_no_transform(method)
        solved = METHODS["sequential"][0](Inputs(drive, pre, dt_scale_bt, resets_bt, padding_bt), of, config, state_bn)
        return solved.values, solved.carry
    return _States.apply(config, method, state_bn, drive, pre, dt_scale_bt, resets_bt, padding_bt, *of)


class LiquidSSM(nn.Module):
    """y = C x + D u over the states x, the rows of `input` = drive | time constants."""

    def __init__(self, config: LiquidSSMConfig, compute_dtype: str = "float32", method: str = "auto"):
        super().__init__()
        require_takes(method, config)
        self.config, self.method = config, method
        n, m, h, wide = config.d_state, config.modes, config.d_tau, accumulate_dtype(compute_dtype)
        self.input = Linear(config.d_model, n + h, compute_dtype)
        self.tau_state = Linear(n, h, compute_dtype)
        self.tau_output = Linear(h, m, compute_dtype)
        self.log_tau = nn.Parameter(torch.zeros(m, dtype=wide))
        self.log_scale = nn.Parameter(torch.zeros(m, dtype=wide))
        if config.state == "diagonal":
            self.frequency = nn.Parameter(torch.zeros(m, dtype=wide))
        self.output = Linear(n, config.d_model, compute_dtype)
        self.skip = nn.Parameter(torch.zeros(config.d_model, dtype=wide))

    def forward(
        self,
        x: Float[Tensor, BTD],
        state: Float[Tensor, BN] | None = None,
        masks: Masks = NO_MASKS,
        side: Side | None = None,
    ) -> tuple[Float[Tensor, BTD], Float[Tensor, BN]]:
        more = ((side or {}).get(name) for name in ("noise", "dt_scale"))
        states_btn, state = liquid_states(
            self.input(x), self.dynamics(), self.config, state, *masks, *more, method=self.method
        )
        return self.output(states_btn) + self.skip * x, state

    def dynamics(self) -> Dynamics:
        """The weights that the states depend on."""
        frequency = self.frequency if self.config.state == "diagonal" else None
        return Dynamics(self.tau_state.weight, self.tau_output.weight, self.log_tau, self.log_scale, frequency)


Mixer, Model = LiquidSSM, LiquidSSMLanguageModel


def capabilities(config: LiquidSSMConfig, method: str = "auto") -> Capabilities:
    """What this backend can do with the mixer beyond what every mixer must."""
    # Whether a guess of `parallel` has settled is asked by the host.
    return Capabilities(graph_capture=method != "parallel")
