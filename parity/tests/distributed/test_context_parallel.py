"""A scan whose time is cut between threads that stand for processes: what it gives is the scan of the whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="only PyTorch cuts time between processes")

from parity.proof.adapters import torch as torch_adapter
from parity.proof.bounds import assert_within, double_bound
from parity.proof.operations import OPERATIONS
from parity.proof.operations.base import cast
from parity.proof.problems.cases import ScanCase
from spec.data import BatchShard
from spec.mixers.base import Masks
from spec.reference.convolution import short_convolution, short_convolution_adjoint
from torch_impl.ops.scan import context_parallel
from torch_impl.ops.short_convolution import short_convolution as torch_short_convolution

CASES = tuple(
    ScanCase((2, t, 3), decays, "normal", resets, padding, seed)
    for seed, (t, decays, resets, padding) in enumerate(
        [
            (4, "uniform", "none", "none"),
            (5, "almost one", "none", "none"),
            (31, "mixture", "some", "some"),
            (63, "one", "last", "left"),
            (63, "slow", "none", "right"),
        ]
    )
)


class Threads:
    """A process group whose ranks are threads; counts what each sends."""

    def __init__(self, size: int):
        self.size, self.sent, self.here = size, [[] for _ in range(size)], threading.local()
        self.table, self.barrier = [None] * size, threading.Barrier(size, timeout=60)

    def all_gather(self, everyone, own):
        self.sent[self.here.rank].append(own.numel())
        self.table[self.here.rank] = own.detach().clone()
        self.barrier.wait()
        for place, found in zip(everyone, self.table, strict=True):
            place.copy_(found)
        self.barrier.wait()

    def run(self, work):
        """What `work(rank)` returns in each of the threads."""

        def one(rank):
            self.here.rank = rank
            try:
                return work(rank)
            except BaseException:  # whatever it is: the other threads must not wait for this one for ever
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return [done.result() for done in [pool.submit(one, rank) for rank in range(self.size)]]


@pytest.fixture(autouse=True)
def threads_for_processes(monkeypatch):
    stand_in = SimpleNamespace(
        get_rank=lambda group: group.here.rank,
        get_world_size=lambda group: group.size,
        all_gather=lambda everyone, own, group: group.all_gather(everyone, own),
    )
    monkeypatch.setattr(context_parallel, "dist", stand_in)


def cut_scan(case: ScanCase, method: str, dtype: str, group: Threads):
    """SCAN_RESULTS put together; the gradient of the last state is dealt out in powers of two, another to each."""
    arrays, shares = case.arrays(), [2.0 ** -min(rank + 1, group.size - 1) for rank in range(group.size)]
    assert sum(shares) == 1.0

    def work(rank):
        cut = BatchShard(column=rank, columns=group.size).of_columns(case.shape[1])
        names = ("decay", "drive", "resets", "padding", "states_gradient")
        decay, drive, resets, padding, of_states = (cast(getattr(arrays, name), dtype)[:, cut] for name in names)
        of_last = cast(arrays.final_gradient, dtype) * np.array(shares[rank], dtype)
        inputs = decay, drive, cast(arrays.state, dtype)
        return torch_adapter.vjp("scan", inputs, (resets, padding), (of_states, of_last), method=method)

    with context_parallel.time_sharded(group):
        parts = group.run(work)
    assert all(np.array_equal(part["last"], parts[0]["last"]) for part in parts), "one last state for all"
    whole = {
        name: np.concatenate([part[name] for part in parts], axis=1)
        for name in parts[0]
        if name not in ("last", "state gradient")
    }
    return {**whole, "last": parts[0]["last"], "state gradient": np.sum([part["state gradient"] for part in parts], 0)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["sequential", "chunked"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_it_is_the_scan_of_the_whole(size, method, dtype):
    scan = OPERATIONS["scan"]
    for case in CASES:
        found = cut_scan(case, method, dtype, Threads(size))
        assert_within(found, scan.truth(case), scan.bounds_in(case, dtype), f"scan cut in {size}, {dtype}")


def test_each_direction_sends_two_numbers_a_channel_once():
    group = Threads(3)
    cut_scan(CASES[2], "sequential", "float32", group)
    assert group.sent == [[2 * 2 * 3, 2 * 2 * 3]] * 3


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "bare"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_short_convolution_is_that_of_the_whole(size, masked):
    """Its registers cross the cuts, around resets and padding, forward and in every gradient; in float64."""
    random, shape, taps = np.random.default_rng(size), (2, 11, 3), 4
    x, grad_y = random.standard_normal((2, *shape))
    weight, bias = random.standard_normal((taps, 3)), random.standard_normal(3)
    history, grad_last = random.standard_normal((2, 2, (taps - 1) * 3))
    masks = Masks(random.random(shape[:2]) < 0.2, random.random(shape[:2]) < 0.2) if masked else Masks()
    y, last, saved = short_convolution(x, weight, bias, history, masks)
    names = ("x", "weight", "bias", "history")
    gradients = short_convolution_adjoint(saved, grad_y, grad_last)
    truth = {"y": y, "last": last, **dict(zip(names, gradients, strict=True))}

    def work(rank):
        cut = BatchShard(column=rank, columns=size).of_columns(shape[1])
        leaves = [torch.tensor(array, requires_grad=True) for array in (x[:, cut], weight, bias, history)]
        own = Masks(*(None if mask is None else torch.tensor(mask[:, cut]) for mask in masks))
        found_y, found_last = torch_short_convolution(*leaves, own)
        # Each has the whole last state: the objective counts it once.
        of_last = torch.tensor(grad_last) if rank == 0 else torch.zeros_like(found_last)
        of = torch.autograd.grad((found_y, found_last), leaves, (torch.tensor(grad_y[:, cut]), of_last))
        return [array.detach().numpy() for array in (found_y, found_last, *of)]

    group = Threads(size)
    with context_parallel.time_sharded(group):
        parts = group.run(work)
    ys, lasts, grad_xs, *others = zip(*parts, strict=True)
    found = {"y": np.concatenate(ys, axis=1), "last": lasts[0], "x": np.concatenate(grad_xs, axis=1)}
    found |= {name: np.sum(arrays, axis=0) for name, arrays in zip(names[1:], others, strict=True)}
    assert_within(found, truth, {name: double_bound(exact) for name, exact in truth.items()}, f"cut in {size}")
    for own_last in lasts:
        np.testing.assert_array_equal(own_last, lasts[0])


def test_only_inside_is_time_shared():
    group, found = Threads(2), []

    def fail():
        with context_parallel.time_sharded(group):
            found.append(context_parallel.sharing())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert found == [group] and context_parallel.sharing() is None
