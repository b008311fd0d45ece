"""The kernels for a CPU: arithmetic, threads, cache, products and memory. What they compute is in test_operations."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds.running_error import EXP, SIGMOID, TANH
from parity.proof.environment import ROOT
from parity.proof.operations import OPERATIONS, check
from parity.proof.problems.cases import CONFIG, LayerCase, ScanCase
from spec import LiquidNetConfig

torch = pytest.importorskip("torch")
pytest.importorskip("numba", reason="the extra cpu")

from torch_impl import LiquidNet
from torch_impl.kernels import numba as cpu_kernels
from torch_impl.kernels.numba import arithmetic, calls, cross_entropy, decode
from torch_impl.kernels.numba import gated_scan as gated_scan_kernels
from torch_impl.kernels.numba import rowwise as rowwise_kernels
from torch_impl.kernels.numba import sampling as sampling_kernels
from torch_impl.kernels.numba import scan as scan_kernels
from torch_impl.ops import matmul
from torch_impl.ops.gated_scan import gated_scan
from torch_impl.ops.scan import scan


def one_exp(x):
    return arithmetic.exp(x)


def one_tanh(x):
    return arithmetic.tanh(x)


def sweep(function, x):
    """A kernel's function of every entry, in loops like those of the kernels."""

    def run(x, y):
        for i in range(x.shape[0]):
            y[i] = function(x[i])

    y = np.empty_like(x)
    cpu_kernels.kernel(run)(x, y)
    return y


SWEPT = {
    "exp": (cpu_kernels.kernel(one_exp), np.exp, EXP),
    "tanh": (cpu_kernels.kernel(one_tanh), np.tanh, TANH),
    "sigmoid": (arithmetic.sigmoid, lambda x: 1.0 / (1.0 + np.exp(-x)), SIGMOID),
}


@pytest.mark.parametrize("name", SWEPT)
def test_functions_are_right_to_their_units(name):
    """Relative to the result, in units of half an ulp; below the least normal number absolute."""
    function, exact, units = SWEPT[name]
    small = np.logspace(-30, 0, 20_001)
    x = np.concatenate([np.linspace(-100.0, 87.0, 2_000_001), small, -small]).astype(np.float32)
    found, truth = sweep(function, x), exact(x.astype(np.float64))
    tiny = float(np.finfo(np.float32).tiny)
    errors = np.abs(found - truth) / (np.abs(truth) * 2.0**-24 + tiny)
    assert errors.max() <= units, (x[errors.argmax()], errors.max())
    assert errors.max() > units / 30


def test_the_exponential_of_float64_is_right_to_a_unit():
    """In units of an ulp, where the platform has longer numbers to tell; from the least normal result to 709."""
    x = np.concatenate(
        [np.linspace(-708.0, 709.0, 1_000_001)[1:], np.logspace(-300, 0, 1001), -np.logspace(-300, 0, 1001)]
    )
    found, truth = sweep(SWEPT["exp"][0], x), np.exp(x.astype(np.longdouble))
    errors = np.abs(found - truth) / np.spacing(truth.astype(np.float64))
    assert errors.max() <= (1.01 if np.finfo(np.longdouble).eps < 1e-18 else 2.0), x[errors.argmax()]
    assert sweep(SWEPT["exp"][0], np.array([-708.5, -1e6, 710.0])).tolist() == [0.0, 0.0, np.exp(709.0)]


@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_is_not_hidden(name, dtype):
    function, exact, _ = SWEPT[name]
    x = np.array([np.nan, -np.inf, 0.0], dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(sweep(function, x), exact(x), rtol=0.0, atol=np.finfo(np.float32).tiny)
    assert sweep(function, x).dtype == dtype
    assert sweep(function, np.array([np.inf], dtype))[0] >= 1.0


def test_a_gate_that_is_shut_is_a_number():
    """exp(-p) is no number of float64 there."""
    pre = torch.zeros(1, 2, 48, dtype=torch.float64)
    pre[..., 16:32] = -800.0
    bias = torch.zeros(16, dtype=torch.float64)
    found, wanted = (gated_scan(pre, bias, 1e-6, None, None, None, method) for method in ("numba", "sequential"))
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True)) and found[0].isfinite().all()


def test_other_dtypes_are_refused():
    pre, bias = torch.randn(3, 5, 24), torch.randn(8)
    with pytest.raises(NotImplementedError, match=r"need float32 or float64 on a CPU, not torch.bfloat16 on cpu"):
        gated_scan(pre.bfloat16(), bias.bfloat16(), 1e-6, None, None, None, "numba")


def test_auto_goes_on_where_the_kernels_do_not():
    config = LiquidNetConfig(vocab_size=33, d_model=16, d_ff=24, n_layers=1, max_seq_len=8)
    tokens = torch.arange(12).view(2, 6)
    for dtype in (torch.bfloat16, torch.float16):
        assert LiquidNet(config).to(dtype)(tokens)[0].dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = LiquidNet(config).loss(tokens, tokens)
        loss.backward()
    assert loss.isfinite()
    assert LiquidNet(config).double().generate(tokens[:1], max_length=9).shape == (1, 9)
    empty = torch.zeros(0, 3, 4)
    assert scan(empty, empty)[0].shape == (0, 3, 4)
    assert scan(torch.rand(2, 3, 4).double(), torch.rand(2, 3, 4).double(), method="numba")[0].dtype == torch.float64


def test_a_nan_reaches_the_states():
    pre = torch.zeros(1, 3, 24)
    pre[0, 1, 9] = torch.nan
    found, last = gated_scan(pre, torch.zeros(8), 1e-6, None, None, None, "numba")
    assert found.isnan().any() and last.isnan().sum() == 1 and not found[0, 0].isnan().any()


@pytest.fixture
def in_threads(monkeypatch):
    """Makes the kernels divide their work between so many threads, of which there may be fewer here."""
    launched, usual, most = [], cpu_kernels.numba.set_num_threads, cpu_kernels.numba.config.NUMBA_NUM_THREADS
    monkeypatch.setattr(cpu_kernels.numba, "set_num_threads", lambda n: launched.append(n) or usual(min(n, most)))

    def divide(count: int) -> list[int]:
        for module in (cpu_kernels, calls):
            monkeypatch.setattr(module, "threads", lambda: count)
        launched.clear()
        return launched

    return divide


def threaded_cases(d: int) -> dict[str, LayerCase | ScanCase]:
    """One row and an odd width: channels are what is divided, or rows of a number that no block divides."""
    config = replace(CONFIG, d_model=d, d_ff=d, vocab_size=2 * d)
    return {
        "scan": ScanCase((1, 9, d), "uniform", "normal", "some", "none", 1),
        "mixer": LayerCase((1, 9), "normal", 1, config, "some", "some"),
        "rms_norm": LayerCase((1, 67), "normal", 1, config),
        "swiglu": LayerCase((1, 67), "normal", 1, config),
        "cross_entropy": LayerCase((1, 67), "normal", 1, config, ignored="some"),
    }


METHOD_OF = {"cross_entropy": "fused_linear"}
"""How an operation's method of Numba is called, where it has another name."""


@pytest.mark.parametrize("d", [7, 385])
@pytest.mark.parametrize("name", threaded_cases(7))
def test_any_number_of_threads_gives_the_right_bits(in_threads, name, d):
    """Forward and backward, each number within the bounds of the reference, and all the same to the last bit."""
    case, operation, found = threaded_cases(d)[name], OPERATIONS[name], []
    for count in (1, 2, 3):
        launched = in_threads(count)
        check(name, "torch", METHOD_OF.get(name, "numba"), "float32", case)
        found.append(operation.run(adapters.load("torch"), case, METHOD_OF.get(name, "numba"), "float32"))
        assert count == 1 or (len(launched) >= 4 and set(launched) == {count})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for tensor, expected in found[0].items():
            np.testing.assert_array_equal(other[tensor], expected, err_msg=f"{name}, {tensor}")


def test_every_kernel_that_is_divided_is_in_these_cases(in_threads, monkeypatch):
    """Decoding has a test of its own, test_decode_numba.py."""
    modules = (cross_entropy, gated_scan_kernels, rowwise_kernels, scan_kernels)
    divided = {
        (module, name)
        for module in modules
        for name, one in vars(module).items()
        if getattr(one, "__qualname__", "") == "parallel.<locals>.run"
    }
    seen = set()
    for module, name in divided:
        usual = getattr(module, name)
        record = partial(lambda which, run, *given: (seen.add(which), run(*given)), (module, name), usual)
        monkeypatch.setattr(module, name, record)
    for operation, case in threaded_cases(7).items():
        OPERATIONS[operation].run(adapters.load("torch"), case, METHOD_OF.get(operation, "numba"), "float32")
    assert seen == divided and len(divided) == 10


def python(program: str, **environment: str) -> str:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    ended = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("count", ["1", "2"])
def test_pytorch_keeps_its_number_of_threads(count):
    """Numba tells OpenMP how many threads there are, and PyTorch's may be the same OpenMP."""
    program = """if True:
        import torch
        from torch_impl.ops.rowwise.numba import numba_swiglu
        numba_swiglu(torch.randn(64, 64))
        print(torch.get_num_threads())
    """
    assert python(program, OMP_NUM_THREADS=count) == f"{count}\n"


def test_kernels_run_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "file").touch()
    program = (
        "import torch; from torch_impl.ops.rowwise.numba import numba_swiglu\n"
        "print(numba_swiglu(torch.ones(1, 2)).item())"
    )
    assert python(program, NUMBA_CACHE_DIR=str(tmp_path / "file")) == "0.7310585975646973\n"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_machine_code_is_kept_by_what_it_was_made_of(tmp_path, monkeypatch):
    """Numba looks at the date of a kernel's own file, not at what it calls."""
    for source in Path(cpu_kernels.__file__).parent.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(cpu_kernels, "__file__", str(tmp_path / "__init__.py"))
    before = cpu_kernels._cache_directory()
    assert Path(before).name == Path(cpu_kernels._CACHE).name
    with (tmp_path / "arithmetic.py").open("a") as file:
        file.write("# another\n")
    assert cpu_kernels._cache_directory() != before


def test_code_for_several_threads_is_kept_apart():
    """Numba's cache knows a function by its types: where one thread came first, no process ever had two again."""
    found = [cell.cell_contents for cell in cross_entropy.online_softmax.__closure__]
    alone, together = sorted(
        (one for one in found if hasattr(one, "signatures")), key=lambda one: one.targetoptions.get("parallel", False)
    )
    assert together.targetoptions["parallel"] and not alone.targetoptions.get("parallel")
    assert alone.stats.cache_path != together.stats.cache_path


def test_only_what_python_calls_is_kept():
    """Taken from the cache, a function that a kernel calls would not become part of its loops."""
    kept, parts = [], []
    modules = arithmetic, cross_entropy, gated_scan_kernels, rowwise_kernels, sampling_kernels, scan_kernels, decode
    for module in modules:
        for each in vars(module).values():
            inside = [cell.cell_contents for cell in getattr(each, "__closure__", None) or ()]
            kept += [one for one in inside if hasattr(one, "signatures")]
            parts += [each] if hasattr(each, "signatures") and each is not decode.step else []
    assert len(kept) >= 20 and {type(one._cache).__name__ for one in (*kept, decode.step)} == {"FunctionCache"}
    assert len(parts) >= 20 and {type(one._cache).__name__ for one in parts} == {"NullCache"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of instructions")
def test_loops_are_vector_code(tmp_path):
    """A gate's division, of several numbers at once; beside it one of a single number, for the rest of a row."""
    program = """if True:
        import torch
        from torch_impl.kernels.numba import rowwise
        from torch_impl.ops.rowwise.numba import numba_swiglu
        numba_swiglu(torch.ones(3, 64))
        found = (cell.cell_contents for cell in rowwise.swiglu_forward.__closure__)
        alone = next(one for one in found if hasattr(one, "signatures"))
        (code,) = alone.inspect_asm().values()
        print("divps" in code)
    """
    assert python(program, OMP_NUM_THREADS="1", NUMBA_CACHE_DIR=str(tmp_path)) == "True\n"


@pytest.mark.parametrize("rows", [32, 48, 65])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_right_to_a_dot_product(monkeypatch, rows, threads):
    """Both ways, forward and backward: gamma_k |x| |W| of Higham 2002, k terms in any order."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for convolutions in (True, False):
            monkeypatch.setattr(matmul, "PREFERS_CONVOLUTIONS", convolutions)
            x, weight = torch.randn(rows, 24).requires_grad_(), torch.randn(40, 24).requires_grad_()
            of_y = torch.randn(rows, 40)
            y = matmul.matmul(x, weight)
            made = y.grad_fn is not None and "Convolution" in type(y.grad_fn).__name__
            assert made == (convolutions and (threads > 1 or rows % 16 == 0))
            found = y, *torch.autograd.grad(y, (x, weight), of_y)
            with torch.no_grad():
                assert all(map(torch.equal, found[1:], matmul.matmul_gradients(x, weight, of_y)))
            both = (x.detach().double(), weight.detach().double(), of_y.double())
            pairs = (both[0], both[1].T), (both[2], both[1]), (both[2].T, both[0])
            for one, (a, b) in zip(found, pairs, strict=True):
                assert ((one - a @ b).abs() <= a.shape[1] * 2.0**-24 * 1.01 * (a.abs() @ b.abs())).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept():
    program = """if True:
        import torch
        from pathlib import Path
        from spec.runtime.memory import keep_freed_memory
        assert keep_freed_memory()
        def held():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
        before = held()
        x = torch.ones(2**26)
        with_it = held()
        del x
        print(with_it - before > 250, held() - before > 250)
    """
    assert python(program) == "True True\n"
