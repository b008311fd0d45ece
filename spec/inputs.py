"""Checks of the arrays that a model or an operation is called with: one sentence for one mistake, whoever computes.

Shapes and dtypes are known of every array, inside a compiled program too: the float64 reference, PyTorch and JAX raise
the same ValueError for them. What an array holds is known where the host has it. A token or a label outside the
vocabulary, or a side input below its least value,

    is refused, ValueError              by the reference, by generation and training in both backends (their data pass
                                        through NumPy), by PyTorch on a CPU where it runs eagerly
    makes what depends on it NaN        in JAX, eagerly and compiled: the loss, and with it every gradient
    is a NaN loss or an assertion       in PyTorch on a GPU or compiled: the Triton kernel gives NaN, PyTorch's own
                                        operations assert. The host does not wait for a device to look at numbers

and never counts as another token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: A label that does not count: the default `ignore_index` of torch.nn.functional.cross_entropy.
IGNORED_LABEL = -100

INTEGER, BOOL, FLOATING, REAL = "an integer dtype", "dtype bool", "a floating dtype", "a real dtype"
"""What an array must hold, in the words of the message."""
INEXACT = "a floating dtype, or a complex one"
"""FLOATING for the reference, which differentiates by complex steps too: a user is told the same as by a backend."""

_STARTS: dict[str, tuple[str, ...]] = {
    INTEGER: ("int", "uint"),
    BOOL: ("bool",),
    FLOATING: ("float", "bfloat"),
    REAL: ("int", "uint", "float", "bfloat"),
    INEXACT: ("float", "bfloat", "complex"),
}


def dtype_name(array: Any) -> str:
    """`float32`, `int64`, `bool`, of an array of any framework."""
    return str(array.dtype).removeprefix("torch.")


def require_types(types: tuple[type, ...], /, **arrays: Any) -> None:
    """Raises ValueError where an argument is neither None nor an array of a backend's own: a list, another framework's.

    Args:
        types: of the arrays that the backend computes with.
        arrays: by the names of the arguments.
    """
    for name, array in arrays.items():
        if array is not None and not isinstance(array, types):
            # jax.Array calls itself jaxlib._jax.Array, of the module jax.
            known = " or ".join(f"{one.__module__}.{one.__name__.split('.')[-1]}" for one in types)
            found = f"{type(array).__module__}.{type(array).__name__}".removeprefix("builtins.")
            raise ValueError(f"{name} must be a {known}, got {found}; make an array of it first")


def require_array(name: str, array: Any, axes: str, shape: tuple[int, ...], kind: str) -> None:
    """Raises ValueError where an array is none, or has another shape or another kind of dtype.

    Args:
        name: of the argument.
        array: of any framework.
        axes: their letters in order, `bt`.
        shape: what it must be.
        kind: of dtype, INTEGER to INEXACT.
    """
    require_dtype(name, array, kind)
    found = tuple(array.shape)
    if found != shape:
        letters = ", ".join(axes)
        turned = f"; it is [{', '.join(reversed(axes))}], transpose it" if found == shape[::-1] else ""
        raise ValueError(f"{name} [{letters}] must have shape {shape}, got {found}{turned}")


def require_dtype(name: str, array: Any, kind: str) -> None:
    """Raises ValueError where an array is none, or its dtype is not of the kind."""
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise ValueError(f"{name} must be an array, got {type(array).__name__}")
    dtype = dtype_name(array)
    if not dtype.startswith(_STARTS[kind]):
        raise ValueError(f"{name} must have {FLOATING if kind == INEXACT else kind}, got {dtype}")


def check_call(
    tokens: Any,
    layers: int,
    state_size: int,
    states: Any = None,
    resets: Any = None,
    padding: Any = None,
    kind: str = FLOATING,
) -> None:
    """What every model is called with.

    Args:
        tokens: [b, t].
        layers, state_size: l and n of the states.
        states: [l, b, n], or None.
        resets, padding: [b, t], or None.
        kind: of the states' dtype.

    Raises:
        ValueError: a shape or a dtype that does not fit.
    """
    require_dtype("tokens", tokens, INTEGER)
    shape = tuple(tokens.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"tokens must have shape [b, t] with b, t >= 1, got {shape}")
    if states is not None:
        require_array("states", states, "lbn", (layers, shape[0], state_size), kind)
    check_masks(shape, resets, padding)


def check_masks(shape_bt: tuple[int, ...], resets: Any = None, padding: Any = None) -> None:
    """Raises ValueError where a mask is not bool or not [b, t]: it is not spread over other rows."""
    if resets is not None:
        require_array("resets", resets, "bt", shape_bt, BOOL)
    if padding is not None:
        require_array("padding", padding, "bt", shape_bt, BOOL)


def check_labels(labels: Any, shape_bt: tuple[int, ...]) -> None:
    """Raises ValueError where labels are not integers [b, t]."""
    require_array("labels", labels, "bt"[: len(shape_bt)], shape_bt, INTEGER)


def check_scan(
    decay: Any, drive: Any, state: Any = None, resets: Any = None, padding: Any = None, kind: str = FLOATING
) -> None:
    """Raises ValueError where the arguments of a scan do not fit: decay and drive [b, t, d], state [b, d]."""
    require_dtype("decay", decay, kind)
    require_dtype("drive", drive, kind)
    shapes = tuple(decay.shape), tuple(drive.shape)
    if len(shapes[0]) != 3 or shapes[0] != shapes[1] or shapes[0][1] == 0:
        raise ValueError(f"decay and drive need one shape [b, t, d] with t >= 1, got {shapes[0]} and {shapes[1]}")
    dtypes = dtype_name(decay), dtype_name(drive)
    if dtypes[0] != dtypes[1] and not any(dtype.startswith("complex") for dtype in dtypes):
        raise ValueError(f"decay and drive need one dtype, got {dtypes[0]} and {dtypes[1]}")
    b, t, d = shapes[0]
    if state is not None:
        require_array("the state", state, "bd", (b, d), kind)
    check_masks((b, t), resets, padding)


def check_gated_scan(
    pre: Any, bias: Any, state: Any = None, resets: Any = None, padding: Any = None, kind: str = FLOATING
) -> None:
    """Raises ValueError where the arguments of a gated scan do not fit: pre-activations [b, t, 3d], bias [d]."""
    require_dtype("pre-activations", pre, kind)
    require_dtype("bias", bias, kind)
    shapes = tuple(pre.shape), tuple(bias.shape)
    if len(shapes[0]) != 3 or len(shapes[1]) != 1 or shapes[0][2] != 3 * shapes[1][0] or shapes[0][1] == 0:
        raise ValueError(
            f"pre-activations and bias need shapes [b, t, 3d] and [d] with t >= 1, got {shapes[0]} and {shapes[1]}"
        )
    if state is not None:
        require_array("the state", state, "bd", (shapes[0][0], shapes[1][0]), kind)
    check_masks(shapes[0][:2], resets, padding)


def check_convolution(
    x: Any, weight: Any, bias: Any, history: Any = None, resets: Any = None, padding: Any = None, kind: str = FLOATING
) -> None:
    """Raises ValueError where the arguments of a short convolution do not fit: x [b, t, d], weight [k, d], bias [d]."""
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        require_dtype(name, array, kind)
    shapes = tuple(x.shape), tuple(weight.shape), tuple(bias.shape)
    if tuple(map(len, shapes)) != (3, 2, 1) or not shapes[0][2] == shapes[1][1] == shapes[2][0] or 0 in shapes[0][1:]:
        raise ValueError(
            f"x, weight and bias need shapes [b, t, d], [k, d] and [d] with t >= 1, "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    (b, t, d), (k, _) = shapes[:2]
    if history is not None:
        require_array("the history", history, "bd", (b, (k - 1) * d), kind)
    check_masks((b, t), resets, padding)


def check_cross_entropy(hidden: Any, embedding: Any, labels: Any) -> None:
    """Raises ValueError where the arguments of a loss do not fit: hidden [b, t, d], embedding [v, d], labels [b, t]."""
    require_dtype("hidden states", hidden, FLOATING)
    require_dtype("embedding", embedding, FLOATING)
    shapes = tuple(hidden.shape), tuple(embedding.shape)
    if len(shapes[0]) < 2 or len(shapes[1]) != 2 or shapes[0][-1] != shapes[1][-1]:
        raise ValueError(
            f"hidden states and embedding need shapes [b, t, d] and [v, d], got {shapes[0]} and {shapes[1]}"
        )
    check_labels(labels, shapes[0][:-1])


def check_token_values(tokens: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError for a token id outside [0, vocab_size), with the first of them and its place."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        found = _first(tokens, (tokens < 0) | (tokens >= vocab_size))
        raise ValueError(f"token ids must be in [0, {vocab_size}), got {found}")


def check_label_values(labels: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError for a label that is neither -100 nor in [0, vocab_size), with the first and its place."""
    if labels.size and (labels.min() < 0 or labels.max() >= vocab_size):
        outside = ((labels < 0) & (labels != IGNORED_LABEL)) | (labels >= vocab_size)
        if outside.any():
            raise ValueError(
                f"labels must be {IGNORED_LABEL} or in [0, {vocab_size}), got {_first(labels, outside)}; "
                f"write {IGNORED_LABEL} where a label does not count"
            )


def check_least(name: str, array: np.ndarray, least: float) -> None:
    """Raises ValueError for a number below the least, or that is none, with the first of them and its place."""
    outside = ~(array >= least)
    if outside.any():
        raise ValueError(f"{name} must be at least {least:g}, got {_first(array, outside)}")


def _first(array: np.ndarray, outside: np.ndarray) -> str:
    """`7 in row 0, position 3`: the first number that is outside."""
    where = tuple(int(i[0]) for i in np.nonzero(outside))
    if len(where) == 2:
        return f"{array[where]} in row {where[0]}, position {where[1]}"
    return f"{array[where]} at position {', '.join(map(str, where))}"
