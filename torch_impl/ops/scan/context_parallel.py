"""The scan of a shared sequence. Twin: jax_impl. Truth: spec/reference/scan.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from torch_impl.ops.autodiff import refuse_double_backward, require_no_transform

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]
Adjoint = Callable[..., tuple[Tensor, Tensor, Tensor]]

# Not a context variable: autograd makes activations again in threads of its own, which inherit none.
_group: dist.ProcessGroup | None = None


@contextmanager
def time_sharded(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Inside, forward and backward, each member of the group holds one stretch of time, in the order of ranks.

    The stretches may differ in length. The initial state is that of the first process; each process is given the last
    state of the whole sequence. Gradients are those of the sum of all processes' objectives.

    Args:
        group: the processes that share each sequence; None is this one alone.
    """
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before


def sharing() -> dist.ProcessGroup | None:
    """The group that the sequence is shared between just now."""
    return _group


def context_parallel_scan(
    decay_btd: Tensor, drive_btd: Tensor, state_bd: Tensor, scan: Scan, adjoint: Adjoint, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """One stretch of h_t = decay_t h_{t-1} + drive_t, with one all_gather of 2 b d numbers in either direction.

    A stretch maps the state before it to the state after it by h -> product h + end, end from a zero state. Everyone
    gathers (product, end) and folds those of the ranks before: that is the state to start the ordinary scan from.
    The adjoint is the same in reversed time: what a stretch hands back for a zero gradient from its right, and the
    products already gathered, give the gradient that reaches each stretch's last state.
    """
    require_no_transform("context_parallel")
    return _ContextParallelScan.apply(decay_btd, drive_btd, state_bd, scan, adjoint, group)


class _ContextParallelScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, decay_btd, drive_btd, state_bd, scan, adjoint, group):
        ctx.scan, ctx.adjoint, ctx.group = scan, adjoint, group
        rank, none_bd = dist.get_rank(group), torch.zeros_like(state_bd)
        # The initial state travels as part of the end of the first stretch.
        before_bd = state_bd if rank == 0 else none_bd
        states_btd = scan(decay_btd, drive_btd, before_bd)
        pair = torch.stack([decay_btd.prod(dim=1), states_btd[:, -1]])
        product_rbd, end_rbd = _gather(pair, group).unbind(1)
        if rank > 0:
            before_bd = _fold(product_rbd[:rank], end_rbd[:rank], none_bd)
            states_btd = scan(decay_btd, drive_btd, before_bd)
        ctx.save_for_backward(decay_btd, states_btd, before_bd, product_rbd)
        return states_btd, _fold(product_rbd, end_rbd, none_bd)

    @staticmethod
    def backward(ctx, grad_states_btd, grad_last_bd):
        refuse_double_backward("a scan that processes share", "let each process have whole sequences")
        decay_btd, states_btd, before_bd, product_rbd = ctx.saved_tensors
        rank = dist.get_rank(ctx.group)
        none_bd = torch.zeros_like(before_bd)
        *_, back_bd = ctx.adjoint(decay_btd, states_btd, before_bd, grad_states_btd, none_bd)
        back_rbd, last_rbd = _gather(torch.stack([back_bd, grad_last_bd]), ctx.group).unbind(1)
        after = slice(rank + 1, None)
        reaching_bd = _fold(product_rbd[after].flip(0), back_rbd[after].flip(0), last_rbd.sum(dim=0))
        grad_decay, grad_drive, grad_state = ctx.adjoint(decay_btd, states_btd, before_bd, grad_states_btd, reaching_bd)
        return grad_decay, grad_drive, grad_state if rank == 0 else none_bd, None, None, None


def context_parallel_shift(states_btd: Tensor, state_bd: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What stands before each token of a stretch, [b, t, d]: h_{t-1}, the first from the stretch before it.

    One all_gather of b d numbers in either direction.

    Args:
        states_btd: h_t of this stretch.
        state_bd: h_{-1} of the whole sequence; that of the first process counts.
        group: the processes that share the sequence.
    """
    require_no_transform("context_parallel")
    return _ContextParallelShift.apply(states_btd, state_bd, group)


class _ContextParallelShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states_btd, state_bd, group):
        ctx.group, rank = group, dist.get_rank(group)
        last_rbd = _gather(states_btd[:, -1], group)
        before_bd = state_bd if rank == 0 else last_rbd[rank - 1]
        return torch.cat([before_bd[:, None], states_btd[:, :-1]], dim=1)

    @staticmethod
    def backward(ctx, grad_btd):
        refuse_double_backward("a sequence that processes share", "let each process have whole sequences")
        rank, first_bd = dist.get_rank(ctx.group), grad_btd[:, 0]
        first_rbd = _gather(first_bd, ctx.group)
        none_bd = torch.zeros_like(first_bd)
        after_bd = first_rbd[rank + 1] if rank + 1 < len(first_rbd) else none_bd
        grad_states = torch.cat([grad_btd[:, 1:], after_bd[:, None]], dim=1)
        return grad_states, first_bd if rank == 0 else none_bd, None


def _fold(product_rbd: Tensor, end_rbd: Tensor, value_bd: Tensor) -> Tensor:
    """h -> product h + end, one stretch after another."""
    for product_bd, end_bd in zip(product_rbd, end_rbd, strict=True):
        value_bd = torch.addcmul(end_bd, product_bd, value_bd)
    return value_bd


def _gather(pair: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Everyone's pair, stacked in the order of ranks: the one collective of a direction."""
    everyone = pair.new_empty(dist.get_world_size(group), *pair.shape)
    dist.all_gather(list(everyone), pair.contiguous(), group=group)
    return everyone
