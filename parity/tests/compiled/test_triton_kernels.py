"""The Triton kernels against the float64 reference, interpreted where there is no GPU: sizes, formats, masks."""

from __future__ import annotations

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest

from parity.proof.adapters import MIXER_RESULTS
from parity.proof.bounds import assert_within

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from parity.suite.compiled.triton.count import blocks_of_a_gpu
from parity.suite.compiled.triton.problem import MixerProblem
from torch_impl.ops import devices
from torch_impl.ops.gated_scan import triton as triton_methods
from torch_impl.ops.gated_scan.unfused import GatedScanInputs
from torch_impl.ops.scan import triton as triton_scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if reason := devices.triton_refusal(DEVICE):
    pytest.skip(reason, allow_module_level=True)
INTERPRETED = DEVICE.type == "cpu"

# Each length, width, dtype and kind of mask at least once; odd sizes meet odd blocks.
PROBLEMS = [
    MixerProblem((2, 1, 384), "bfloat16", "first", "none"),
    MixerProblem((2, 1, 1), "float16", "some", "none"),
    MixerProblem((2, 3, 192), "float16", "some", "some", small=True),
    MixerProblem((2, 3, 48), "bfloat16", "none", "all", small=True),
    MixerProblem((1, 63, 48), "float32", "some", "right"),
    MixerProblem((2, 63, 192), "bfloat16", "all", "none", delta_min=1e-6),
    MixerProblem((2, 257, 1), "bfloat16", "some", "left", small=True, delta_min=1e-6),
    MixerProblem((1, 257, 384), "float32", "none", "none", delta_min=1e-6),
    MixerProblem((1, 1000, 48), "float16", "some", "none", small=True),
    MixerProblem((2, 1000, 1), "float32", "some", "some"),
    MixerProblem((1, 1000, 384), "bfloat16", "some", "none", delta_min=1e-6),
]
SPLIT = [
    (MixerProblem((1, 257, 48), "bfloat16", "some", "some"), 4),
    (MixerProblem((1, 257, 192), "float16", "some", "none"), 9),
    (MixerProblem((1, 250, 1), "float32", "some", "right"), 5),
]


@pytest.fixture
def gpu_blocks():
    with blocks_of_a_gpu():
        yield


def tensor(array, dtype):
    return torch.from_numpy(np.asarray(array, np.float32)).to(DEVICE, dtype)


def run(problem, segments=1):
    """MIXER_RESULTS of the fused kernels, time cut into so many segments."""
    dtype = getattr(torch, problem.dtype)
    pre, bias, state, of_gated, of_last = (
        tensor(x, dtype if name in ("pre", "of_gated") else torch.float32)
        for name, x in problem.inputs._asdict().items()
    )
    leaves = [x.requires_grad_() for x in (pre, bias, state)]
    masks = (torch.from_numpy(x).to(DEVICE) for x in problem.masks)
    with mock.patch.object(triton_methods, "split", return_value=segments):
        results = triton_methods.triton_gated_scan(GatedScanInputs(pre, bias, state, *masks, problem.delta_min))
        gradients = torch.autograd.grad(results, leaves, (of_gated, of_last))
    assert [x.dtype for x in (*results, *gradients)] == [dtype, torch.float32, dtype, torch.float32, torch.float32]
    return dict(zip(MIXER_RESULTS, (x.detach().double().cpu().numpy() for x in (*results, *gradients)), strict=True))


def named(problem):
    return f"{problem.dtype}-{'x'.join(map(str, problem.shape))}"


def assert_close(problem, segments):
    # The interpreter's casts to bfloat16 truncate.
    ulps = 1.0 if INTERPRETED and problem.dtype == "bfloat16" else 0.5
    label = f"fused mixer, {problem.dtype}{', split' if segments > 1 else ''}, torch triton"
    assert_within(run(problem, segments), problem.truth, problem.bounds(ulps), label)


@pytest.mark.parametrize("problem", PROBLEMS, ids=named)
def test_the_fused_mixer_is_within_the_bound(problem):
    # Many blocks take the interpreter long: the longest lengths meet fewer and larger ones.
    with blocks_of_a_gpu() if problem.shape[1] < 1000 else nullcontext():
        assert_close(problem, 1)


@pytest.mark.parametrize("problem, segments", SPLIT, ids=lambda x: named(x) if isinstance(x, MixerProblem) else str(x))
def test_it_is_with_time_split(gpu_blocks, problem, segments):
    assert_close(problem, segments)


def test_every_size_and_format_is_among_them():
    shapes = np.array([problem.shape for problem in PROBLEMS])
    assert set(shapes[:, 1]) == {1, 3, 63, 257, 1000} and set(shapes[:, 2]) == {1, 48, 192, 384}
    assert {problem.dtype for problem in PROBLEMS} == {"float32", "float16", "bfloat16"}
    widest = PROBLEMS[-1]
    p = widest.inputs.pre[..., 384:768].astype(np.float64) + widest.inputs.bias
    rates = np.logaddexp(0.0, p[np.abs(p) < 500.0]) + widest.delta_min
    assert rates.min() < 2e-6 and rates.max() > 45.0
    assert (np.abs(p) > 500.0).any()


@pytest.mark.parametrize("p, kept", [(-1000.0, True), (1000.0, False)])
def test_a_decay_of_one_keeps_the_state_and_one_of_zero_forgets_it(p, kept):
    value, state = (
        torch.linspace(-2.0, 2.0, 40, device=DEVICE).reshape(1, 40, 1),
        torch.full((1, 1), 0.3, device=DEVICE),
    )
    pre = torch.cat([value, torch.full_like(value, p), torch.full_like(value, 1000.0)], dim=-1)
    gated, last = triton_methods.triton_gated_scan(
        GatedScanInputs(pre, torch.zeros(1, device=DEVICE), state, None, None, 0.0)
    )
    expected = torch.full_like(value, 0.3) if kept else value.tanh()
    assert (gated - expected).abs().max() <= (0.0 if kept else 1e-6)
    assert not kept or torch.equal(last, state)


@pytest.mark.parametrize("segments", [1, 3])
def test_two_runs_give_the_same_bits(gpu_blocks, segments):
    problem = MixerProblem((1, 70, 48), "bfloat16", "some", "some")
    first, second = (run(problem, segments) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in MIXER_RESULTS)


@pytest.fixture
def poisoned(monkeypatch):
    """From when it is called, what PyTorch would leave as it lies in memory is NaN."""

    def poison():
        for place, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            monkeypatch.setattr(place, name, filled(getattr(place, name)))
        assert torch.empty(1).isnan() and torch.zeros(1).new_empty(1).isnan()

    def filled(make):
        def make_filled(*arguments, **options):
            made = make(*arguments, **options)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return make_filled

    return poison


@pytest.mark.parametrize("segments, masks", [(1, ("none", "none")), (1, ("some", "right")), (3, ("some", "all"))])
def test_every_output_is_written(gpu_blocks, poisoned, segments, masks):
    problem = MixerProblem((1, 70, 5), "float16", *masks)
    clean = run(problem, segments)
    poisoned()
    found = run(problem, segments)
    assert all(np.array_equal(found[name], clean[name]) for name in MIXER_RESULTS)


def test_every_state_of_a_scan_is_written(poisoned):
    decay, drive, state = *torch.rand(2, 2, 70, 5, device=DEVICE), torch.ones(2, 5, device=DEVICE)
    poisoned()
    states = triton_scan.triton_scan(decay, drive, state)
    gradients = triton_scan.triton_adjoint(decay, states, state, drive, state)
    assert not any(x.isnan().any() for x in (states, *gradients))


def test_masks_may_begin_anywhere_in_memory():
    pre, bias = torch.randn(2, 16, 9, device=DEVICE), torch.zeros(3, device=DEVICE)
    masks = torch.rand(2, 2 * 16 + 3, device=DEVICE) < 0.4
    odd = [mask[3:].reshape(2, 16) for mask in masks]
    assert all(mask.storage_offset() % 8 for mask in odd)
    found = triton_methods.triton_gated_scan(GatedScanInputs(pre, bias, None, *odd, 1e-6))
    copied = triton_methods.triton_gated_scan(GatedScanInputs(pre, bias, None, *(mask.clone() for mask in odd), 1e-6))
    transposed = [mask.T.contiguous().T for mask in odd]
    other = triton_methods.triton_gated_scan(GatedScanInputs(pre, bias, None, *transposed, 1e-6))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(found, copied, other, strict=True))
