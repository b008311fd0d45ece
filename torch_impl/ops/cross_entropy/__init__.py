"""Cross-entropy of a tied language-model head. Twin: jax_impl. Truth: spec/reference/model.py.

    fused_linear   linear layer and loss in one, the gradients made with the loss chunk by chunk (fused_linear.py): with
                   Triton's kernel on GPUs, with Numba's on CPUs (numba.py), else in operations of PyTorch
    chunked        the plain loss of a chunk of rows at a time, recomputed in the backward pass
    full           all logits at once

`auto` is `fused_linear` on GPUs and CPUs, `chunked` on other devices, `full` inside torch.func. `lm_head` gives the
logits themselves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spec.axes import ANY_D, ANY_V, BT, BTD, ND, SCALAR, VD, N
from spec.config import require_known
from spec.inputs import IGNORED_LABEL, check_cross_entropy, check_label_values, require_types
from torch_impl.ops.autodiff import in_transform
from torch_impl.ops.cross_entropy.fused_linear import (
    CHUNK_FACTOR,
    by_numba,
    fused_linear_cross_entropy,
    has_wide_matmul,
    wide_lm_head,
)
from torch_impl.ops.devices import host_values
from torch_impl.ops.matmul import matmul
from torch_impl.ops.token_ids import as_ids

CHUNK_LOGITS = 2**24


def lm_head(
    hidden: Float[Tensor, ANY_D], embedding_vd: Float[Tensor, VD], compute: torch.dtype
) -> Float[Tensor, ANY_V]:
    """logits = hidden E^T: operands rounded to the compute dtype, product and result in the accumulation dtype."""
    if has_wide_matmul(hidden.device, compute) and not in_transform():
        return wide_lm_head(hidden, embedding_vd, compute)
    return matmul(hidden.to(compute).to(hidden.dtype), embedding_vd.to(compute).to(hidden.dtype))


def full(
    hidden_nd: Float[Tensor, ND], embedding_vd: Float[Tensor, VD], labels_n: Int[Tensor, N], compute: torch.dtype
) -> Float[Tensor, SCALAR]:
    """Sum of -log softmax(logits)[label] over the labels that are not -100; all n v logits live at once."""
    logits_nv = lm_head(hidden_nd, embedding_vd, compute)
    return F.cross_entropy(logits_nv, labels_n, ignore_index=IGNORED_LABEL, reduction="sum")


def chunked(hidden_nd: Tensor, embedding_vd: Tensor, labels_n: Tensor, compute: torch.dtype) -> Tensor:
    """At most CHUNK_LOGITS logits live, forward and backward: each chunk's are made again in the backward pass."""
    rows = max(1, CHUNK_LOGITS // embedding_vd.shape[0])
    if len(labels_n) <= rows:
        return full(hidden_nd, embedding_vd, labels_n, compute)
    nats = hidden_nd.new_zeros(())
    for hidden, labels in zip(hidden_nd.split(rows), labels_n.split(rows), strict=True):
        # Nothing here is random: to keep a GPU's random state would stop and wait for it in every chunk.
        nats = nats + checkpoint(
            full, hidden, embedding_vd, labels, compute, use_reentrant=False, preserve_rng_state=False
        )
    return nats


def _fused_linear(hidden_nd: Tensor, embedding_vd: Tensor, labels_n: Tensor, compute: torch.dtype) -> Tensor:
    """At most CHUNK_LOGITS logits live, in kernels CHUNK_FACTOR times as many; the forward pass makes the gradients."""
    in_kernels = hidden_nd.device.type == "cuda" or by_numba(hidden_nd, compute)
    chunk_logits = CHUNK_LOGITS * (CHUNK_FACTOR if in_kernels else 1)
    return fused_linear_cross_entropy(hidden_nd, embedding_vd, labels_n, compute, chunk_logits)


METHODS = {"full": full, "chunked": chunked, "fused_linear": _fused_linear}
ALIASES = {"one_pass": "fused_linear"}
"""Former names of methods, accepted wherever a method is named."""


def choose_method(device: torch.device) -> str:
    """The method that `auto` takes on a device."""
    if in_transform():
        return "full"
    return "fused_linear" if device.type in ("cuda", "cpu") else "chunked"


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
        labels_bt: target of each position, [b, t]; -100 is ignored, others outside the vocabulary: spec/inputs.py.
        compute: dtype that the operands of the product are rounded to.
        method: a key of METHODS or of ALIASES, or `auto`.

    Raises:
        ValueError: shapes or dtypes that do not agree, a label that neither is, or an unknown method.
    """
    method = choose_method(hidden_btd.device) if method == "auto" else ALIASES.get(method, method)
    require_known("loss method", method, METHODS)
    require_types((Tensor,), labels=labels_bt)
    check_cross_entropy(hidden_btd, embedding_vd, labels_bt)
    values = host_values(labels_bt)
    if values is not None:
        check_label_values(values, embedding_vd.shape[0])
    labels_n = as_ids(labels_bt).reshape(-1).long()
    nats = METHODS[method](hidden_btd.reshape(-1, hidden_btd.shape[-1]), embedding_vd, labels_n, compute)
    return nats, (labels_n != IGNORED_LABEL).sum()
