"""JAX on eight devices trains what it trains on one: the same tokens, losses within the bound of one, the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

pytest.importorskip("jax", reason="meshes are JAX's")

from parity.proof.bounds import TIGHT, assert_within, select
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from parity.proof.operations import OPERATIONS
from parity.proof.operations.base import UNITS
from parity.proof.problems.cases import perturbed_parameters
from parity.suite.runs.distributed_jax import (
    ALONE,
    CHAIN,
    DEVICES,
    LAYOUTS,
    MUON_LAYOUTS,
    NARROW,
    NARROW_LAYOUTS,
    OTHER_LAYOUTS,
    SSM_LAYOUTS,
    SSM_STEPS,
    STEPS,
    TOGETHER,
)
from parity.suite.runs.launch import finish, start
from parity.suite.runs.segment import MUON, MUON_MODELS, SCAN_CASES, TRAINING, digest
from parity.suite.runs.trajectory_drift import NOISE, OTHERS, SMALL, SMALL_SSM, bounded_curves, bounded_run, story_data
from spec.data import next_batch
from spec.reference import loss_and_gradients
from spec.runtime.parallel import ParallelContext

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What one process with eight devices wrote."""
    place = tmp_path_factory.mktemp("distributed")
    finish(start(DEVICES, 1, "-m", "parity.suite.runs.distributed_jax", str(place)))
    return place


@pytest.fixture(scope="module")
def found(out):
    return json.loads((out / "results_1.json").read_text())


@pytest.fixture(scope="module")
def found_by_two(tmp_path_factory):
    """What two processes with four devices each found."""
    place = tmp_path_factory.mktemp("two")
    finish(start(DEVICES, 2, "-m", "parity.suite.runs.distributed_jax", str(place)))
    return json.loads((place / "results_2.json").read_text())


@cache
def truth(stream: bool):
    return bounded_curves(story_data(), STEPS, replace(TRAINING, stream=stream))


def in_units(run, stream: bool = False) -> float:
    """Of losses and of gradient norms: of a wrong norm the clip would make nothing that a loss shows at once."""
    exact, bound = truth(stream)
    return float((np.abs(np.array(run["losses"]) - exact) / bound).max())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_losses_of_every_mesh_stay_within_the_bound_of_one_device(found, layout, report):
    units = in_units(found[layout.name])
    report(f"{layout.name}: {STEPS} steps at {units:.2f} of the bound, one device at {in_units(found[ALONE.name]):.2f}")
    assert 0.0 < units <= 1.0
    # Another order of summation, which a mesh that computed nothing of its own would not have.
    assert found[layout.name]["losses"] != found[ALONE.name]["losses"]


@pytest.mark.parametrize("layout", TOGETHER, ids=lambda layout: layout.name)
def test_two_processes_stay_within_the_bound_of_one_device(found, found_by_two, layout, report):
    units = in_units(found_by_two[layout.name])
    report(f"two processes, {layout.name}: {STEPS} steps at {units:.2f} of the bound")
    assert 0.0 < units <= 1.0
    assert found_by_two[layout.name]["digests"] == found[ALONE.name]["digests"]


@pytest.mark.parametrize("name", MUON_MODELS)
def test_muon_stays_within_the_bound_of_one_device(found, name):
    """Matrices divided between them, whole or in parts."""
    exact, bound = bounded_run(story_data(), SSM_STEPS, MUON, model=MUON_MODELS[name])
    for layout in (ALONE, *MUON_LAYOUTS):
        losses = np.array(found[f"muon {name} {layout.name}"]["losses"])[:, 0]
        assert (np.abs(losses - exact) <= bound).all(), layout.name


def test_a_restart_with_muon_repeats_the_bits(found):
    assert found["muon restarts"] == {layout.name: True for layout in MUON_LAYOUTS}


@pytest.mark.parametrize("layout", SSM_LAYOUTS, ids=lambda layout: layout.name)
def test_a_liquid_ssm_stays_within_the_bound_of_one_device(found, layout):
    exact, bound = bounded_run(story_data(), SSM_STEPS, TRAINING, model=SMALL_SSM)
    for name in (ALONE.name, layout.name):
        assert (np.abs(np.array(found[f"ssm {name}"]["losses"])[:, 0] - exact) <= bound).all(), name


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_family_stays_within_the_bound_of_one_device(found, name):
    exact, bound = bounded_run(story_data(), SSM_STEPS, TRAINING, model=OTHERS[name])
    for layout in (ALONE, *OTHER_LAYOUTS):
        losses = np.array(found[f"{name} {layout.name}"]["losses"])[:, 0]
        assert (np.abs(losses - exact) <= bound).all(), layout.name


@cache
def narrow_truth() -> tuple:
    """Loss and gradients of the first step, and estimates for products of bfloat16 operands, and for float32 alone."""
    batch = next_batch(story_data(), 0, NARROW)

    def compute(lift):
        params = {path: lift(x) for path, x in perturbed_parameters(SMALL, NARROW.seed, NOISE).items()}
        loss, gradients, _ = loss_and_gradients(params, SMALL, batch.tokens, batch.labels, None, batch.resets)
        return {"loss": np.asarray(loss), **gradients}

    exact = {name: np.asarray(x) for name, x in compute(lambda x: np.asarray(x, np.float64)).items()}
    of = partial(estimate, compute, exact, UNITS["float32"])
    return exact, *(of(product_unit=UNITS[dtype]) for dtype in ("bfloat16", "float32"))


@pytest.mark.parametrize("layout", NARROW_LAYOUTS, ids=lambda layout: layout.name)
def test_a_step_in_bfloat16_adds_up_in_float32(out, layout):
    """Within the estimate for bfloat16; and as near another layout as float32 allows, for the operands are the same.

    Not so the embedding: each device rounds its part of the read-out's gradient, as one device does all of it.
    """
    exact, narrow, wide = narrow_truth()
    found, first = (dict(np.load(out / f"bfloat16 {one.name}.npz")) for one in (layout, NARROW_LAYOUTS[0]))
    used = assert_within(found, exact, narrow, "a step in bfloat16 on a mesh")
    assert used > TIGHT
    same = [name for name in exact if name != "embedding.weight"]
    # Time that is cut has other partial sums in the scan, and an operand may round the other way.
    if layout.sequence == 1:
        assert_within(*select(same, found, first, wide), "the same step on other meshes")


def test_every_mesh_sees_the_same_tokens(found):
    batches = (next_batch(story_data(), step * TRAINING.batch_size, TRAINING) for step in range(STEPS))
    alone = [digest(batch, ParallelContext()) for batch in batches]
    assert len(set(alone)) == STEPS
    for name in (ALONE.name, *(layout.name for layout in LAYOUTS), "chain"):
        assert found[name]["digests"] == alone, name


@pytest.mark.parametrize("stream", [False, True], ids=["windows", "stream"])
def test_a_run_that_changes_its_mesh_four_times_stays_within_the_bound(found, stream, report):
    units = in_units(found["stream chain" if stream else "chain"], stream)
    report(f"{' -> '.join(layout.name for layout in CHAIN)}{', stream' if stream else ''}: {units:.2f} of the bound")
    assert 0.0 < units <= 1.0


def test_a_restart_repeats_the_bits(found, found_by_two):
    restarts = {**found["restarts"], **found_by_two["restarts"]}
    assert len(restarts) == 2 and all(restarts.values()), restarts


@pytest.mark.parametrize("method", ["sequential", "chunked"])
@pytest.mark.parametrize("size", [2, 4])
def test_a_scan_cut_in_time_stays_within_the_bound(out, size, method):
    scan = OPERATIONS["scan"]
    for number, case in enumerate(SCAN_CASES):
        results = np.load(out / f"scan_{size}_{number}_{method}.npz")
        assert_within(results, scan.truth(case), scan.bounds_in(case, "float32"), f"scan between {size} devices")


def test_validation_is_the_same_on_every_mesh(found, found_by_two):
    """Of weights that nothing has moved: an estimate, how far rounding moves the first loss, for each of the two."""
    alone, *others = [*found["validation"].values(), *found_by_two["validation"].values()]
    bound = truth(False)[1][:, 0]
    assert len(others) == 4
    for other in others:
        assert (np.abs(np.array(other) - alone) <= 2 * bound[0]).all(), (other, alone)


def test_a_step_sends_what_it_must_and_no_more(found):
    """Parts of parameters by three kinds of collectives; of a shared sequence, 2 b d numbers a layer and direction."""
    fsdp, sequence = found["collectives"].values()
    assert {row["kind"] for row in fsdp} == {"all-gather", "reduce-scatter", "all-reduce"}
    (gathered,) = [row for row in sequence if row["kind"] == "all-gather"]
    rows = 16 // 2
    assert gathered["count"] == 2 * SMALL.n_layers and gathered["largest"] == 2 * rows * SMALL.d_model * 4
    assert {row["kind"] for row in sequence} == {"all-gather", "all-reduce"}
