"""Linear layer and cross-entropy in one, with their gradients. Twin: jax_impl. Truth: spec/reference/model.py.

The gradient of -log softmax(logits)[label] by the logits needs nothing that comes after it but one factor, the gradient
of the sum of nats. So each chunk of logits is turned into its gradients where it stands, and dropped; the backward pass
multiplies what was kept, n d + v d numbers, by that factor. Source: FusedLinearCrossEntropy of Liger Kernel (Hsu et al.
2024); in kernels a row's statistics come from one pass over its logits (Milakov & Gimelshein 2018).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spec.axes import ANY_D, ANY_V, ND, SCALAR, VD, N
from spec.inputs import IGNORED_LABEL
from torch_impl.ops.autodiff import (
    differentiable_gradients,
    differentiated_again,
    refuse_double_backward,
    require_no_transform,
)
from torch_impl.ops.devices import has_bfloat16, takes_numba, takes_triton

HALF = (torch.float16, torch.bfloat16)
# A vocabulary such as 50257 is odd, and rows that do not start at 16 bytes get products of a third of the speed.
ALIGNMENT = 64
CHUNK_FACTOR = 4
"""Times as many logits a chunk: each chunk reads and writes the whole gradient of the embedding."""
# softmax - one hot is 2e-5 an entry at a vocabulary of 50257, where float16 has lost its bits; it is at most 1 in
# magnitude, so 2^14 of it stays below 65504.
FLOAT16_SCALE = 2.0**14
# What widens a product on the device: since torch 2.8 for CUDA, since 2.10 for ROCm.
_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
_WIDENS = ((2, 8) if torch.version.hip is None else (2, 10)) <= _VERSION


def has_wide_matmul(device: torch.device, compute: torch.dtype) -> bool:
    """Whether products of operands in the compute dtype come out in float32 without a wide copy of the operands."""
    if device.type != "cuda" or compute not in HALF or not _WIDENS:
        return False
    return compute == torch.float16 or has_bfloat16(device)


def by_numba(hidden: Tensor, compute: torch.dtype) -> bool:
    """Whether the kernels for a CPU make the gradients: of logits that are not rounded."""
    return compute == hidden.dtype and takes_numba(hidden.device, hidden.dtype)


def wide_lm_head(
    hidden: Float[Tensor, ANY_D], embedding_vd: Float[Tensor, VD], compute: torch.dtype
) -> Float[Tensor, ANY_V]:
    """logits = hidden E^T in the dtype of hidden, of operands rounded to the compute dtype; so are both gradients.

    The gradient of the logits is rounded too: all three products run on operands of the compute dtype. The logits of
    one row lie side by side, the rows may lie apart.

    Args:
        hidden: [..., d].
        embedding_vd: [v, d].
        compute: float16 or bfloat16.
    """
    logits_nv = _WideMatmul.apply(hidden.reshape(-1, hidden.shape[-1]), embedding_vd, compute)
    return logits_nv.reshape(*hidden.shape[:-1], embedding_vd.shape[0])


class _WideMatmul(torch.autograd.Function):
    """x W^T; written out because `torch.mm(..., out_dtype=...)` has no derivative."""

    @staticmethod
    def forward(ctx, x_nd, weight_vd, compute):
        x, weight = _operand(x_nd, compute, x_nd.dtype), _operand_of_rows(weight_vd, compute)
        ctx.save_for_backward(x, weight)
        ctx.compute, ctx.wide, ctx.v = compute, x_nd.dtype, len(weight_vd)
        return _matmul(x, weight.T, x_nd.dtype)[:, : len(weight_vd)]

    @staticmethod
    def backward(ctx, grad_y_nv):
        refuse_double_backward(f"a product of {ctx.compute}", "use compute_dtype='float32'")
        x, weight = ctx.saved_tensors
        scale = None
        if ctx.compute == torch.float16:
            # Whatever the loss is multiplied by, the largest entry becomes 2^13 to 2^14: see FLOAT16_SCALE. A factor
            # of more than 2^114, for gradients that float32 itself is about to lose, could be infinite.
            exponent = torch.frexp(grad_y_nv.abs().amax()).exponent.clamp(min=-100)
            scale = torch.ldexp(grad_y_nv.new_ones(()), 14 - exponent)
            grad_y_nv = grad_y_nv * scale
        grad_y = F.pad(_operand(grad_y_nv, ctx.compute, ctx.wide), (0, len(weight) - ctx.v))
        grad_x = _matmul(grad_y, weight, ctx.wide) if ctx.needs_input_grad[0] else None
        grad_weight = _matmul(grad_y.T, x, ctx.wide)[: ctx.v] if ctx.needs_input_grad[1] else None
        if scale is not None:
            grad_x, grad_weight = (None if one is None else one / scale for one in (grad_x, grad_weight))
        return grad_x, grad_weight, None


def fused_linear_cross_entropy(
    hidden_nd: Float[Tensor, ND],
    embedding_vd: Float[Tensor, VD],
    labels_n: Int[Tensor, N],
    compute: torch.dtype,
    chunk_logits: int,
) -> Float[Tensor, SCALAR]:
    """Sum of -log softmax(hidden E^T)[label] over the labels that are not -100; no logits are kept for its gradients.

    Where one of the inputs requires a gradient, both gradients are computed with the sum; elsewhere the sum alone.

    Args:
        hidden_nd: [n, d], float32 or float64, which are the dtypes of sums and statistics too.
        embedding_vd: [v, d], the same dtype.
        labels_n: int64, [n].
        compute: dtype that the operands of the three products are rounded to.
        chunk_logits: most logits at a time; one row at least.

    A second derivative holds all n v logits.

    Raises:
        NotImplementedError: inside torch.func, or forward-mode differentiation.
    """
    require_no_transform("fused_linear")
    wanted = torch.is_grad_enabled() and (hidden_nd.requires_grad or embedding_vd.requires_grad)
    return _cross_entropy(hidden_nd, embedding_vd, labels_n, compute, chunk_logits, wanted)[0]


@torch.library.custom_op(
    "liquidnet::fused_linear_cross_entropy",
    mutates_args=(),
    schema="(Tensor hidden, Tensor embedding, Tensor labels, ScalarType compute, SymInt chunk_logits, bool gradients)"
    " -> (Tensor, Tensor, Tensor)",
)
def _cross_entropy(hidden, embedding, labels, compute, chunk_logits, gradients):
    """(nats, gradient of hidden, gradient of embedding); the gradients are empty where they are not wanted."""
    (n, _), v, wide = hidden.shape, embedding.shape[0], hidden.dtype
    if by_numba(hidden, compute):
        from torch_impl.ops.cross_entropy.numba import numba_fused_linear

        nats, *both = numba_fused_linear(hidden, embedding, labels, chunk_logits, gradients)
        return nats.sum(), *both
    rows = max(1, chunk_logits // v)
    scale = FLOAT16_SCALE if compute == torch.float16 else 1.0
    labels, nats = labels.contiguous(), hidden.new_empty(n)
    weight = _operand_of_rows(embedding, compute)
    width = len(weight)
    logits = hidden.new_empty(min(rows, n), _padded(v))
    grad_logits = logits if compute == wide or not gradients else torch.empty_like(logits, dtype=compute)
    grad_hidden, grad_embedding = _empty(hidden, embedding, gradients)
    grad_embedding.zero_()
    for start in range(0, n, rows):
        here = slice(start, min(start + rows, n))
        count = here.stop - start
        x, z = _operand(hidden[here], compute, wide), logits[:count]
        grad_z = z if grad_logits is logits else grad_logits[:count]
        _matmul(x, weight.T, wide, out=z[:, :width])
        _softmax_gradient(z, labels[here], nats[here], grad_z if gradients else None, v, scale)
        if gradients:
            grad_z = grad_z if grad_z.dtype == x.dtype else z.copy_(grad_z)
            _matmul(grad_z[:, :width], weight, wide, out=grad_hidden[here])
            _matmul(grad_z[:, :v].T, x, wide, add_to=grad_embedding)
    if gradients and scale != 1.0:
        grad_hidden.div_(scale)
        grad_embedding.div_(scale)
    return nats.sum(), grad_hidden, grad_embedding


@_cross_entropy.register_fake
def _(hidden, embedding, labels, compute, chunk_logits, gradients):
    return hidden.new_empty(()), *_empty(hidden, embedding, gradients)


def _keep(ctx, inputs, output):
    _, grad_hidden, grad_embedding = output
    hidden, embedding, labels, ctx.compute, *_ = inputs
    # Else autograd makes a gradient of zeros for each of the two, as large as they are.
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(grad_hidden, grad_embedding)
    ctx.save_for_backward(grad_hidden, grad_embedding, hidden, embedding, labels)


def _backward(ctx, grad_nats, *_):
    grad_hidden, grad_embedding, *inputs = ctx.saved_tensors
    if differentiated_again():
        return *differentiable_gradients(_plain, (*inputs, ctx.compute), (grad_nats,)), None, None
    wanted = ctx.needs_input_grad
    return (
        grad_hidden * grad_nats if wanted[0] else None,
        grad_embedding * grad_nats if wanted[1] else None,
        *[None] * 4,
    )


def _plain(hidden, embedding, labels, compute):
    logits = hidden.to(compute).to(hidden.dtype) @ embedding.to(compute).to(hidden.dtype).T
    return F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")


_cross_entropy.register_autograd(_backward, setup_context=_keep)


def _softmax_gradient(
    logits: Tensor, labels: Tensor, nats: Tensor, gradient: Tensor | None, v: int, scale: float
) -> None:
    """`kernels.softmax_gradient`, or the same in operations of PyTorch, which overwrite the logits."""
    if takes_triton(logits.device):
        from torch_impl.kernels.triton.cross_entropy import softmax_gradient

        return softmax_gradient(logits, labels, nats, gradient, v, scale)
    z, ignored = logits[:, :v], labels == IGNORED_LABEL
    target = labels.masked_fill(ignored, 0).unsqueeze(1)
    z -= z.amax(dim=1, keepdim=True)
    shifted = z.gather(1, target)
    total = z.exp_().sum(dim=1, keepdim=True)
    nats.copy_((total.log() - shifted).squeeze(1).masked_fill_(ignored, 0.0))
    if gradient is not None:
        z /= total
        z.scatter_(1, target, z.gather(1, target) - 1.0)
        z.masked_fill_(ignored.unsqueeze(1), 0.0)
        if gradient is not logits:
            gradient[:, :v].copy_(z.mul_(scale))
        gradient[:, v:].zero_()
    return None


def _operand(x: Tensor, compute: torch.dtype, wide: torch.dtype) -> Tensor:
    """x rounded to the compute dtype, and widened again where products do not widen."""
    x = x.to(compute)
    return x if has_wide_matmul(x.device, compute) else x.to(wide)


def _operand_of_rows(embedding: Tensor, compute: torch.dtype) -> Tensor:
    """`_operand` of an embedding; where it stays narrow, with rows of zeros up to the next multiple of ALIGNMENT."""
    operand = _operand(embedding, compute, embedding.dtype)
    if operand.dtype == embedding.dtype:
        return operand
    return F.pad(operand, (0, 0, 0, _padded(len(operand)) - len(operand)))


def _matmul(a: Tensor, b: Tensor, wide: torch.dtype, out: Tensor | None = None, add_to: Tensor | None = None) -> Tensor:
    """a b in the wide dtype; written to `out`, or added to `add_to` in place, where these are given."""
    # No None among them: an `out` of None is refused beside an `out_dtype`.
    options: dict[str, Any] = {} if a.dtype == wide else {"out_dtype": wide}
    if add_to is not None:
        return torch.addmm(add_to, a, b, out=add_to, **options)
    return torch.mm(a, b, **options) if out is None else torch.mm(a, b, out=out, **options)


def _empty(hidden: Tensor, embedding: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:
    shapes = (hidden.shape, embedding.shape) if gradients else ((0,), (0,))
    return hidden.new_empty(shapes[0]), embedding.new_empty(shapes[1])


def _padded(v: int) -> int:
    return -(-v // ALIGNMENT) * ALIGNMENT
