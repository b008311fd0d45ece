"""The processes of a run. Twin: torch_impl. Truth: spec/data.py."""

from __future__ import annotations

import math
import os
import pickle
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from spec.data import BatchShard
from spec.parameters import Parameter
from spec.runtime import parallel as runtime
from spec.runtime.memory import keep_freed_memory
from spec.runtime.parallel import Value, exit_process, require_timeout

AXES = DATA, FSDP, SEQUENCE = ("data", "fsdp", "sequence")
"""Copies of the parameters, parts of them, and stretches of time; the first two cut the batch between rows."""

ROWS = (DATA, FSDP)
SHUTDOWN_SECONDS = 5.0
"""How long a process waits for the others before it ends."""
# In JAX's words: a path of the user's may well hold "gloo".
_PEER_LOSS = re.compile(
    r"Gloo \w+ failed|gloo/transport|[Cc]oordination service|heartbeat timeout|Connection \w+ by peer"
)


def _one_device() -> Mesh:
    return _mesh(jax.local_devices()[:1], 1, 1, 1)


def _mesh(devices: Sequence[Any], data: int, fsdp: int, sequence: int) -> Mesh:
    return Mesh(np.array(devices).reshape(data, fsdp, sequence), AXES, axis_types=(AxisType.Auto,) * 3)


@dataclass(frozen=True)
class ParallelContext(runtime.ParallelContext):
    """The processes that train one model together.

    Args:
        rank, size, shard: as in spec.runtime.parallel.ParallelContext.
        sharded: each device keeps a part of the parameters instead of a copy.
        mesh: the devices of all processes, by data, fsdp and sequence.
    """

    mesh: Mesh = field(default_factory=_one_device)

    def exit_unless_first(self, code: int) -> None:
        # Nothing that started them ends the first one meanwhile, and `exit_if_initialized` has all end together.
        if self.rank > 0:
            sys.exit(code)

    def is_peer_loss(self, error: BaseException) -> bool:
        # JAX raises either of the two, and has no class of its own for them.
        return self.size > 1 and isinstance(error, RuntimeError | ValueError) and bool(_PEER_LOSS.search(str(error)))

    def total(self, number: float) -> float:
        if self.size == 1:
            return number
        # As bytes: a device may have no float64. In one order: all must decide alike.
        numbers = multihost_utils.process_allgather(np.frombuffer(np.float64(number).tobytes(), np.uint8))
        return float(np.frombuffer(np.asarray(numbers).tobytes(), np.float64).sum())

    def all_gather(self, value: Value) -> list[Value]:
        if self.size == 1:
            return [value]
        pickled = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(pickled))))
        gathered = multihost_utils.process_allgather(np.pad(pickled, (0, int(sizes.max()) - len(pickled))))
        return [pickle.loads(one[:size].tobytes()) for one, size in zip(np.asarray(gathered), sizes, strict=True)]

    def sharding(self, *axes: Any) -> NamedSharding:
        """Where an array lies whose axes are cut along these axes of the mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def shape(self) -> tuple[int, int, int]:
        """Devices along data, fsdp and sequence."""
        data, fsdp, sequence = (self.mesh.shape[axis] for axis in AXES)
        return data, fsdp, sequence

    @property
    def local_row_shards(self) -> int:
        data, fsdp, _ = self.shape()
        return data * fsdp // self.shard.rows


def initialize(
    parallel: str = "ddp", context_parallel: int = 1, timeout: float = 600.0, mesh: str | None = None
) -> ParallelContext:
    """Join the processes that were started together.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are; with the address `auto` a TPU pod,
    SLURM, Open MPI or Kubernetes does. Without an address this process is alone. All devices are used.

    Args:
        parallel: `ddp`, each device has a copy of the parameters, or `fsdp`, a part of them.
        context_parallel: devices that cut each row in time between them.
        timeout: seconds to wait for another process before it counts as lost.
        mesh: devices of each axis instead of the first two, `data=2,fsdp=4,sequence=1`; axes left out have 1.

    Raises:
        ValueError: a mesh that is not as large as there are devices, or a timeout that is no time.
        ConnectionError: the others were not found.
    """
    keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("JAX has one process a host, which torchrun does not start; see JAX_COORDINATOR_ADDRESS")
    require_timeout(timeout)
    _initialize(timeout)
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError("there are several processes, which have not joined; set JAX_COORDINATOR_ADDRESS=auto")
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return on_mesh(devices, *mesh_sizes(len(devices), parallel, context_parallel, mesh))


def _initialize(timeout: float) -> None:
    address, seconds = os.environ.get("JAX_COORDINATOR_ADDRESS"), math.ceil(timeout)
    if address is None or jax.distributed.is_initialized():
        return
    who: dict[str, Any] = {}
    if address == "auto":
        del os.environ["JAX_COORDINATOR_ADDRESS"]
    else:
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        try:
            who = {name: int(os.environ[variable]) for name, variable in names.items()}
        except (KeyError, ValueError) as error:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS {address} needs whole {' and '.join(names.values())}") from error
        if not 0 <= who["process_id"] < who["num_processes"] or ":" not in address:
            raise ValueError(
                f"process {who['process_id']} of {who['num_processes']} at {address} cannot be; use HOST:PORT"
            )
        who |= {"coordinator_address": address, "cluster_detection_method": "deactivate"}
    # The trainer's own handlers act on SIGTERM, in all processes at the same step.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**who, initialization_timeout=seconds, heartbeat_timeout_seconds=seconds)
    except (RuntimeError, ValueError) as error:
        process = f"process {who.get('process_id', '')} of {who.get('num_processes', 'several')}"
        raise ConnectionError(f"{process} did not find the others at {address}: {error}") from error


def mesh_sizes(devices: int, parallel: str, context_parallel: int, mesh: str | None) -> tuple[int, int, int]:
    """Devices along data, fsdp and sequence, as the flags say.

    Raises:
        ValueError: what cannot be read, or is not as many devices as there are.
    """
    if mesh is None:
        if context_parallel < 1 or devices % context_parallel:
            raise ValueError(
                f"--context-parallel {context_parallel} needs a multiple of so many devices, there are {devices}; "
                "give another"
            )
        rows = devices // context_parallel
        return (1, rows, context_parallel) if parallel == "fsdp" else (rows, 1, context_parallel)
    if (parallel, context_parallel) != ("ddp", 1):
        raise ValueError(f"--mesh {mesh} says it all; leave --parallel and --context-parallel out")
    parts = [re.fullmatch(r"(data|fsdp|sequence)=(\d+)", part) for part in mesh.split(",")]
    sizes = {part[1]: int(part[2]) for part in parts if part}
    if None in parts or len(sizes) < len(parts) or math.prod(sizes.values()) != devices:
        raise ValueError(
            f"--mesh {mesh} must read as data=2,fsdp=2,sequence=2, their product the {devices} devices that there are"
        )
    data, fsdp, sequence = (sizes.get(axis, 1) for axis in AXES)
    return data, fsdp, sequence


def on_mesh(devices: Sequence[Any], data: int, fsdp: int, sequence: int) -> ParallelContext:
    """The context of these devices, those of one process side by side; they need not be here.

    Args:
        devices: as many as the product of the three, in the order of processes.
        data: devices that have the same parameters and other rows.
        fsdp: devices that have parts of the parameters and other rows.
        sequence: devices that cut each row in time between them.

    Raises:
        ValueError: a process would have parts of rows that are no rectangle.
    """
    processes = sorted({device.process_index for device in devices})
    here = len(devices) // len(processes)
    if here % sequence and sequence % here:
        raise ValueError(f"sequence={sequence} and the {here} devices of a process must divide one another")
    columns = max(1, sequence // here)
    rank = processes.index(jax.process_index()) if jax.process_index() in processes else 0
    row, column = divmod(rank, columns)
    shard = BatchShard(row, len(processes) // columns, column, columns)
    return ParallelContext(rank, len(processes), shard, fsdp > 1, _mesh(devices, data, fsdp, sequence))


def is_initialized() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def exit_if_initialized(code: int) -> None:
    """End a process that has joined others at once, before its interpreter is taken down; any other one goes on."""
    if is_initialized():
        if code != 1:
            # Where all of them end they do so together; where one fails alone, nobody comes, and it must not wait.
            shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            shutdown.start()
            shutdown.join(SHUTDOWN_SECONDS)
        exit_process(code)


def parameter_sharding(parameter: Parameter, context: ParallelContext) -> NamedSharding:
    """Where a parameter lies: a matrix is cut along its last axis `d` between the devices of fsdp, a vector copied.

    Raises:
        ValueError: the axis does not divide.
    """
    fsdp = context.shape()[1]
    shape, axes = parameter.shape, parameter.axes
    if fsdp == 1 or len(shape) < 2 or "d" not in axes:
        return context.sharding()
    axis = len(axes) - 1 - axes[::-1].index("d")
    if shape[axis] % fsdp:
        raise ValueError(f"fsdp={fsdp} does not divide d_model {shape[axis]}; choose a divisor of it")
    return context.sharding(*(FSDP if i == axis else None for i in range(len(shape))))


def cut_axis(part: Array, shape: tuple[int, ...]) -> int | None:
    """The axis along which a weight of this shape is in parts, or None where it is whole."""
    return next((axis for axis, (have, need) in enumerate(zip(part.shape, shape, strict=True)) if have != need), None)


def whole_weight(part: Array, shape: tuple[int, ...]) -> Array:
    """A weight put together from the parts of all devices of fsdp, where it is in parts; so are its gradients."""
    axis = cut_axis(part, shape)
    return part if axis is None else jax.lax.all_gather(part, FSDP, axis=axis, tiled=True)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product_of_parts(x: Array, part_oi: Array, axis: int, dtype: Any) -> Array:
    """y = x W^T in the dtype, of a weight in parts, which no device keeps whole between forward and backward pass.

    Parts travel in that dtype, twice; their gradients are made and added up in the dtype of the parts.

    Args:
        x: [..., i], of that dtype.
        part_oi: this device's part of the weight.
        axis: along which it is cut.
        dtype: of the product.
    """
    return jnp.matmul(x, _gathered(part_oi, axis, dtype).T, precision="highest")


def _gathered(part_oi: Array, axis: int, dtype: Any) -> Array:
    return jax.lax.all_gather(part_oi.astype(dtype), FSDP, axis=axis, tiled=True)


def _product_forward(x, part_oi, axis, dtype):
    return product_of_parts(x, part_oi, axis, dtype), (x, part_oi)


def _product_backward(axis, dtype, saved, grad_y):
    # Else a compiler would find that it has been gathered before, and keep it.
    x, part_oi, grad_y = jax.lax.optimization_barrier((*saved, grad_y))
    grad_x = jnp.matmul(grad_y, _gathered(part_oi, axis, dtype), precision="highest")
    grad_weight_oi = jnp.einsum("...o,...i->oi", grad_y, x, precision="highest", preferred_element_type=part_oi.dtype)
    return grad_x, jax.lax.psum_scatter(grad_weight_oi, FSDP, scatter_dimension=axis, tiled=True)


product_of_parts.defvjp(_product_forward, _product_backward)


def to_host(array: Array) -> np.ndarray:
    """The array as NumPy, from all processes that have parts of it; each of them asks."""
    if array.is_fully_addressable:
        return np.array(array)
    if array.is_fully_replicated:
        return np.array(array.addressable_data(0))
    return np.array(multihost_utils.process_allgather(array, tiled=True))


def put(array: Any, sharding: NamedSharding) -> Array:
    """What every process has, on the devices; each takes its part."""
    # A copy: the step gives its memory away.
    return jax.make_array_from_callback(np.shape(array), sharding, lambda part: np.array(array[part]))
