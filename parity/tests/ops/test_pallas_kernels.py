"""The Pallas kernels, interpreted, against the float64 reference: sizes, formats, masks, races, unwritten memory."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from parity.proof.adapters import MIXER_RESULTS, SCAN_RESULTS
from parity.proof.bounds import assert_within, scan_bounds, scan_truth
from parity.proof.problems.cases import ScanCase
from parity.suite.compiled.triton.problem import MixerProblem

jax = pytest.importorskip("jax")
import jax.numpy as jnp
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu

from jax_impl.kernels.pallas import blocks
from jax_impl.ops.gated_scan import gated_scan
from jax_impl.ops.scan import choose_method, scan
from jax_impl.ops.scan.context_parallel import time_sharded

# Each length, width, batch, dtype and kind of mask at least once; with the most steps that a block may have.
MIXERS = [
    (MixerProblem((1, 1, 130), "bfloat16", "first", "none"), 512),
    (MixerProblem((3, 3, 5), "float32", "some", "some", small=True), 512),
    (MixerProblem((8, 31, 1), "float32", "all", "none", delta_min=1e-6), 512),
    (MixerProblem((1, 63, 130), "float32", "some", "right", delta_min=1e-6), 16),
    (MixerProblem((3, 257, 5), "bfloat16", "some", "left"), 128),
    (MixerProblem((1, 257, 1), "float32", "none", "none", delta_min=1e-6), 512),
]
# Resets and padding are not the kernels' business.
SCANS = [
    (ScanCase((1, 1, 130), "uniform", "normal", "none", "none", 1), 520),
    (ScanCase((3, 3, 5), "almost one", "mixture", "none", "none", 2), 520),
    (ScanCase((8, 31, 1), "mixture", "mixture", "some", "some", 3), 24),
    (ScanCase((3, 257, 5), "slow", "normal", "some", "none", 4), 128),
    (ScanCase((5, 63, 130), "mixture", "normal", "none", "right", 5), 520),
]
SMALL = MixerProblem((2, 20, 5), "bfloat16", "some", "some"), 16
SMALL_SCAN = ScanCase((5, 20, 5), "uniform", "normal", "none", "none", 6), 24


@pytest.fixture
def most_steps(monkeypatch):
    """Sets the most steps that a block may have; two rows of a scan's block are less to compile than four."""

    def shrink(steps):
        monkeypatch.setattr(blocks, "MIXER", blocks.MIXER._replace(steps=steps))
        monkeypatch.setattr(blocks, "SCAN", blocks.SCAN._replace(steps=steps, rows=2))

    return shrink


def run_mixer(problem):
    """MIXER_RESULTS of the kernels."""
    pre, bias, state, of_gated, of_last = (jnp.asarray(x) for x in problem.inputs)
    resets, padding = (jnp.asarray(mask) if mask.any() else None for mask in problem.masks)

    @jax.jit
    def run(inputs, gradients):
        both = lambda *x: gated_scan(x[0], x[1], problem.delta_min, x[2], resets, padding, "pallas")  # noqa: E731
        results, pull = jax.vjp(both, *inputs)
        return *results, *pull(gradients)

    found = run((pre, bias, state), (of_gated, of_last))
    assert [x.dtype for x in found] == [pre.dtype, bias.dtype, pre.dtype, bias.dtype, bias.dtype]
    return {name: np.asarray(x).astype(np.float64) for name, x in zip(MIXER_RESULTS, found, strict=True)}


def run_scan(case):
    """SCAN_RESULTS of the kernels."""
    decay, drive, state, resets, padding, *gradients = (jnp.asarray(x) for x in case.arrays())

    @jax.jit
    def run(inputs, gradients):
        results, pull = jax.vjp(partial(scan, method="pallas", resets_bt=resets, padding_bt=padding), *inputs)
        return *results, *pull(gradients)

    found = run((decay, drive, state), tuple(gradients))
    return {name: np.asarray(x) for name, x in zip(SCAN_RESULTS, found, strict=True)}


def named(x):
    return f"{x.dtype}-{'x'.join(map(str, x.shape))}" if isinstance(x, MixerProblem) else None


@pytest.mark.parametrize("problem, steps", MIXERS, ids=named)
def test_the_fused_mixer_is_within_the_bound(problem, steps, most_steps):
    most_steps(steps)
    label = f"fused mixer, {problem.dtype}, jax pallas"
    assert_within(run_mixer(problem), problem.truth, problem.bounds(0.5), label)


@pytest.mark.parametrize("case, steps", SCANS, ids=str)
def test_the_scan_is_within_the_bound(case, steps, most_steps):
    most_steps(steps)
    assert_within(run_scan(case), scan_truth(*case.arrays()), scan_bounds(*case.arrays()), "scan, jax pallas")


def test_every_size_is_among_them():
    for shapes in (np.array([x.shape for x, _ in every]) for every in (MIXERS, SCANS)):
        assert {1, 3, 31, 63, 257} <= set(shapes[:, 1]) and {1, 5, 130} <= set(shapes[:, 2])
        assert {1, 3, 8} <= set(shapes[:, 0])


def test_a_decay_of_one_keeps_the_state_and_one_of_zero_forgets_it():
    """Exactly, in the scan and in the mixer."""
    drive, state = (jnp.asarray(np.random.default_rng(1).standard_normal(x), jnp.float32) for x in ((2, 63, 3), (2, 3)))
    run = jax.jit(partial(scan, method="pallas"))
    states, last = run(jnp.zeros_like(drive), drive, state)
    assert (states == drive).all() and (last == drive[:, -1]).all()
    states, last = run(jnp.ones_like(drive), jnp.zeros_like(drive), state)
    assert (states == state[:, None]).all() and (last == state).all()
    run = jax.jit(lambda pre: gated_scan(pre, jnp.zeros(3), 0.0, state, method="pallas"))
    for p, kept in ((-1000.0, True), (1000.0, False)):
        gated, last = run(jnp.concatenate([drive, jnp.full_like(drive, p), jnp.full_like(drive, 1000.0)], axis=-1))
        expected = jnp.broadcast_to(state[:, None], drive.shape) if kept else jnp.tanh(drive)
        assert jnp.abs(gated - expected).max() <= (0.0 if kept else 1e-6) and (not kept or (last == state).all())


@pytest.fixture
def simulated(monkeypatch):
    """Kernels run in a simulated TPU: memory begins as NaN, blocks come when waited for, races are looked for."""
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", random_seed=1)
    monkeypatch.setattr(blocks, "INTERPRET", interpret)
    yield
    pltpu.reset_tpu_interpret_mode_state()


def races_found():
    assert interpreter.races is not None
    return interpreter.races.races_found


def test_no_race_and_nothing_read_that_was_not_written(simulated, most_steps):
    """Time is no multiple of a block, nor channels of lanes, nor the batch of the scan's four rows."""
    problem, steps = SMALL
    most_steps(steps)
    assert_within(run_mixer(problem), problem.truth, problem.bounds(0.5), "fused mixer, bfloat16, jax pallas")
    assert not races_found()
    case, steps = SMALL_SCAN
    most_steps(steps)
    assert_within(run_scan(case), scan_truth(*case.arrays()), scan_bounds(*case.arrays()), "scan, jax pallas")
    assert not races_found()


def lowered(function, platform, *shapes):
    """The program's text for a platform that need not be here."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def of_mixer(b, t, d, method, dtype=jnp.bfloat16):
    """Outputs and gradients of the mixer, with resets, and the shapes of what it takes."""
    wide = jnp.float32

    def run(pre, bias, state, resets, *gradients):
        both = lambda *x: gated_scan(x[0], x[1], 1e-6, x[2], resets, method=method)  # noqa: E731
        results, pull = jax.vjp(both, pre, bias, state)
        return results, pull(gradients)

    row = (b, d), wide
    return run, ((b, t, 3 * d), dtype), ((d,), wide), row, ((b, t), jnp.bool_), ((b, t, d), dtype), row


def of_scan(b, t, d, method):
    whole, row = ((b, t, d), jnp.float32), ((b, d), jnp.float32)

    def run(decay, drive, state, *gradients):
        results, pull = jax.vjp(partial(scan, method=method), decay, drive, state)
        return results, pull(gradients)

    return run, whole, whole, row, whole, row


def estimates(text):
    """Bytes that each kernel says it moves; quotes are written as \\22 in a program's text."""
    return [int(x) for x in re.findall(r'bytes_accessed(?:"|\\+22): ?"?(\d+)', text)]


def kernels(text):
    return set(re.findall(r"(?:mixer|scan)_(?:forward|backward)", text))


@pytest.mark.parametrize("make", [of_mixer, of_scan])
def test_auto_takes_the_kernels_where_the_program_is_lowered_for_a_tpu(make):
    """By the platform of the program, on a machine that has none; a few tokens stay sequential."""
    (function, *shapes), kind = make(2, 40, 8, "auto"), make.__name__.removeprefix("of_")
    assert kernels(lowered(function, "tpu", *shapes)) == {f"{kind}_forward", f"{kind}_backward"}
    assert not kernels(lowered(function, "cpu", *shapes)) and choose_method((2, 40, 8)) == "sequential"
    function, *shapes = make(2, 16, 8, "auto")
    assert not kernels(lowered(function, "tpu", *shapes)) and choose_method((2, 16, 8)) == "sequential"
    function, *shapes = make(2, 16, 8, "pallas")
    assert len(kernels(lowered(function, "tpu", *shapes))) == 2
    with pytest.raises(NotImplementedError):
        lowered(function, "cuda", *shapes)


def test_where_time_is_shared_the_fused_mixer_refuses_and_auto_takes_the_parts():
    function, *shapes = of_mixer(2, 40, 8, "pallas")
    with time_sharded("sequence"), pytest.raises(NotImplementedError, match="each row whole"):
        lowered(function, "tpu", *shapes)


@pytest.mark.parametrize("d", [384, 768])
def test_the_blocks_of_the_mixer_move_at_most_24_bytes(d):
    """A token and channel, forward and backward, with resets; of the scan 8 arrays, and rows at the blocks' ends."""
    b, t = 2, 1024
    function, *shapes = of_mixer(b, t, d, "pallas")
    moved = estimates(lowered(function, "tpu", *shapes))
    assert len(moved) == 2 and 22.0 <= sum(moved) / (b * t * d) <= 24.0
    function, *shapes = of_scan(b, t, d, "pallas")
    moved = estimates(lowered(function, "tpu", *shapes))
    # Beside the arrays, states at both ends and before a block: at most three tiles of 8 rows for each 512 steps.
    assert len(moved) == 2 and 8.0 <= sum(moved) / (4 * b * t * d) <= 8.0 + 3 * 8 / 512


def test_blocks_are_counted_when_their_place_changes():
    block = blocks.Block((1, 16, 128), lambda b, k: (b, k, 0))
    assert blocks.moved_entries(block, (2, 40, 128), (2, 3)) == 2 * 40 * 128
    shared = blocks.Block((1, 128), lambda b, k: (0, 0))
    assert blocks.moved_entries(shared, (1, 128), (2, 3)) == 128
    row = blocks.Block((1, 1, 128), lambda b, k: (k, 0, 0))
    assert blocks.moved_entries(row, (3, 1, 128), (2, 3)) == 6 * 128
