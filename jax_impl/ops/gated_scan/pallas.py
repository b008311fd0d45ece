"""The gated scan as one kernel in each direction. No twin: Pallas is JAX's. Truth: spec/reference/blocks.py."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_impl.kernels.pallas import blocks
from jax_impl.kernels.pallas.blocks import LANES, ROWS, SEGMENTS, Block, Limits, Walk, launch, mask_words, where_lowered
from jax_impl.kernels.pallas.gated_scan_backward import SCRATCH, gated_scan_backward
from jax_impl.kernels.pallas.gated_scan_forward import gated_scan_forward
from jax_impl.ops.gated_scan.unfused import GatedScanInputs
from jax_impl.ops.scan.context_parallel import sharing
from spec.axes import BD, BTD


def pallas_gated_scan(inputs: GatedScanInputs, only_tpu: bool = False) -> tuple[Float[Array, BTD], Float[Array, BD]]:
    """Gates, scan and output gate in one pass over memory, the gradients in another.

    Saved for the gradients: the inputs, and one float32 state for each block of at most 512 steps. Compiled where the
    program is lowered for a TPU; on the CPU the kernels are interpreted, which is right and slow.

    Args:
        inputs: as in `gated_scan`.
        only_tpu: this is a branch that nothing but a TPU's program has.

    Raises:
        NotImplementedError: the program is lowered for neither, or several devices share the sequence.
    """
    pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min = inputs
    if sharing() is not None:
        raise NotImplementedError("mixer method 'pallas' has each row whole; where time is shared use auto or chunked")
    b, _, x = pre_btx.shape
    wide = decay_bias_d.dtype
    state_bd = jnp.zeros((b, x // 3), wide) if state_bd is None else state_bd.astype(wide)
    return _gated_scan(pre_btx, decay_bias_d, state_bd, resets_bt, padding_bt, delta_min, only_tpu)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _gated_scan(pre, bias, state, resets, padding, delta_min, only_tpu):
    run = partial(_forward, delta_min=delta_min, save=False, limits=blocks.GATED_SCAN)
    return where_lowered(run, pre, bias, state, resets, padding, only_tpu=only_tpu)[:2]


def _gated_scan_forward(pre, bias, state, resets, padding, delta_min, only_tpu):
    run = partial(_forward, delta_min=delta_min, save=True, limits=blocks.GATED_SCAN)
    gated, last, saved = where_lowered(run, pre, bias, state, resets, padding, only_tpu=only_tpu)
    return (gated, last), (pre, bias, saved, resets, padding)


def _gated_scan_backward(delta_min, only_tpu, residuals, gradients):
    run = partial(_backward, delta_min=delta_min, limits=blocks.GATED_SCAN)
    return *where_lowered(run, *residuals, *gradients, only_tpu=only_tpu), None, None


_gated_scan.defvjp(_gated_scan_forward, _gated_scan_backward)


@partial(jax.jit, static_argnames=("delta_min", "save", "limits", "interpret"))
def _forward(pre, bias, state, resets, padding, *, delta_min, save, limits, interpret):
    """Gated states, last state, and with `save` the states before each block."""
    plan = _Plan(pre, bias, resets, padding, delta_min, limits, interpret)
    inputs = [plan.parts(pre), plan.shared(bias), plan.of_row(state), *plan.masks()]
    t, d, wide = plan.walk.length, plan.width, bias.dtype
    outputs = [plan.steps(_result(plan.b, t, d, dtype=pre.dtype)), plan.rows(_result(plan.b, 1, d, dtype=wide))]
    if save:
        outputs.append(plan.saved(_result(plan.b, plan.walk.blocks, 1, d, dtype=wide)))
    kernel = partial(gated_scan_forward, save=save, **plan.options())
    gated, last, *saved = plan.launch(kernel, "gated_scan_forward", inputs, outputs, 2)
    return gated[..., : plan.d], last[:, 0, : plan.d], saved[0] if save else None


@partial(jax.jit, static_argnames=("delta_min", "limits", "interpret"))
def _backward(pre, bias, saved, resets, padding, grad_gated, grad_last, *, delta_min, limits, interpret):
    """Gradients of pre-activations, bias and initial state."""
    plan = _Plan(pre, bias, resets, padding, delta_min, limits, interpret, backwards=True)
    grad_gated = plan.steps(plan.filled(grad_gated))
    inputs = [plan.parts(pre), plan.shared(bias), plan.saved(saved), grad_gated, plan.of_row(grad_last), *plan.masks()]
    row = plan.rows(_result(plan.b, 1, plan.width, dtype=bias.dtype))
    outputs = [plan.steps(_result(plan.b, plan.walk.length, 3 * plan.width, dtype=pre.dtype)), row, row]
    kernel = partial(gated_scan_backward, **plan.options())
    grad_pre, grad_bias, grad_state = plan.launch(kernel, "gated_scan_backward", inputs, outputs, SCRATCH)
    if plan.width != plan.d:
        grad_pre = grad_pre.reshape(*pre.shape[:2], 3, plan.width)[..., : plan.d].reshape(pre.shape)
    return grad_pre, grad_bias[:, 0, : plan.d].sum(axis=0), grad_state[:, 0, : plan.d]


def _result(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


class _Plan:
    """How the kernels walk through one problem: an array, its channels filled up to whole lanes, with its blocks.

    Time is never filled up: a block that reaches beyond the end is masked inside the kernel.
    """

    def __init__(
        self,
        pre: Array,
        bias: Array,
        resets: Array | None,
        padding: Array | None,
        delta_min: float,
        limits: Limits,
        interpret: Any,
        backwards: bool = False,
    ):
        self.b, t, x = pre.shape
        self.d, self.wide, self.resets, self.padding = x // 3, bias.dtype, resets, padding
        self.delta_min, self.backwards = delta_min, backwards
        self.width = -(-self.d // LANES) * LANES
        self.walk = self._walk(limits, t, pre.dtype.itemsize, interpret)

    def _walk(self, limits: Limits, length: int, size: int, interpret: Any) -> Walk:
        tiles = self.width // LANES
        side_by_side = max(n for n in range(1, limits.tiles + 1) if tiles % n == 0)
        # Two of each block, one of them on its way; the gradients move seven arrays. Both directions have one size.
        a_step = 2 * 7 * self.width * size + SCRATCH * side_by_side * LANES * self.wide.itemsize
        steps = ROWS
        while steps < min(length, limits.steps) and 2 * steps * a_step <= limits.vmem:
            steps *= 2
        return Walk(length, steps, side_by_side, 1, limits.unroll, limits.sixteens[self.backwards], interpret)

    def options(self) -> dict[str, Any]:
        keep, rest = math.exp(-self.delta_min), -math.expm1(-self.delta_min)
        resets, stills = self.resets is not None, self.padding is not None or self.walk.ragged
        return {"walk": self.walk, "d": self.width, "keep": keep, "rest": rest, "resets": resets, "stills": stills}

    def masks(self) -> list[tuple[Array, Block]]:
        padding = self.padding
        if padding is None and self.walk.ragged:
            padding = jnp.zeros((self.b, self.walk.length), bool)
        words = mask_words(self.resets, self.walk, False), mask_words(padding, self.walk, True)
        return [(word, self._blocks(word, 1)) for word in words if word is not None]

    def filled(self, x: Array) -> Array:
        """The last axis d channels, with zeros behind them."""
        missing = self.width - self.d
        return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),)) if missing else x

    def parts(self, pre: Array) -> tuple[Array, Block]:
        if self.width != self.d:
            b, t, _ = pre.shape
            pre = self.filled(pre.reshape(b, t, 3, self.d)).reshape(b, t, 3 * self.width)
        return self.steps(pre)

    def shared(self, bias: Array) -> tuple[Array, Block]:
        return self.filled(bias)[None], Block((1, self.width), lambda b, k: (0, 0))

    def of_row(self, state: Array) -> tuple[Array, Block]:
        return self.rows(self.filled(state)[:, None])

    def rows(self, x: Any) -> tuple[Any, Block]:
        return x, Block((1, 1, self.width), lambda b, k: (b, 0, 0))

    def steps(self, x: Any) -> tuple[Any, Block]:
        return x, self._blocks(x, self.walk.steps)

    def saved(self, x: Any) -> tuple[Any, Block]:
        return x, self._blocks(x, 1)

    def _blocks(self, x: Any, steps: int) -> Block:
        """One row of the batch, `steps` of its second axis and all of the others."""
        last = self.walk.blocks - 1
        rest = (0,) * (x.ndim - 2)
        place = (lambda b, k: (b, last - k, *rest)) if self.backwards else (lambda b, k: (b, k, *rest))
        return Block((1, steps, *x.shape[2:]), place)

    def launch(self, kernel: Any, name: str, inputs: Any, outputs: Any, scratch: int) -> list[Array]:
        shape = (self.walk.tiles * SEGMENTS * self.walk.stride, LANES), self.wide
        grid = self.b, self.walk.blocks
        return launch(kernel, name, grid, inputs, outputs, [shape] * scratch, self.walk.interpret)
