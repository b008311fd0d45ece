"""Cross-entropy of a tied language-model head. Twin: torch_impl. Truth: spec/reference/model.py.

    fused_linear   linear layer and loss in one, the gradients made with the loss chunk by chunk (fused_linear.py): in
                   tiles of a TPU's vector memory on TPUs
    chunked        the plain loss of a chunk of rows at a time, recomputed in the backward pass
    full           all logits at once

`auto` is decided where the program is lowered: `fused_linear` for a TPU and for a CPU (there `full` where one chunk
holds all logits), else `chunked`. `lm_head` gives the logits themselves.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jax_impl.ops.cross_entropy.fused_linear import CHUNK_FACTOR, TPU_ROWS, TPU_WORDS, fused_linear_cross_entropy
from jax_impl.ops.token_ids import as_ids
from spec.axes import ANY_D, ANY_V, BT, BTD, ND, SCALAR, VD, N
from spec.config import require_known
from spec.inputs import IGNORED_LABEL, check_cross_entropy, require_types

CHUNK_LOGITS = 2**24


def lm_head(hidden: Float[Array, ANY_D], embedding_vd: Float[Array, VD], compute: jnp.dtype) -> Float[Array, ANY_V]:
    """logits = hidden E^T: operands rounded to the compute dtype, product and result in the accumulation dtype."""
    return jnp.matmul(
        hidden.astype(compute), embedding_vd.astype(compute).T, precision="highest", preferred_element_type=hidden.dtype
    )


def full(
    hidden_nd: Float[Array, ND], embedding_vd: Float[Array, VD], labels_n: Int[Array, N], compute: jnp.dtype
) -> Float[Array, SCALAR]:
    """Sum of -log softmax(logits)[label] over the labels that are not -100; all n v logits live at once."""
    logits_nv = lm_head(hidden_nd, embedding_vd, compute)
    counted_n = labels_n != IGNORED_LABEL
    nats_n = optax.softmax_cross_entropy_with_integer_labels(logits_nv, jnp.where(counted_n, labels_n, 0))
    return jnp.where(counted_n, nats_n, 0.0).sum()


def chunked(hidden_nd: Array, embedding_vd: Array, labels_n: Array, compute: jnp.dtype) -> Array:
    """At most CHUNK_LOGITS logits live, forward and backward: each chunk's are made again in the backward pass."""
    rows = max(1, CHUNK_LOGITS // embedding_vd.shape[0])
    n, d = hidden_nd.shape
    if n <= rows:
        return full(hidden_nd, embedding_vd, labels_n, compute)
    fill = -n % rows
    hidden = jnp.pad(hidden_nd, ((0, fill), (0, 0))).reshape(-1, rows, d)
    labels = jnp.pad(labels_n, (0, fill), constant_values=IGNORED_LABEL).reshape(-1, rows)
    chunk_nats = jax.checkpoint(lambda hidden, labels: full(hidden, embedding_vd, labels, compute))
    nats, _ = jax.lax.scan(
        lambda nats, chunk: (nats + chunk_nats(*chunk), None), hidden_nd.dtype.type(0), (hidden, labels)
    )
    return nats


def _fused_linear_on_tpu(hidden_nd: Array, embedding_vd: Array, labels_n: Array, compute: jnp.dtype) -> Array:
    """A tile of TPU_ROWS * TPU_WORDS logits at a time, which never leave the vector memory."""
    return fused_linear_cross_entropy(hidden_nd, embedding_vd, labels_n, compute, TPU_ROWS * TPU_WORDS, TPU_WORDS)


def _fused_linear_on_cpu(hidden_nd: Array, embedding_vd: Array, labels_n: Array, compute: jnp.dtype) -> Array:
    """At most CHUNK_LOGITS times CHUNK_FACTOR logits live."""
    return fused_linear_cross_entropy(hidden_nd, embedding_vd, labels_n, compute, CHUNK_LOGITS * CHUNK_FACTOR)


def _fused_linear(hidden_nd: Array, embedding_vd: Array, labels_n: Array, compute: jnp.dtype) -> Array:
    """At most CHUNK_LOGITS logits live, in kernels CHUNK_FACTOR times as many; the forward pass makes the gradients."""
    elsewhere = partial(fused_linear_cross_entropy, compute=compute, chunk_logits=CHUNK_LOGITS)
    on_tpu, on_cpu = (partial(f, compute=compute) for f in (_fused_linear_on_tpu, _fused_linear_on_cpu))
    return jax.lax.platform_dependent(hidden_nd, embedding_vd, labels_n, tpu=on_tpu, cpu=on_cpu, default=elsewhere)


def _auto(hidden_nd: Array, embedding_vd: Array, labels_n: Array, compute: jnp.dtype) -> Array:
    """On a TPU and on a CPU `fused_linear`, elsewhere the plain form of the same semantics."""
    elsewhere, on_tpu = (partial(f, compute=compute) for f in (chunked, _fused_linear_on_tpu))
    # Of a single chunk `full` makes the logits no more often, and adds its gradient to no other.
    single = hidden_nd.shape[0] * embedding_vd.shape[0] <= CHUNK_LOGITS * CHUNK_FACTOR
    on_cpu = partial(full if single else _fused_linear_on_cpu, compute=compute)
    return jax.lax.platform_dependent(hidden_nd, embedding_vd, labels_n, tpu=on_tpu, cpu=on_cpu, default=elsewhere)


METHODS = {"full": full, "chunked": chunked, "fused_linear": _fused_linear}
ALIASES = {"one_pass": "fused_linear"}
"""Former names of methods, accepted wherever a method is named."""


def choose_method() -> str:
    """The method that `auto` takes on a device.

    In a program for the devices that are here; one that is lowered for others takes theirs. On a CPU a loss that is a
    single chunk is taken as `full`.
    """
    return "fused_linear" if jax.default_backend() in ("tpu", "cpu") else "chunked"


def cross_entropy(
    hidden_btd: Float[Array, BTD],
    embedding_vd: Float[Array, VD],
    labels_bt: Int[Array, BT],
    compute: jnp.dtype,
    method: str = "auto",
) -> tuple[Float[Array, SCALAR], Int[Array, SCALAR]]:
    """Sum of -log softmax(hidden E^T)[label] in nats, and the number of labels counted.

    Args:
        hidden_btd: normalised hidden states, [b, t, d].
        embedding_vd: tied embedding, [v, d].
        labels_bt: target of each position, [b, t]; -100 is ignored, others outside the vocabulary: spec/inputs.py.
        compute: dtype that the operands of the product are rounded to.
        method: a key of METHODS or of ALIASES, or `auto`.

    Raises:
        ValueError: shapes or dtypes that do not agree, or an unknown method.
    """
    method = ALIASES.get(method, method)
    if method != "auto":
        require_known("loss method", method, METHODS)
    require_types((np.ndarray, Array), labels=labels_bt)
    check_cross_entropy(hidden_btd, embedding_vd, labels_bt)
    labels_n = jnp.asarray(as_ids(labels_bt)).reshape(-1)
    run = _auto if method == "auto" else METHODS[method]
    nats = run(hidden_btd.reshape(-1, hidden_btd.shape[-1]), embedding_vd, labels_n, compute)
    counted = (labels_n != IGNORED_LABEL).sum()
    # In each method: where a label is no word, the sum is no number, nor is any gradient. All else is multiplied by 1.
    # Two sums of one pass: asked by `any`, XLA for a TPU reads 1 % more in a whole step.
    words = ((labels_n >= 0) & (labels_n < embedding_vd.shape[0])).sum()
    return nats * jnp.where(words == counted, 1.0, jnp.nan).astype(nats.dtype), counted
