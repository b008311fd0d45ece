"""Faults between the devices of a mesh, and in the kernels that a TPU would run."""

from parity.suite.mutants.mutant import Mutant

MESH = ("parity/tests/distributed/test_mesh_layout.py",)
PALLAS = ("parity/tests/ops/test_pallas_kernels.py",)
ENGINE = ("parity/tests/training/test_trainer.py", "parity/tests/training/test_stream.py", "-k", "jax")

MESHES = (
    Mutant(
        "mesh: gradients stay with the devices of their rows",
        "jax_impl/training/step.py",
        "jax.lax.psum(gradient, everyone[path])",
        "gradient",
        MESH,
    ),
    Mutant(
        "mesh: the parts of a weight are added up once more between their devices",
        "jax_impl/training/step.py",
        "tuple(a for a in cut if a not in jax.tree.leaves(tuple(specs[path])))",
        "cut",
        MESH,
    ),
    Mutant(
        "mesh: each device weighs its labels by its own count",
        "jax_impl/training/step.py",
        "jnp.maximum(jax.lax.psum(_counted(batch), AXES), 1)",
        "jnp.maximum(_counted(batch), 1)",
        MESH,
    ),
    Mutant(
        "mesh: the loss is that of the first device",
        "jax_impl/training/step.py",
        "return jax.lax.psum(loss, AXES), last, gradients",
        "return loss, last, gradients",
        MESH,
    ),
    Mutant(
        "mesh: labels of the rows that fill up a device count",
        "jax_impl/training/data.py",
        "count, FILL.get(name, 0))",
        "count, 0)",
        MESH,
    ),
    Mutant(
        "mesh: the rows that fill up a device are saved with the states",
        "jax_impl/training/engine.py",
        "part[:, : cut.stop - cut.start]",
        "part",
        MESH,
    ),
    Mutant(
        "mesh: gradients of parts are averaged, not summed",
        "jax_impl/training/distributed.py",
        "jax.lax.psum_scatter(of_weight_oi, FSDP,",
        "jax.lax.psum_scatter(of_weight_oi / jax.lax.axis_size(FSDP), FSDP,",
        MESH,
    ),
    Mutant(
        "mesh: time is cut, and each stretch begins from nothing",
        "jax_impl/training/step.py",
        "time_sharded(SEQUENCE if world.shape()[2] > 1 else None)",
        "time_sharded(None)",
        MESH,
    ),
    Mutant(
        "jax, context parallel: the initial state is dropped",
        "jax_impl/ops/scan/context_parallel.py",
        "before_bd = jnp.where(rank == 0, state_bd, none_bd)",
        "before_bd = none_bd",
        MESH,
    ),
    Mutant(
        "jax, context parallel: a stretch forgets the decay of the one before",
        "jax_impl/ops/scan/context_parallel.py",
        "product_bd * value_bd + end_bd",
        "value_bd + end_bd",
        MESH,
    ),
    Mutant(
        "jax, context parallel: the last state has the gradient of this device alone",
        "jax_impl/ops/scan/context_parallel.py",
        "last_rbd.sum(axis=0)",
        "last_gradient_bd",
        MESH,
    ),
    Mutant(
        "jax, context parallel: gradients come back through the nearest stretch first",
        "jax_impl/ops/scan/context_parallel.py",
        "_fold(product_rbd[::-1], back_rbd[::-1], last_rbd.sum(axis=0), after)",
        "_fold(product_rbd, back_rbd, last_rbd.sum(axis=0), after[::-1])",
        MESH,
    ),
    Mutant(
        "jax, context parallel: each stretch has a gradient of the initial state",
        "jax_impl/ops/scan/context_parallel.py",
        "jnp.where(rank == 0, of_state, none_bd)",
        "of_state",
        MESH,
    ),
    Mutant(
        "a mesh may be smaller than there are devices",
        "jax_impl/training/distributed.py",
        "math.prod(sizes.values()) != devices",
        "devices % math.prod(sizes.values())",
        MESH,
    ),
    Mutant(
        "pallas: padding has gradients",
        "jax_impl/kernels/pallas/backward.py",
        "of_p, of_value = jnp.where(marks[1], 0.0, of_p), jnp.where(marks[1], 0.0, of_value)",
        "pass",
        PALLAS,
    ),
    Mutant(
        "pallas: the gradient of the bias is that of the last block",
        "jax_impl/kernels/pallas/backward.py",
        "of_bias[0, :, lanes(tile)] += share",
        "of_bias[0, :, lanes(tile)] = share",
        PALLAS,
    ),
    Mutant(
        "pallas: what lies beyond the end of time reaches gradients",
        "jax_impl/kernels/pallas/backward.py",
        "if walk.ragged:",
        "if False:",
        PALLAS,
    ),
    Mutant(
        "pallas: the scan's gradients begin beyond the end of time",
        "jax_impl/kernels/pallas/states.py",
        "if not walk.ragged:",
        "if True:",
        PALLAS,
    ),
    Mutant(
        "pallas: every block begins from the initial state",
        "jax_impl/kernels/pallas/forward.py",
        "    @pl.when(block == 0)\n",
        "    @pl.when(block >= 0)\n",
        PALLAS,
    ),
    Mutant(
        "jax: the loss in one pass forgets what its nats are multiplied by",
        "jax_impl/ops/cross_entropy/fused_linear_cross_entropy.py",
        "return of_nats * of_hidden_nd,",
        "return of_hidden_nd,",
        ("parity/tests/ops/test_fused_linear_cross_entropy_jax.py", "-k", "scaled"),
    ),
)
