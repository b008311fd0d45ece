"""The processes of a run. Twin: jax_impl. Truth: spec/data.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spec.data import BatchShard
from spec.runtime import parallel as runtime
from spec.runtime.parallel import Value, exit_process, require_timeout
from torch_impl.ops.devices import default_device

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Model = TypeVar("_Model", bound=nn.Module)
_PEER_LOSS = ("gloo", "Timed out waiting", "ncclRemoteError", "remote process exited")


@dataclass(frozen=True)
class ParallelContext(runtime.ParallelContext):
    """The processes that train one model together.

    Args:
        rank, size, shard: as in spec.runtime.parallel.ParallelContext.
        sharded: each process keeps a part of the parameters (FSDP) instead of a copy (DDP).
        group: all of them, between their devices; None where this process is alone.
        host_group: all of them, between their hosts.
        saving_group: the same, for checkpoints that are written while training goes on.
        sequence_group: those that share each row; None where rows are not cut.
    """

    group: ProcessGroup | None = None
    host_group: ProcessGroup | None = None
    saving_group: ProcessGroup | None = None
    sequence_group: ProcessGroup | None = None

    def is_peer_loss(self, error: BaseException) -> bool:
        # Gloo has no exception of its own; its messages name the file that they come from.
        of_network = isinstance(error, dist.DistNetworkError) or any(sign in str(error) for sign in _PEER_LOSS)
        return self.group is not None and isinstance(error, RuntimeError) and of_network

    def total(self, number: float) -> float:
        if self.group is None:
            return number
        # On the host: the flags of every step must not wait for the device. In one order: all must decide alike.
        numbers = torch.empty(self.size, dtype=torch.float64)
        dist.all_gather(list(numbers.split(1)), torch.tensor([number], dtype=torch.float64), group=self.host_group)
        return numbers.sum().item()

    def all_gather(self, value: Value) -> list[Value]:
        if self.group is None:
            return [value]
        values: list[Value] = [value] * self.size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the device."""
        if self.group is not None:
            dist.all_reduce(value, group=self.group)
        return value


def initialize(
    parallel: str = "ddp", context_parallel: int = 1, timeout: float = 600.0, mesh: str | None = None
) -> ParallelContext:
    """Join the processes that were started together.

    torchrun's environment variables say who they are; without it, this process is alone.

    Args:
        parallel: `ddp`, each process has a copy of the parameters, or `fsdp`, a part of them.
        context_parallel: processes that cut each row in time between them.
        timeout: seconds to wait for another process before it counts as lost.
        mesh: devices of each axis, which is JAX's way to say all of this.

    Raises:
        ValueError: a mesh, the number of processes is no multiple of `context_parallel`, a timeout that is no time,
            fewer GPUs than processes, or a device that cannot send to another.
        ConnectionError: the others were not found.
    """
    if mesh is not None:
        raise ValueError(f"--mesh {mesh} is JAX's; with torch use torchrun, --parallel and --context-parallel")
    size, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    require_timeout(timeout)
    if context_parallel < 1 or size % context_parallel:
        raise ValueError(
            f"--context-parallel {context_parallel} needs a multiple of so many processes, torchrun started {size}; "
            "give another --context-parallel or --nproc-per-node"
        )
    if size == 1:
        return ParallelContext()
    device = default_device()
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"several processes train on NVIDIA and AMD GPUs and on CPUs, not on {device.type}; start one")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(f"there are {torch.cuda.device_count()} GPUs here, for more processes; start fewer")
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "cpu:gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        context = on_ranks(list(range(size)), parallel, context_parallel, timeout)
        # Gloo connects two processes when both are there, not when both are done: one that then ends at once (a command
        # line that is refused) breaks off what another still sets up, and that one reports a lost process.
        dist.barrier(context.host_group)
        return context
    except RuntimeError as error:
        raise ConnectionError(f"process {os.environ['RANK']} of {size} did not find the others: {error}") from error


def is_initialized() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def exit_if_initialized(code: int) -> None:
    """End a process that has joined others at once, before its interpreter is taken down; any other one goes on."""
    if is_initialized():
        # A thread of gloo's that lets go of a tensor wants the GIL. An interpreter that is being taken down ends such a
        # thread where C++ allows no end, and the process aborts: now and then -6 for an exit code.
        exit_process(code)


def on_ranks(ranks: list[int], parallel: str, context_parallel: int = 1, timeout: float = 600.0) -> ParallelContext:
    """The context of some of the processes of the default group; every process calls it, in the same order.

    Args:
        ranks: global ranks, ascending.
        parallel, context_parallel, timeout: as in `initialize`.
    """
    # Typed as anything: to a process outside it answers with a number, and that one leaves below.
    new_group: Any = partial(dist.new_group, timeout=timedelta(seconds=timeout))
    group = new_group(ranks)
    host_group, saving_group = new_group(ranks, backend="gloo"), new_group(ranks, backend="gloo")
    cuts = [ranks[i : i + context_parallel] for i in range(0, len(ranks), context_parallel)]
    sequence_groups = [new_group(cut) for cut in cuts] if context_parallel > 1 else [None] * len(cuts)
    if dist.get_rank() not in ranks:
        return ParallelContext()
    rank = ranks.index(dist.get_rank())
    row, column = divmod(rank, context_parallel)
    shard, sharded = BatchShard(row, len(cuts), column, context_parallel), parallel == "fsdp"
    return ParallelContext(rank, len(ranks), shard, sharded, group, host_group, saving_group, sequence_groups[row])


def shard(model: _Model, context: ParallelContext) -> _Model:
    """FSDP: each process keeps its part of every parameter and gathers a block's where that block needs them.

    Raises:
        NotImplementedError: this PyTorch's FSDP can only average gradients.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    assert context.group is not None, "one process has nothing to share"
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise NotImplementedError(f"--parallel fsdp needs a newer torch than {torch.__version__}; use ddp")
    mesh = DeviceMesh.from_group(context.group, default_device().type)
    for module in (*model.get_submodule("blocks").children(), model):
        part: Any = fully_shard(module, mesh=mesh)
        # The loss is weighted by tokens: gradients are summed, not averaged.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")
    return model


def reshard(model: nn.Module) -> None:
    """Give back what a forward pass gathered where no backward pass does: from then on parameters are the parts."""
    module: Any
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


class _Loss(nn.Module):
    """DDP wraps a module's forward; what is trained here is the model's loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.loss(*inputs, **named)


def replicate(model: nn.Module, loss: Callable[..., Any], context: ParallelContext) -> nn.Module:
    """DDP: the loss of this process's shard, whose backward pass leaves the sum of all gradients with every copy."""
    from torch.nn.parallel import DistributedDataParallel

    module = DistributedDataParallel(_Loss(model, loss), process_group=context.group, gradient_as_bucket_view=True)
    module.register_comm_hook(context.group, _sum)
    return module


# Without annotations: DDP compares them with classes, and here they are text.
def _sum(group, bucket):
    """The loss is weighted by tokens: gradients are summed, not averaged."""
    work: Any = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


# A DTensor is known by its methods: to import the class takes a second, in every process that has none.


def full_tensor(tensor: Any) -> Tensor:
    """The tensor, gathered where each process has a part of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def to_local(tensor: Any) -> Tensor:
    """What this process has of the tensor; writing to it writes to the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_part(full: Tensor, like: Any) -> Tensor:
    """The part of a full tensor that this process has of `like`."""
    if not hasattr(like, "device_mesh"):
        return full
    from torch.distributed.tensor import distribute_tensor

    # Everyone has the whole of it: nothing needs to be sent.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()


def gradient_sync(model: Any, loss: Any, last: bool) -> AbstractContextManager[Any]:
    """Gradients of the backward passes inside stay with this process until the last of them (DDP's `no_sync`)."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last or not hasattr(loss, "no_sync") else loss.no_sync()
