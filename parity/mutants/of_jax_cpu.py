"""Faults of what JAX does on a CPU: what it multiplies, copies and keeps there, and its scan."""

from parity.suite.mutants.mutant import Mutant

GUARD = ("parity/tests/ops/test_op_counts_jax.py", "-k", "products or chunks")
COPIES = ("parity/tests/ops/test_op_counts_jax.py", "-k", "turned_round or where_they_lie")
SCAN = ("parity/tests/ops/test_op_counts_jax.py", "-k", "as_they_lie")
VALUES = ("parity/tests/ops/test_scan.py", "-k", "jax and sequential")

JAX_CPU = (
    Mutant(
        "jax on a CPU: the loss makes its logits again for the gradients",
        "jax_impl/ops/cross_entropy/__init__.py",
        "full if single else _one_pass_on_cpu",
        "full if single else chunked",
        GUARD,
    ),
    Mutant(
        "jax on a CPU: a loss of any size is a single chunk",
        "jax_impl/ops/cross_entropy/__init__.py",
        "<= CHUNK_LOGITS * MORE\n",
        ">= 0\n",
        GUARD,
    ),
    Mutant(
        "jax on a CPU: `auto` scans in two levels",
        "jax_impl/ops/scan/__init__.py",
        "cpu=sequential, ",
        "cpu=chunked, ",
        SCAN,
    ),
    Mutant(
        "jax on a CPU: the gradients of `auto` are scanned in two levels",
        "jax_impl/ops/scan/__init__.py",
        "cpu=sequential_adjoint, ",
        "cpu=chunked_adjoint, ",
        SCAN,
    ),
    Mutant(
        "jax: the sequential adjoint does not decay the gradient of the initial state",
        "jax_impl/ops/scan/sequential.py",
        "return (_at(decay_btd, i) * g_bd, _put",
        "return (g_bd, _put",
        VALUES,
    ),
    Mutant(
        "jax: gradients are summed over axes of one device",
        "jax_impl/training/step.py",
        "if devices > 1)",
        "if devices > 0)",
        COPIES,
    ),
    Mutant(
        "jax: a step leaves parameters and moments where they were and writes new ones",
        "jax_impl/training/step.py",
        "donate_argnums=(0, 1), ",
        "",
        COPIES,
    ),
)
