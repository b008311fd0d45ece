"""Every operation's package: what it is does not depend on the order of imports, and a named method runs or raises."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from parity.proof import adapters

HERE = [name for name in adapters.FRAMEWORKS if not adapters.missing(name)]


SPELLINGS = ("one_pass", "fused_linear")


def asarray(name: str) -> Any:
    return importlib.import_module({"torch": "torch", "jax": "jax.numpy"}[name]).asarray


def python(source: str) -> str:
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("order", [0, 1], ids=["package first", "modules first"])
def test_what_is_imported_does_not_depend_on_the_order(name: str, order: int) -> None:
    """`from torch_impl import scan` is the function, whatever has been imported before it, and so is each module."""
    statements = [
        f"from {name}_impl import scan",
        f"import {name}_impl.ops.scan.chunked; import {name}_impl.ops.gated_scan; import {name}_impl.generation",
    ]
    source = f"""
{statements[order]}
{statements[1 - order]}
import types
import {name}_impl
from {name}_impl.ops import cross_entropy, decode, gated_scan, scan as package
assert isinstance(scan, types.FunctionType) and {name}_impl.scan is scan is package.scan, scan
assert all(isinstance(one, types.ModuleType) for one in (cross_entropy, decode, gated_scan, package, package.chunked))
print("both")
"""
    assert python(source) == "both\n"


@pytest.mark.parametrize("name", HERE)
def test_no_package_has_a_name_of_its_own_for_that_of_a_module_in_it(name: str) -> None:
    """Else which of the two it is would depend on what has been imported before."""
    root = importlib.import_module(f"{name}_impl")
    found = [root]
    for module in pkgutil.walk_packages(root.__path__, f"{name}_impl."):
        try:
            found.append(importlib.import_module(module.name))
        except ImportError:  # an optional dependency
            continue
    assert len(found) > 30
    for module in found[1:]:
        package, _, last = module.__name__.rpartition(".")
        assert getattr(sys.modules[package], last) is module, f"{package}.{last} is not the module"


@pytest.mark.parametrize("name", HERE)
def test_the_former_name_of_a_loss_method_is_the_same_method(name: str) -> None:
    losses = adapters.load_module(name, "ops.cross_entropy")
    assert losses.ALIASES == {"one_pass": "fused_linear"} and not losses.ALIASES.keys() & losses.METHODS.keys()
    random = np.random.default_rng(0)
    drawn = random.standard_normal((2, 5, 4), np.float32), random.standard_normal((9, 4), np.float32)
    hidden, embedding, labels = (asarray(name)(x) for x in (*drawn, random.integers(9, size=(2, 5))))
    losses_of = [losses.cross_entropy(hidden, embedding, labels, hidden.dtype, method) for method in SPELLINGS]
    assert losses_of[0] == losses_of[1]
    with pytest.raises(ValueError, match="unknown loss method 'one_pas'; choose one of full, chunked, fused_linear"):
        losses.cross_entropy(hidden, embedding, labels, hidden.dtype, "one_pas")


torch_only = pytest.mark.skipif("torch" not in HERE, reason="these methods are torch's")


@torch_only
def test_a_named_matmul_runs_or_raises() -> None:
    torch = pytest.importorskip("torch")
    matmul = adapters.load_module("torch", "ops.matmul")
    x, weight = torch.randn(3, 32, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    for method in matmul.METHODS:
        y = matmul.matmul(x, weight, method)
        torch.testing.assert_close(y, torch.einsum("bti,oi->bto", x, weight))
        grad_y = torch.randn_like(y)
        wanted = torch.autograd.grad(y, (x, weight), grad_y)
        rows = x.detach().reshape(-1, 5)
        grad_x, grad_weight = matmul.matmul_gradients(rows, weight.detach(), grad_y.reshape(-1, 7), method)
        torch.testing.assert_close((grad_x.view(x.shape), grad_weight), wanted)
    with pytest.raises(NotImplementedError, match=r"'convolution' needs float32 on a CPU, not torch.float64 on cpu"):
        matmul.matmul(x.double(), weight.double(), "convolution")
    with pytest.raises(ValueError, match="unknown matmul method 'conv'; choose one of mm, convolution"):
        matmul.matmul(x, weight, "conv")


@torch_only
def test_a_named_rowwise_method_runs_or_raises() -> None:
    torch = pytest.importorskip("torch")
    rowwise = adapters.load_module("torch", "ops.rowwise")
    x, weight = torch.randn(2, 3, 8), torch.randn(8)
    for method in rowwise.METHODS:
        wanted = weight * x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(rowwise.rms_norm(x, weight, 1e-6, method), wanted)
        torch.testing.assert_close(rowwise.swiglu(x, method), torch.nn.functional.silu(x[..., :4]) * x[..., 4:])
    with pytest.raises(ValueError, match=r"unknown rowwise method 'plane'; .*did you mean 'plain'"):
        rowwise.swiglu(x, "plane")
    if "numba" in rowwise.METHODS:
        with pytest.raises(NotImplementedError, match="the Numba kernels need float32 or float64 on a CPU"):
            rowwise.rms_norm(x.bfloat16(), weight.bfloat16(), 1e-6, "numba")


@pytest.mark.parametrize("name", HERE)
def test_an_unknown_mixer_method_is_told_the_known_ones(name: str) -> None:
    pre, bias = (asarray(name)(np.ones(shape, np.float32)) for shape in ((1, 1, 3), (1,)))
    with pytest.raises(
        ValueError, match=r"unknown mixer method 'sequentia'; choose one of auto, sequential, .*did you"
    ):
        adapters.load_module(name, "ops.gated_scan").gated_scan(pre, bias, 0.0, method="sequentia")


WAYS = {
    "scan": {"cuda": "chunked", "rocm": "chunked", "cpu": "sequential"},
    "gated_scan": {"cuda": "chunked", "rocm": "chunked", "cpu": "sequential"},
    "loss": {"cuda": "chunked", "rocm": "chunked", "cpu": "fused_linear", "tpu": "fused_linear"},
}
"""Which method `auto` is in a program that JAX lowers for a platform, gradients included."""
FRAME = {"constant", "return", "case", "broadcast_in_dim"}
"""What the choice itself leaves in a program."""


@cache
def lowered(operation: str, method: str, platform: str) -> str:
    """The program of an operation's gradients for a platform, whatever is here; a loss of several chunks."""
    import jax

    if operation == "loss":
        losses = adapters.load_module("jax", "ops.cross_entropy")
        labels = np.zeros((2, 32), np.int32)
        shapes = (2, 32, 16), (300, 16)

        def total(*inputs):
            return losses.cross_entropy(*inputs, labels, np.dtype("float32"), method)[0]
    elif operation == "scan":
        scans = adapters.load_module("jax", "ops.scan")
        shapes = (2, 256, 8), (2, 256, 8), (2, 8)

        def total(*inputs):
            return sum(x.sum() for x in scans.scan(*inputs, method))
    else:
        gated = adapters.load_module("jax", "ops.gated_scan")
        shapes = (2, 256, 24), (8,), (2, 8)

        def total(pre, bias, state):
            return sum(x.sum() for x in gated.gated_scan(pre, bias, 1e-6, state, method=method))

    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    with adapters.chunk_logits(adapters.load_module("jax", "ops.cross_entropy"), 4 * 300):
        traced = jax.jit(jax.grad(total, tuple(range(len(arrays))))).trace(*arrays)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def work_of(program: str) -> Counter[str]:
    """Its instructions by name, without those of the choice."""
    return Counter(name for name in re.findall(r"stablehlo\.(\w+)", program) if name not in FRAME)


@pytest.mark.skipif("jax" not in HERE, reason="torch asks the tensors")
@pytest.mark.parametrize("operation, platform", [(name, one) for name, ways in WAYS.items() for one in ways])
def test_the_platform_of_a_program_decides_its_way(operation: str, platform: str) -> None:
    """A GPU's program takes the GPU's way, and no other one is in it; nor does it depend on what is here."""
    found, method = lowered(operation, "auto", platform), WAYS[operation][platform]
    named = {one: work_of(lowered(operation, one, platform)) for one in {*WAYS[operation].values()}}
    assert len({*map(str, named.values())}) == len(named) >= 2
    assert [one for one, work in named.items() if work == work_of(found)] == [method]


@pytest.mark.skipif("jax" not in HERE, reason="torch asks the tensors")
@pytest.mark.parametrize("platform, rows", [("cuda", 4), ("rocm", 4), ("cpu", 16), ("tpu", 64)])
def test_the_platform_of_a_program_decides_its_tiles(platform: str, rows: int) -> None:
    """Rows of logits at a time: CHUNK_FACTOR times as many on a CPU, TPU_ROWS, here all of them, on a TPU."""
    program = lowered("loss", "fused_linear", platform)
    assert {int(n) for n in re.findall(r"tensor<(\d+)x300xf32>", program)} == {rows}


@pytest.mark.skipif("jax" not in HERE, reason="torch asks the tensors")
def test_kernels_are_in_a_tpus_program_alone() -> None:
    for operation in ("scan", "gated_scan"):
        calls = {one: work_of(lowered(operation, "auto", one))["custom_call"] for one in ("cuda", "rocm", "cpu", "tpu")}
        assert calls.pop("tpu") >= 2 and not any(calls.values()), operation
