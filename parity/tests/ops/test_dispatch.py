"""Every operation's package: what it is does not depend on the order of imports, and a named method runs or raises."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
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
