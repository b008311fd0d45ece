"""Several processes train what one trains: the same tokens, losses within the bound of one, the same bits again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch", reason="torchrun is PyTorch's")

from parity.proof.bounds import assert_within
from parity.proof.operations import OPERATIONS
from parity.suite.runs import distributed_torch
from parity.suite.runs.distributed_torch import (
    ALONE,
    CHAIN,
    LAYOUTS,
    MUON_LAYOUTS,
    OTHER_LAYOUTS,
    PROCESSES,
    SSM_LAYOUTS,
    SSM_STEPS,
    STEPS,
)
from parity.suite.runs.segment import MUON, MUON_MODELS, SCAN_CASES, TRAINING, digest
from parity.suite.runs.trajectory_drift import OTHERS, SMALL_SSM, bounded_curves, bounded_run, story_data
from spec.checkpoint.sharded import join_shards
from spec.data import next_batch
from spec.runtime.parallel import ParallelContext

pytestmark = pytest.mark.long

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What four processes wrote: started once for all tests here."""
    place = tmp_path_factory.mktemp("distributed")
    command = [*TORCHRUN, str(PROCESSES), "-m", "parity.suite.runs.distributed_torch", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-6000:]
    return place


@pytest.fixture(scope="module")
def found(out):
    return json.loads((out / "results.json").read_text())


@cache
def truth(stream: bool):
    return bounded_curves(story_data(), STEPS, replace(TRAINING, stream=stream))


@cache
def ssm_truth():
    return bounded_run(story_data(), SSM_STEPS, TRAINING, model=SMALL_SSM)


def in_units(run, stream: bool) -> float:
    """Of losses and of gradient norms: of a wrong norm the clip would make nothing that a loss shows at once."""
    exact, bound = truth(stream)
    return float((np.abs(np.array(run["losses"]) - exact) / bound).max())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_losses_of_every_layout_stay_within_the_bound_of_one_process(found, layout, report):
    units = in_units(found[layout.name], stream=False)
    report(
        f"{layout.name}: 30 steps at {units:.2f} of the bound, one process at {in_units(found[ALONE.name], False):.2f}"
    )
    assert 0.0 < units <= 1.0


@pytest.mark.parametrize("name", MUON_MODELS)
def test_muon_stays_within_the_bound_of_one_process(found, name):
    """Matrices divided between them, whole or in parts."""
    exact, bound = bounded_run(story_data(), SSM_STEPS, MUON, model=MUON_MODELS[name])
    for layout in (ALONE, *MUON_LAYOUTS):
        losses = np.array(found[f"muon {name} {layout.name}"]["losses"])[:, 0]
        assert (np.abs(losses - exact) <= bound).all(), layout.name


def test_a_restart_with_muon_repeats_the_bits(found):
    assert found["muon restarts"] == {layout.name: True for layout in MUON_LAYOUTS}


@pytest.mark.parametrize("layout", SSM_LAYOUTS, ids=lambda layout: layout.name)
def test_a_liquid_ssm_stays_within_the_bound_of_one_process(found, layout, report):
    """With noise, which is that of each row wherever the row is."""
    exact, bound = ssm_truth()
    units = {
        name: float((np.abs(np.array(found[f"ssm {name}"]["losses"])[:, 0] - exact) / bound).max())
        for name in (ALONE.name, layout.name)
    }
    report(f"Liquid SSM, {SSM_STEPS} steps: " + ", ".join(f"{name} at {u:.2f}" for name, u in units.items()))
    assert max(units.values()) <= 1.0


@pytest.mark.parametrize("stream", [False, True], ids=["windows", "stream"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_family_stays_within_the_bound_of_one_process(found, name, stream, report):
    """Copies, parts of the parameters, and time cut in two."""
    training = replace(TRAINING, stream=stream)
    exact, bound = bounded_run(story_data(), SSM_STEPS, training, model=OTHERS[name])
    units = {}
    for layout in (ALONE, *OTHER_LAYOUTS):
        losses = found[f"{name} {'stream ' if stream else ''}{layout.name}"]["losses"]
        units[layout.name] = float((np.abs(np.array(losses)[:, 0] - exact) / bound).max())
    report(f"{name}, {SSM_STEPS} steps: " + ", ".join(f"{layout} at {u:.2f}" for layout, u in units.items()))
    assert max(units.values()) <= 1.0


def test_the_bound_is_tight(found):
    assert max(in_units(found[layout.name], stream=False) for layout in (ALONE, *LAYOUTS)) > 1 / 30


@pytest.mark.parametrize("stream", [False, True], ids=["windows", "stream"])
def test_every_layout_sees_the_same_tokens(found, stream):
    training = replace(TRAINING, stream=stream)
    prefix = "stream " if stream else ""
    alone = found[prefix + ALONE.name]["digests"]
    # What one process saw is what the specification says.
    batches = (next_batch(story_data(), step * TRAINING.batch_size, training) for step in range(STEPS))
    assert alone == [digest(batch, ParallelContext()) for batch in batches]
    assert len(set(alone)) == STEPS
    for name in [prefix + layout.name for layout in (CHAIN if stream else LAYOUTS)] + [f"{prefix}chain"]:
        assert found[name]["digests"] == alone, name


@pytest.mark.parametrize("stream", [False, True], ids=["windows", "stream"])
def test_a_run_that_changes_its_layout_four_times_stays_within_the_bound(found, stream, report):
    units = in_units(found["stream chain" if stream else "chain"], stream)
    report(f"{' -> '.join(layout.name for layout in CHAIN)}{', stream' if stream else ''}: {units:.2f} of the bound")
    assert 0.0 < units <= 1.0


@pytest.mark.parametrize("layout", [ALONE, *CHAIN], ids=lambda layout: layout.name)
def test_streams_stay_within_the_bound(found, layout):
    assert 0.0 < in_units(found[f"stream {layout.name}"], stream=True) <= 1.0


def test_a_restart_repeats_the_bits(found):
    assert len(found["restarts"]) == 3 and all(found["restarts"].values()), found["restarts"]


def test_shards_are_read_by_any_number_of_processes(found, out):
    """Bit for bit, although the four that wrote them trained on meanwhile; and by NumPy alone."""
    assert len(found["shards"]) == 3 and all(found["shards"].values()), found["shards"]
    files = {path.name: path.read_bytes() for path in (out / "shards").iterdir()}
    joined, whole = join_shards(files), np.load(out / "whole.npz")
    assert len(files) == PROCESSES and set(joined) == set(whole.files)
    for name in whole.files:
        assert joined[name].tobytes() == whole[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["sequential", "chunked"])
@pytest.mark.parametrize("size", [2, 4])
def test_a_scan_cut_in_time_stays_within_the_bound(out, size, method, dtype):
    scan = OPERATIONS["scan"]
    for number, case in enumerate(SCAN_CASES):
        results = np.load(out / f"scan_{size}_{number}_{method}_{dtype}.npz")
        assert_within(results, scan.truth(case), scan.bounds_in(case, dtype), f"scan between {size} processes, {dtype}")


def test_validation_is_the_same_in_every_layout(found):
    """In any order, a sum of n positive numbers is off by at most n u, relatively."""
    alone, *others = found["validation"].values()
    assert len(others) == 4
    for other in others:
        np.testing.assert_allclose(other, alone, rtol=2 * 1000 * 2.0**-24)


def test_half_precision_scales_alike_in_every_layout(found):
    """Every process halves the scale where one of them overflows: to what one process comes to, or a step beside it."""
    for dtype in ("float16", "bfloat16"):
        alone, *others = found[dtype].values()
        assert len(others) == 3
        for other in others:
            # Until the first update the weights are the same, and so are all roundings but those of the sum.
            np.testing.assert_allclose(other["losses"][0][0], alone["losses"][0][0], rtol=2.0**-20)
            if dtype == "float16":
                ratio = other["grad_scaler"]["scale"] / alone["grad_scaler"]["scale"]
                # Smaller parts of the batch have smaller gradients: they may overflow later.
                assert ratio in (1.0, 2.0, 4.0)
                assert alone["grad_scaler"]["scale"] < distributed_torch.HUGE


def test_context_parallel_keeps_a_quarter_for_the_backward_pass(found, report):
    alone, cut = found["saved bytes"].values()
    report(f"kept for the backward pass of 4096 tokens: {alone:,} bytes alone, {cut:,} in each of four processes")
    assert cut <= 0.26 * alone
