"""Cross-entropy of a tied read-out. Twin: jax_impl. Truth: spec/reference/model.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spec.axes import ANY_D, ANY_V, BT, BTD, ND, SCALAR, VD, N
from spec.config import require_known
from spec.data import IGNORED_LABEL
from torch_impl.ops.cross_entropy.fused_linear_cross_entropy import (
    MORE,
    by_numba,
    fused_linear_cross_entropy,
    has_wide_products,
    wide_lm_head,
)
from torch_impl.ops.matmul import product

CHUNK_LOGITS = 2**24


def lm_head(
    hidden: Float[Tensor, ANY_D], embedding_vd: Float[Tensor, VD], compute: torch.dtype
) -> Float[Tensor, ANY_V]:
    """logits = hidden E^T: operands rounded to the compute dtype, product and result in the accumulation dtype."""
    if has_wide_products(hidden.device, compute):
        return wide_lm_head(hidden, embedding_vd, compute)
    return product(hidden.to(compute).to(hidden.dtype), embedding_vd.to(compute).to(hidden.dtype))


def total_nats(
    hidden_nd: Float[Tensor, ND],
    embedding_vd: Float[Tensor, VD],
    labels_n: Int[Tensor, N],
    compute: torch.dtype,
) -> Float[Tensor, SCALAR]:
    """Sum of -log softmax(logits)[label] over the labels that are not -100."""
    logits_nv = lm_head(hidden_nd, embedding_vd, compute)
    return F.cross_entropy(logits_nv, labels_n, ignore_index=IGNORED_LABEL, reduction="sum")


def full(hidden_nd: Tensor, embedding_vd: Tensor, labels_n: Tensor, compute: torch.dtype) -> Tensor:
    """All logits at once: n v values live."""
    return total_nats(hidden_nd, embedding_vd, labels_n, compute)


def chunked(hidden_nd: Tensor, embedding_vd: Tensor, labels_n: Tensor, compute: torch.dtype) -> Tensor:
    """At most CHUNK_LOGITS logits live, forward and backward: each chunk's are made again in the backward pass."""
    rows = max(1, CHUNK_LOGITS // embedding_vd.shape[0])
    if len(labels_n) <= rows:
        return full(hidden_nd, embedding_vd, labels_n, compute)
    nats = hidden_nd.new_zeros(())
    for hidden, labels in zip(hidden_nd.split(rows), labels_n.split(rows), strict=True):
        # Nothing here is random: to keep a GPU's random state would stop and wait for it in every chunk.
        nats = nats + checkpoint(
            total_nats, hidden, embedding_vd, labels, compute, use_reentrant=False, preserve_rng_state=False
        )
    return nats


def _fused_linear_cross_entropy(
    hidden_nd: Tensor, embedding_vd: Tensor, labels_n: Tensor, compute: torch.dtype
) -> Tensor:
    """At most CHUNK_LOGITS logits live, MORE times as many in kernels; the forward pass makes the gradients too."""
    in_kernels = hidden_nd.device.type == "cuda" or by_numba(hidden_nd, compute)
    return fused_linear_cross_entropy(
        hidden_nd, embedding_vd, labels_n, compute, CHUNK_LOGITS * (MORE if in_kernels else 1)
    )


METHODS = {"full": full, "chunked": chunked, "one_pass": _fused_linear_cross_entropy}


def choose_method(device: torch.device) -> str:
    """What `auto` takes.

    On a GPU and on a CPU `one_pass`, elsewhere the plain form of the same semantics.
    """
    return "one_pass" if device.type in ("cuda", "cpu") else "chunked"


def cross_entropy(
    hidden_btd: Float[Tensor, BTD],
    embedding_vd: Float[Tensor, VD],
    labels_bt: Int[Tensor, BT],
    compute: torch.dtype,
    method: str = "auto",
) -> tuple[Float[Tensor, SCALAR], Int[Tensor, SCALAR]]:
    """Sum of -log softmax(hidden E^T)[label] in nats, and the number of labels counted.

    Args:
        hidden_btd: normalised hidden states, [b, t, d].
        embedding_vd: tied embedding, [v, d].
        labels_bt: target of each position, [b, t]; -100 is ignored.
        compute: dtype that the operands of the product are rounded to.
        method: a key of METHODS, or `auto`.

    Raises:
        ValueError: an unknown method.
    """
    method = choose_method(hidden_btd.device) if method == "auto" else method
    require_known("loss method", method, METHODS)
    labels_n = labels_bt.reshape(-1).long()
    nats = METHODS[method](hidden_btd.reshape(-1, hidden_btd.shape[-1]), embedding_vd, labels_n, compute)
    return nats, (labels_n != IGNORED_LABEL).sum()
