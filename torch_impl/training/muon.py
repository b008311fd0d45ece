"""Muon for the matrices of the blocks, AdamW for the rest. Twin: jax_impl. Truth: spec/optimizer.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spec.config import TrainingConfig
from spec.optimizer import NEWTON_SCHULZ, NORM_EPS, Matrix
from torch_impl.training.distributed import ParallelContext, full_tensor, local_part, to_local

MOMENTUM = "exp_avg"
"""What the first moment is called in the state of a parameter, as in that of AdamW."""
# Numbers of matrices that are multiplied together: what they take of memory does not grow with the model.
_BATCH_NUMBERS = 1 << 26
# PyTorch 2.8 is the first that has products of narrow operands with a wide result, on GPUs.
_HAS_WIDE_RESULT = "dtype" in torch.ops.aten.bmm.overloads()


def orthogonalized(x_mrc: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Newton-Schulz iterations of m matrices, rows <= columns, [m, r, c]: `spec.reference.orthogonalized` of each.

    Args:
        x_mrc: float32 or float64.
        dtype: what the operands of products are rounded to; None leaves them as they are.
    """
    norm_m11 = torch.linalg.vector_norm(x_mrc, dim=(-2, -1), keepdim=True)
    x = x_mrc / (norm_m11 + NORM_EPS)

    def product(left: Tensor, right: Tensor) -> Tensor:
        if dtype is None:
            return torch.bmm(left, right)
        operands = left.to(dtype), right.to(dtype)
        # The result stays wide: rounded, the iterations would enlarge that in every direction that a gradient lacks.
        if x_mrc.device.type == "cuda" and x_mrc.dtype == torch.float32 and _HAS_WIDE_RESULT:
            return torch.bmm(*operands, out_dtype=torch.float32)
        return torch.bmm(*(x.to(x_mrc.dtype) for x in operands))

    for a, b, c in NEWTON_SCHULZ:
        square = product(x, x.mT)
        x = a * x + product(b * square + c * product(square, square), x)
    return x


class Muon(torch.optim.AdamW):
    """AdamW, and Muon for what `matrices` are parts of.

    Args:
        groups: of all parameters, as AdamW takes them.
        matrices: each part of a parameter that Muon takes, all parts of one side by side and in order.
        training: momentum, weight decay and dtype of the iterations; the rate is that of the groups.
        context: the processes among which the matrices are divided.
        adamw: further arguments of AdamW.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        matrices: Sequence[tuple[nn.Parameter, Matrix]],
        training: TrainingConfig,
        context: ParallelContext,
        **adamw: Any,
    ):
        super().__init__(groups, **adamw)
        self._matrices, self._training, self._context = matrices, training, context
        #: Parameters that Muon takes, whose state has no second moment.
        self.taken = list(dict.fromkeys(parameter for parameter, _ in matrices))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of both from the gradients that the parameters have."""
        gradients = [parameter.grad for parameter in self.taken]
        for parameter in self.taken:
            parameter.grad = None  # AdamW passes over it
        super().step()
        rate, decay = self.param_groups[0]["lr"], self._training.weight_decay
        directions: dict[nn.Parameter, Any] = {}
        for parameter, gradient in zip(self.taken, gradients, strict=True):
            parameter.grad = gradient
            if gradient is not None:
                state = self.state[parameter]
                momentum = state.setdefault(MOMENTUM, torch.zeros_like(parameter))
                momentum.lerp_(gradient, 1.0 - self._training.momentum)
                directions[parameter] = gradient.lerp(momentum, self._training.momentum)
        for parameter, update in self._updates(directions):
            to_local(parameter).mul_(1.0 - rate * decay).sub_(local_part(update, parameter), alpha=rate)

    def _updates(self, directions: dict[nn.Parameter, Any]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter and its whole update, without rate and decay, as soon as all parts of it have been found."""
        parts: dict[nn.Parameter, dict[int, Tensor | None]] = {}
        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Matrix]]] = {}
        for parameter, matrix in self._matrices:
            if parameter in directions:
                parts.setdefault(parameter, {})[matrix.start] = None
                by_shape.setdefault(matrix.shape, []).append((parameter, matrix))
        for (rows, columns), alike in by_shape.items():
            together = max(_BATCH_NUMBERS // (rows * columns), self._context.size)
            for first in range(0, len(alike), together):
                some = alike[first : first + together]
                for (parameter, matrix), update in zip(some, self._of_one_shape(some, directions), strict=True):
                    parts[parameter][matrix.start] = update
                    found = [part for part in parts[parameter].values() if part is not None]
                    if len(found) == len(parts[parameter]):
                        yield parameter, torch.cat(found)
                        del parts[parameter]

    def _of_one_shape(
        self, some: list[tuple[nn.Parameter, Matrix]], directions: dict[nn.Parameter, Any]
    ) -> list[Tensor]:
        whole = {parameter: full_tensor(directions[parameter]) for parameter, _ in some}
        cut = [whole[parameter][matrix.start : matrix.stop] for parameter, matrix in some]
        tall = [len(x) > x.shape[1] for x in cut]
        found = self._divided(torch.stack([x.mT if high else x for x, high in zip(cut, tall, strict=True)]))
        return [matrix.scale * (x.mT if high else x) for x, high, (_, matrix) in zip(found, tall, some, strict=True)]

    def _divided(self, x_mrc: Tensor) -> Tensor:
        """Each matrix by one process, then by all: the iterations cost more than to send their result."""
        dtype = torch.bfloat16 if self._training.newton_schulz_dtype == "bfloat16" else None
        size, group = self._context.size, self._context.group
        if group is None:
            return orthogonalized(x_mrc, dtype)
        share = -(-len(x_mrc) // size)
        own = x_mrc[self._context.rank * share :][:share]
        own = torch.cat([own, own.new_zeros(share - len(own), *own.shape[1:])])
        gathered = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(gathered, orthogonalized(own, dtype).contiguous(), group=group)
        return torch.cat(gathered)[: len(x_mrc)]
