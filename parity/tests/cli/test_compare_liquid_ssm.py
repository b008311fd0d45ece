"""`liquidnet compare` finds a fault of a Liquid SSM in its own tensor and names it, and finds none where none is."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.layer_diff.activations import names
from parity.proof.layer_diff.diff import RUNS, first_outside, judge
from parity.proof.layer_diff.weights import differences, tensor_of
from parity.proof.operations.liquid_ssm import DENSE, DIAGONAL
from parity.proof.problems.cases import CONFIG, perturbed_parameters
from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.parameters import parameter_table
from spec.presets import PRESETS
from spec.reference import activations
from tools.cli.main import main

# As long as `auto` needs to take the parallel method of torch.
TOKENS = np.random.default_rng(0).integers(0, DENSE.vocab_size, size=(2, 17))
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(adapters.missing(name)), reason=str(adapters.missing(name))))
    for name in adapters.FRAMEWORKS
]
# What does not depend on the backend: a model is compiled in a second or two by JAX.
ANY = next((name for name in adapters.FRAMEWORKS if not adapters.missing(name)), "none")
BOTH = pytest.mark.skipif(any(map(adapters.missing, adapters.FRAMEWORKS)), reason="compares both backends")
STATES = pytest.mark.parametrize("config", [DENSE, DIAGONAL], ids=lambda config: config.state)


def parameters_of(config):
    return perturbed_parameters(config, seed=1)


def recorder_of(backend):
    return importlib.import_module(f"parity.proof.layer_diff.activations_{backend}")


def judged(config, recorded):
    return judge(parameters_of(config), config, TOKENS, [recorded], RUNS)


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint whose configuration and parameters are as asked, and returns its path."""

    def write(name, config, **changed):
        write_checkpoint(tmp_path / name, Checkpoint(config, parameters_of(config) | changed))
        return tmp_path / name

    return write


@pytest.mark.parametrize("backend", BACKENDS)
@STATES
def test_recorded_activations_are_the_references(backend, config):
    recorder, truth = recorder_of(backend), activations(parameters_of(config), config, TOKENS)
    recorded = recorder.activations(recorder.load(config, parameters_of(config)), TOKENS)
    assert list(recorded) == list(truth) == names(config)
    assert {name: x.shape for name, x in recorded.items()} == {name: x.shape for name, x in truth.items()}
    assert {x.dtype for x in recorded.values()} == {np.dtype(np.float32)}
    rows = judged(config, recorded)
    assert first_outside(rows) is None
    # Neither judgement is blind.
    assert max(row.whole[0].units for row in rows) > 0.05 and max(row.alone[0].units for row in rows) > 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fault_in_a_live_model_is_its_layers(backend):
    recorder = recorder_of(backend)
    model = recorder.load(DIAGONAL, parameters_of(DIAGONAL))
    model.blocks[1].mixer.config = replace(DIAGONAL, eta=0.49)
    rows = judged(DIAGONAL, recorder.activations(model, TOKENS))
    assert first_outside(rows).tensor == "blocks.1.mixer.states"
    alone = {row.tensor for row in rows if row.alone[0].units > 1.0}
    assert {"blocks.1.mixer.states"} <= alone <= {"blocks.1.mixer.states", "blocks.1.mixer.state"}


@pytest.mark.parametrize("config", [CONFIG, DENSE, DIAGONAL], ids=["liquidnet", "dense", "diagonal"])
def test_a_parameter_shows_first_where_it_is_said_to(config):
    for row in parameter_table(config):
        if row.path.startswith("blocks.0."):
            usual = parameters_of(config)
            recorded = activations({**usual, row.path: usual[row.path] + np.float32(0.5)}, config, TOKENS[:, :5])
            found = judge(usual, config, TOKENS[:, :5], [recorded], runs=1)
            first = first_outside(found)
            assert first.tensor == tensor_of(config, row.path) and first.alone[0].units > 1.0, row.path


@STATES
def test_swapped_rows_of_unequal_parts_are_located_and_named(checkpoint, compare, config):
    path = "blocks.1.mixer.input.weight"
    drive, tau = np.split(parameters_of(config)[path], [config.d_state])
    assert len(drive) != len(tau)
    b = checkpoint("b", config, **{path: np.concatenate([tau, drive])})
    code, report = compare(f"{ANY}:{checkpoint('a', config)}", b)
    assert code == 1 and f"{path} of B is A's with its rows as tau | drive in place of drive | tau" in report
    assert f"blocks.1.mixer.input of B ({ANY}) is the first tensor outside its bound" in report
    assert "blocks.1.mixer.input: drive | tau = W z; every tensor before it is within its bound" in report


@pytest.mark.parametrize(
    "config, path, change, words",
    [
        (DENSE, "blocks.0.mixer.input.weight", lambda x: x[::-1], "differs in 48 of 56 values"),
        (
            replace(DENSE, d_tau=4),
            "blocks.0.mixer.input.weight",
            lambda x: np.stack([x[:4], x[4:]], 1).reshape(8, 8),
            "is A's with its rows as drive, tau in turn in place of drive | tau",
        ),
        (
            DENSE,
            "blocks.1.mlp.input.weight",
            lambda x: np.concatenate([x[12:], x[:12]]),
            "is A's with its rows as up | gate in place of gate | up",
        ),
        (DIAGONAL, "blocks.0.mixer.log_tau", lambda x: np.float32(0.5) * x, "is A's times 0.5"),
    ],
)
def test_how_weights_differ_is_said(config, path, change, words):
    usual = parameters_of(config)
    found = differences(config, usual, {**usual, path: change(usual[path])})
    assert list(found) == [path] and words in found[path]


def test_the_parts_of_a_fused_matrix_are_all_of_it():
    for config in (*PRESETS.values(), DENSE, DIAGONAL):
        for row in parameter_table(config):
            parts = row.parts
            assert " | ".join(parts) == row.axes[0] and sum(parts.values()) == row.shape[0], row


@pytest.mark.parametrize("name, value", [("eta", 0.25), ("target_dt", 0.01), ("hippo", "as_printed")])
def test_a_constant_that_differs_is_reported_and_blamed(checkpoint, compare, name, value):
    a, b = checkpoint("a", DENSE), checkpoint("b", replace(DENSE, **{name: value}))
    code, report = compare(f"{ANY}:{a}", b)
    words = f"{name} is {getattr(DENSE, name)} in A and {value} in B"
    assert code == 1 and f"configuration: {words}" in report
    assert f"blocks.0.mixer.states of B ({ANY}) is the first tensor outside its bound" in report
    assert f"\n  {words}\n" in report


def test_the_skip_that_differs_is_blamed_in_the_norm_that_its_sum_enters(checkpoint, compare):
    path = "blocks.1.mixer.skip"
    b = checkpoint("b", DIAGONAL, **{path: np.zeros_like(parameters_of(DIAGONAL)[path])})
    code, report = compare(f"{ANY}:{checkpoint('a', DIAGONAL)}", b)
    assert code == 1 and f"blocks.1.mlp_norm of B ({ANY}) is the first tensor outside its bound" in report
    assert f"{path} of B is zero" in report.split("is the first tensor")[1]


@BOTH
@STATES
def test_one_checkpoint_in_the_formats_of_both_backends_agrees(checkpoint, compare, tmp_path, config):
    checkpoint("a", config)
    for target in ("a.pt", "a.msgpack"):
        main(["convert", str(tmp_path / "a"), str(tmp_path / target)])
    code, report = compare(f"torch:{tmp_path / 'a.pt'}", f"jax:{tmp_path / 'a.msgpack'}", "--json", tmp_path / "found")
    assert code == 0 and "every tensor is within its bound" in report
    found = json.loads((tmp_path / "found").read_text())
    assert [row["tensor"] for row in found["rows"]] == names(config)
    assert {letter: model["backend"] for letter, model in found["sides"].items()} == {"A": "torch", "B": "jax"}


def test_models_that_cannot_be_compared_are_refused_in_one_line(refused, checkpoint):
    a, other = f"{ANY}:{checkpoint('a', DENSE)}", checkpoint("other", CONFIG)
    assert "models of different families: liquid_ssm and liquidnet" in refused("compare", a, str(other))
    diagonal = checkpoint("b", replace(DIAGONAL, d_state=6, d_tau=5))
    words = "models of different shapes: d_state 4 and 6, d_tau 3 and 5, state dense and diagonal"
    assert words in refused("compare", a, str(diagonal))
