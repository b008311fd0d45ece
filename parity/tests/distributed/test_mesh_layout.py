"""A few steps on meshes of eight devices, in seconds; test_distributed_jax.py has the whole runs."""

from __future__ import annotations

import json
import os
import re
from functools import cache

import numpy as np
import pytest

pytest.importorskip("jax", reason="meshes are JAX's")

from jax_impl.training import distributed
from jax_impl.training.distributed import mesh_sizes
from parity.proof.bounds import TIGHT, assert_within, rounding, unit
from parity.proof.bounds.monte_carlo_arithmetic import FACTOR, Rounding
from parity.proof.operations import OPERATIONS
from parity.proof.problems.cases import perturbed_parameters
from parity.suite.runs.distributed_jax import ALONE, DEVICES, FEW, SHORT, UNEVEN, product_problem
from parity.suite.runs.launch import finish, start
from parity.suite.runs.segment import SCAN_CASES, same_bits
from parity.suite.runs.trajectory_drift import NOISE, SMALL, bounded_run, story_data
from spec.data import next_batch
from spec.optimizer import MOMENTS
from spec.reference import clip_by_global_norm, loss_and_gradients


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    place = tmp_path_factory.mktemp("mesh")
    finish(start(DEVICES, 1, "-m", "parity.suite.runs.distributed_jax", str(place), "short"))
    return place


@pytest.fixture(scope="module")
def found(out):
    return json.loads((out / "results_1.json").read_text())


@cache
def truth():
    return bounded_run(story_data(), FEW, UNEVEN)


@pytest.mark.parametrize("layout", SHORT, ids=lambda layout: layout.name)
def test_uneven_streams_stay_within_the_bound(found, layout):
    """Two legs: the second takes states over, of rows that were filled up."""
    exact, bound = truth()
    for name in (ALONE.name, layout.name):
        units = np.abs(np.array(found[name]["losses"])[:, 0] - exact) / bound
        assert units.max() <= 1.0, f"{name}: {units}"
    assert found[layout.name]["digests"] == found[ALONE.name]["digests"]


@cache
def first_norm() -> tuple[float, float]:
    """The norm of the first step's gradients before clipping, and the estimate of how far a float32 run may lie off."""
    batch = next_batch(story_data(), 0, UNEVEN)
    found = []
    for lift in (lambda x: np.asarray(x, np.float64), *(Rounding(run, 2.0**-24) for run in range(4))):
        params = {path: lift(x) for path, x in perturbed_parameters(SMALL, UNEVEN.seed, NOISE).items()}
        _, gradients, _ = loss_and_gradients(params, SMALL, batch.tokens, batch.labels, None, batch.resets)
        found.append(float(clip_by_global_norm(gradients, UNEVEN.grad_clip)[1]))
    return found[0], FACTOR * max(abs(norm - found[0]) for norm in found[1:])


@pytest.mark.parametrize("layout", [ALONE, *SHORT], ids=lambda layout: layout.name)
def test_the_gradients_are_those_of_all_rows(found, layout):
    """By their norm: the optimizer would forgive a factor."""
    exact, bound = first_norm()
    assert abs(found[layout.name]["losses"][0][1] - exact) <= bound


@pytest.mark.parametrize("layout", SHORT, ids=lambda layout: layout.name)
def test_states_have_the_rows_of_the_batch(found, out, layout):
    """And an evaluation is that of one device: as far off as rounding has moved the losses by then, for each."""
    states = np.load(out / f"states {layout.name}.npz")["states"]
    assert states.shape == (2, UNEVEN.batch_size, 16) and states.any(axis=(0, 2)).all()
    evaluated, alone = (np.array(found[name]["evaluated"]) for name in (layout.name, ALONE.name))
    assert (np.abs(evaluated - alone) <= 2 * truth()[1][-1]).all()


def test_no_device_holds_more_than_its_part(found):
    """Parameters and two moments, of which vectors alone are everywhere; whole they would be three times as much."""
    devices, parameters = found["held"]["devices"], found["held"]["parameters"]
    assert len({*devices}) == 1 and 3 * parameters / DEVICES < devices[0] < parameters


def test_a_scan_cut_in_time_stays_within_the_bound(out):
    scan, case = OPERATIONS["scan"], SCAN_CASES[1]
    assert_within(np.load(out / "scan.npz"), scan.truth(case), scan.bounds_in(case, "float32"), "scan cut in time")


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_of_narrow_products_are_added_up_wide(out, axis):
    """Operands of bfloat16 multiply exactly in float32; a term meets 7 additions on its device and 7 between the eight.

    A part rounded to bfloat16 before they are added would be off by up to 2^-9 of it.
    """
    x, _, grad_y = (array.astype(np.float64) for array in product_problem())
    found = np.load(out / "products.npz")[str(axis)]
    exact, size = grad_y.T @ x, np.abs(grad_y.T) @ np.abs(x)
    assert found.dtype == np.float32
    used = assert_within({"w": found}, {"w": exact}, {"w": rounding(14, 1, unit()) * size}, "weight in parts, bfloat16")
    assert used > TIGHT


CHANGES = {
    "a parameter": lambda x: x["parameters"]["b"].__setitem__(0, 1.5),
    "a parameter, by its sign": lambda x: x["parameters"]["b"].__setitem__(1, -0.0),
    "a dtype": lambda x: x["parameters"].update(b=x["parameters"]["b"].view(np.int32)),
    "a shape": lambda x: x["parameters"].update(b=x["parameters"]["b"][:, None]),
    "a first moment": lambda x: x["moments"][MOMENTS[0]]["a"].__setitem__(0, 1.5),
    "a second moment": lambda x: x["moments"][MOMENTS[1]]["b"].__setitem__(0, 1.5),
    "a state": lambda x: x["states"].__setitem__(0, 1.5),
    "states": lambda x: x.update(states=None),
    "the step": lambda x: x.update(step=4),
}
LACKING = {
    "parameters": lambda x: x["parameters"].clear(),
    "moments": lambda x: x["moments"].clear(),
    "one of the moments": lambda x: x["moments"].pop(MOMENTS[1]),
    "a moment of a parameter": lambda x: x["moments"][MOMENTS[0]].pop("b"),
}


def snapshot() -> dict:
    arrays = [{"a": np.full(3, fill, np.float32), "b": np.zeros(2, np.float32)} for fill in (1.0, 2.0, 3.0)]
    return {
        "parameters": arrays[0],
        "moments": dict(zip(MOMENTS, arrays[1:], strict=True)),
        "states": np.ones(2),
        "step": 3,
    }


def test_snapshots_are_compared_whole():
    """Moments, states and the step no less than the parameters."""
    assert same_bits(snapshot(), snapshot())
    for what, change in CHANGES.items():
        other = snapshot()
        change(other)
        assert not same_bits(snapshot(), other) and not same_bits(other, snapshot()), what
    for remove in LACKING.values():
        one, other = snapshot(), snapshot()
        remove(one)
        remove(other)
        with pytest.raises(ValueError, match="is not whole"):
            same_bits(one, other)


def test_a_mesh_is_as_large_as_there_are_devices():
    assert mesh_sizes(8, "ddp", 1, None) == (8, 1, 1)
    assert mesh_sizes(8, "fsdp", 2, None) == (1, 4, 2)
    assert mesh_sizes(8, "ddp", 1, "sequence=4,data=2") == (2, 1, 4)
    for mesh in ("data=3", "data=4", "data=2,data=4", "data=4,data=8", "rows=8", "", "data=8,fsdp", "data=16"):
        with pytest.raises(ValueError, match="must read as"):
            mesh_sizes(8, "ddp", 1, mesh)
    with pytest.raises(ValueError, match="needs a multiple"):
        mesh_sizes(8, "ddp", 3, None)
    with pytest.raises(ValueError, match="says it all"):
        mesh_sizes(8, "fsdp", 1, "data=8")


@pytest.mark.parametrize("timeout", [0.5, -1.0, float("nan"), 1e12])
def test_a_time_to_wait_that_is_none_is_refused_first(timeout):
    with pytest.raises(ValueError, match="--rank-timeout must be from 1 to"):
        distributed.initialize("ddp", 1, timeout)


@pytest.mark.parametrize(
    "address, number, expected",
    [
        ("host:1234", "1", {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 1,
                            "cluster_detection_method": "deactivate"}),
        ("auto", "1", {}),
        ("host", "1", "process 1 of 2 at host cannot be; use HOST:PORT"),
        ("host:1234", "2", "process 2 of 2 at host:1234 cannot be; use HOST:PORT"),
        ("host:1234", "x", "needs whole JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
    ],
)  # fmt: skip
def test_processes_find_each_other_as_the_environment_says(address, number, expected, monkeypatch):
    """By an address, or by what the cluster tells JAX itself, which an address would hide."""
    seen = []
    for name, value in {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": "2", "PROCESS_ID": number}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    monkeypatch.setattr(distributed.jax.config, "update", lambda *_: None)

    def initialize(**given):
        seen.append((given, os.environ.get("JAX_COORDINATOR_ADDRESS")))

    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)):
            distributed._initialize(30.5)
        return
    distributed._initialize(30.5)
    times = {"initialization_timeout": 31, "heartbeat_timeout_seconds": 31}
    assert seen == [(expected | times, None if address == "auto" else address)]
