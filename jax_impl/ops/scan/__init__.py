"""The scan, its masks and its gradient. Twin: torch_impl. Truth: spec/reference/scan.py.

    pallas        one kernel in each direction, on TPUs, or interpreted on a CPU
    sequential    one step after another, everywhere
    chunked       two levels of sqrt(t) steps, everywhere
    associative   jax.lax.associative_scan, everywhere

`auto` is decided where the program is lowered: pallas for a TPU, sequential for a CPU and for 16 tokens or fewer, else
chunked. Where devices share the sequence (context_parallel.py) each scans its stretch with that method. A named method
runs or raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_impl.ops.scan.associative import associative_scan
from jax_impl.ops.scan.chunked import chunked_adjoint, chunked_scan
from jax_impl.ops.scan.context_parallel import context_parallel_scan, sharing
from jax_impl.ops.scan.pallas import pallas_adjoint, pallas_scan
from jax_impl.ops.scan.sequential import sequential_adjoint, sequential_scan
from spec.axes import BD, BT, BTD
from spec.config import require_known
from spec.inputs import check_scan

FEW = 16
"""So few tokens are taken one after another everywhere."""
METHODS = {
    "sequential": sequential_scan,
    "associative": associative_scan,
    "chunked": chunked_scan,
    "pallas": pallas_scan,
}
# The gradients of a method that has a form of its own for them; of any other one, `_reversed`.
ADJOINTS: dict[str, Callable[..., tuple[Array, Array, Array]]] = {
    "sequential": sequential_adjoint,
    "chunked": chunked_adjoint,
    "pallas": pallas_adjoint,
}


def choose_method(shape: tuple[int, ...]) -> str:
    """The method that `auto` takes for a scan of shape [b, t, d].

    In a program for the devices that are here; one that is lowered for others takes theirs. A CPU has few cores and
    runs a loop without launching anything: there one pass over memory beats the two of `chunked` at any length.
    """
    if shape[1] <= FEW:
        return "sequential"
    return {"tpu": "pallas", "cpu": "sequential"}.get(jax.default_backend(), "chunked")


def scan(
    decay_btd: Float[Array, BTD],
    drive_btd: Float[Array, BTD],
    state_bd: Float[Array, BD] | None = None,
    method: str = "auto",
    resets_bt: Bool[Array, BT] | None = None,
    padding_bt: Bool[Array, BT] | None = None,
) -> tuple[Float[Array, BTD], Float[Array, BD]]:
    """All states of h_t = decay_t h_{t-1} + drive_t and the last one, differentiable in all three inputs.

    A first-order linear recurrence (Blelloch 1990, section 1.4); its adjoint is the same recurrence in reversed time
    (Martin & Cundy 2018).

    Args:
        decay_btd: in [0, 1], [b, t, d].
        drive_btd: [b, t, d].
        state_bd: h_{-1}, [b, d], taken in the dtype of the drive; None is zero.
        method: a key of METHODS, or `auto`.
        resets_bt: true clears the state before token t is absorbed.
        padding_bt: true at positions that change nothing.

    Returns:
        states [b, t, d], the last state [b, d].

    Raises:
        ValueError: shapes or dtypes that do not agree, see spec/inputs.py, or an unknown method.
        NotImplementedError: a method that was named does not run where the program is lowered.
    """
    check_scan(decay_btd, drive_btd, state_bd, resets_bt, padding_bt)
    b, _, d = decay_btd.shape
    state_bd = jnp.zeros((b, d), drive_btd.dtype) if state_bd is None else state_bd.astype(drive_btd.dtype)
    if method != "auto":
        require_known("scan method", method, METHODS)
    if resets_bt is not None:
        decay_btd = jnp.where(resets_bt[..., None], 0.0, decay_btd)
    if padding_bt is not None:
        decay_btd = jnp.where(padding_bt[..., None], 1.0, decay_btd)
        drive_btd = jnp.where(padding_bt[..., None], 0.0, drive_btd)
    group = sharing()
    if group is not None:
        run = _states(method), _adjoint(method)
        return context_parallel_scan(decay_btd, drive_btd, state_bd, *run, group)
    return _scan(decay_btd, drive_btd, state_bd, method)


def _states(method: str) -> Callable[[Array, Array, Array], Array]:
    return _automatic if method == "auto" else METHODS[method]


def _adjoint(method: str) -> Callable[..., tuple[Array, Array, Array]]:
    if method == "auto":
        return _automatic_adjoint
    return ADJOINTS.get(method) or partial(_reversed, METHODS[method])


def _automatic(decay_btd, drive_btd, state_bd):
    if decay_btd.shape[1] <= FEW:
        return sequential_scan(decay_btd, drive_btd, state_bd)
    kernel = partial(pallas_scan, only_tpu=True)
    return jax.lax.platform_dependent(
        decay_btd, drive_btd, state_bd, tpu=kernel, cpu=sequential_scan, default=chunked_scan
    )


def _automatic_adjoint(decay_btd, *saved_and_gradients):
    if decay_btd.shape[1] <= FEW:
        return sequential_adjoint(decay_btd, *saved_and_gradients)
    kernel = partial(pallas_adjoint, only_tpu=True)
    arrays = decay_btd, *saved_and_gradients
    return jax.lax.platform_dependent(*arrays, tpu=kernel, cpu=sequential_adjoint, default=chunked_adjoint)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(decay_btd, drive_btd, state_bd, method):
    """Only decay, states and h_{-1} are kept for the gradients."""
    return _forward(decay_btd, drive_btd, state_bd, method)[0]


def _forward(decay_btd, drive_btd, state_bd, method):
    states_btd = _states(method)(decay_btd, drive_btd, state_bd)
    return (states_btd, states_btd[:, -1]), (decay_btd, states_btd, state_bd)


def _backward(method, saved, gradients):
    return _adjoint(method)(*saved, *gradients)


_scan.defvjp(_forward, _backward)


def _reversed(method, decay_btd, states_btd, state_bd, grad_states_btd, grad_last_bd):
    """Gradients of decay, drive and initial state: the adjoint of a method is the same method in reversed time."""
    following_btd = jnp.concatenate([jnp.ones_like(state_bd)[:, None], jnp.flip(decay_btd[:, 1:], 1)], axis=1)
    g_btd = jnp.flip(method(following_btd, jnp.flip(grad_states_btd, 1), grad_last_bd), 1)
    previous_btd = jnp.concatenate([state_bd[:, None], states_btd[:, :-1]], axis=1)
    return g_btd * previous_btd, g_btd, decay_btd[:, 0] * g_btd[:, 0]
