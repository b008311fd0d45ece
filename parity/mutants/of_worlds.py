"""Faults between the processes of one run; two of them show most, the order of sums takes more."""

from parity.suite.mutants.mutant import Mutant

CONTEXT = ("parity/tests/distributed/test_context_parallel.py",)
PAIRS = ("parity/tests/distributed/test_process_groups.py",)
# Four processes and a minute.
FOUR = ("parity/tests/distributed/test_distributed_torch.py", "-k", "restart")

WORLDS = (
    Mutant(
        "context parallel: the initial state is dropped",
        "torch_impl/ops/scan/context_parallel.py",
        "before_bd = state_bd if rank == 0 else none_bd",
        "before_bd = none_bd",
        CONTEXT,
    ),
    Mutant(
        "context parallel: a stretch forgets the decay of the one before",
        "torch_impl/ops/scan/context_parallel.py",
        "torch.addcmul(end_bd, product_bd, value_bd)",
        "end_bd + value_bd",
        CONTEXT,
    ),
    Mutant(
        "context parallel: the last state has the gradient of this process alone",
        "torch_impl/ops/scan/context_parallel.py",
        "last_rbd.sum(dim=0)",
        "last_gradient_bd",
        CONTEXT,
    ),
    Mutant(
        "context parallel: gradients come back through the nearest stretch first",
        "torch_impl/ops/scan/context_parallel.py",
        "_fold(product_rbd[after].flip(0), back_rbd[after].flip(0),",
        "_fold(product_rbd[after], back_rbd[after],",
        CONTEXT,
    ),
    Mutant(
        "context parallel: each stretch has a gradient of the initial state",
        "torch_impl/ops/scan/context_parallel.py",
        "of_state if rank == 0 else none_bd",
        "of_state",
        CONTEXT,
    ),
    Mutant(
        "ddp: gradients are averaged, not summed",
        "torch_impl/training/distributed.py",
        "dist.all_reduce(bucket.buffer(), group=group",
        "dist.all_reduce(bucket.buffer().div_(group.size()), group=group",
        PAIRS,
    ),
    Mutant(
        "fsdp: gradients are averaged, not summed",
        "torch_impl/training/distributed.py",
        "part.set_gradient_divide_factor(1.0)",
        "part.set_gradient_divide_factor(float(world.size))",
        PAIRS,
    ),
    Mutant(
        "each process agrees with itself",
        "spec/runtime/processes.py",
        "return flag if self.size == 1 else self.total(float(flag)) > 0.0",
        "return flag",
        PAIRS,
    ),
    Mutant(
        "torch: processes weigh alike, whatever labels they count",
        "torch_impl/training/engine.py",
        "self.world.total(_counted(batch))",
        "self.world.size * _counted(batch)",
        PAIRS,
    ),
    Mutant(
        "torch: each process tells the loss of its own share",
        "torch_impl/training/engine.py",
        "self.world.add_up(loss)",
        "loss",
        PAIRS,
    ),
    Mutant(
        "torch: every process goes on from the states of the first rows",
        "torch_impl/training/engine.py",
        "from_numpy(states[:, rows])",
        "from_numpy(states[:, : rows.stop - rows.start])",
        PAIRS,
    ),
    Mutant(
        "torch: states that two processes share are saved twice",
        "torch_impl/training/engine.py",
        "rows[:: self.world.share.columns]",
        "rows",
        PAIRS,
    ),
    Mutant(
        "torch: more micro-batches than a process has rows are not refused",
        "torch_impl/training/engine.py",
        "if world.sharded and _pieces(training, micro_batch, world) > fewest:",
        "if False:",
        PAIRS,
    ),
    Mutant(
        "ddp: the first step of a leg sums in an order of its own",
        "torch_impl/training/engine.py",
        "        if self.world.size > 1:\n            self._settle()\n",
        "",
        FOUR,
    ),
)
