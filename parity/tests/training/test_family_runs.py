"""Whole runs of every family that has no tests of its own for them: resumed, handed over, converted, generated from."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.problems.cases import perturbed_parameters
from parity.suite.runs.trajectories import Segment, hand_over
from parity.suite.runs.trajectory_drift import NOISE, OTHERS, SMALL_TRAINING, bounded_run, story_data
from spec.checkpoint.format import read_checkpoint
from spec.mixers import families
from spec.reference import forward
from tools.cli.main import main

SIZES = ("--d-model", "8", "--d-ff", "12", "--n-layers", "2", "--batch-size", "2", "--seq-len", "16")
LEARN = (*SIZES, "--steps", "4", "--warmup-steps", "1", "--eval-windows", "4", "--checkpoint-every", "2")
FAMILY = pytest.mark.parametrize("name", OTHERS)
STEPS = 4


def train(backend, name, data, out, *more):
    """A segment of a run by command line; its step losses so far."""
    preset = next(iter(families()[name].presets))
    with pytest.raises(SystemExit) as stop:
        main(["train", backend, "--preset", preset, "--data", str(data), "--out", str(out), *LEARN, *map(str, more)])
    assert stop.value.code == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def assert_same(one, other):
    """Two checkpoints have the same weights, moments and states, bit for bit."""
    assert (one.config, one.state) == (other.config, other.state)
    found, expected = ({"": x.parameters, **x.moments, "states": {"": x.states}} for x in (one, other))
    for kind, arrays in expected.items():
        assert found[kind].keys() == arrays.keys()
        for path, array in arrays.items():
            np.testing.assert_array_equal(found[kind][path], array, err_msg=f"{kind} {path}")


@FAMILY
def test_a_stream_resumes_to_the_same_bits_and_every_format_keeps_them(name, small_data, tmp_path):
    pytest.importorskip("torch", reason="the run is PyTorch's")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train("torch", name, small_data, whole, "--stream")
    assert train("torch", name, small_data, parts, "--stream", "--stop-at", 2) == expected[:2]
    assert train("torch", name, small_data, parts, "--stream", "--resume") == expected
    assert_same(read_checkpoint(parts), read_checkpoint(whole))
    assert read_checkpoint(whole).states is not None
    places = [whole, tmp_path / "one.pt", tmp_path / "two"]
    if not adapters.missing("jax"):
        places.insert(2, tmp_path / "three.msgpack")
    for source, target in pairwise(places):
        main(["convert", str(source), str(target)])
    assert_same(read_checkpoint(places[-1]), read_checkpoint(whole))


@pytest.mark.long
@FAMILY
def test_a_run_handed_over_stays_within_the_bound(name, tmp_path, report):
    """Half of it in each backend, in both orders, beside the float64 reference."""
    for backend in adapters.FRAMEWORKS:
        if adapters.missing(backend):
            pytest.skip(str(adapters.missing(backend)))
    truth, bound = bounded_run(story_data(), STEPS, SMALL_TRAINING, model=OTHERS[name])
    for first, second in (("torch", "jax"), ("jax", "torch")):
        segments = (
            Segment(one, story_data(), SMALL_TRAINING, model=OTHERS[name], noise=NOISE) for one in (first, second)
        )
        (tmp_path / first).mkdir()
        losses = hand_over(*segments, STEPS // 2, tmp_path / first)
        units = float((np.abs(losses - truth) / bound).max())
        report(f"{name}, {first} to {second}: {STEPS} steps at {units:.2f} of the bound")
        assert 0.0 < units <= 1.0


@FAMILY
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.long)])
def test_a_text_written_token_by_token_is_that_of_one_pass(backend, name):
    """Each token is the likeliest one that the reference sees after all tokens before it, prompt and state included."""
    if adapters.missing(backend):
        pytest.skip(str(adapters.missing(backend)))
    params, prompt = perturbed_parameters(OTHERS[name], 3), np.array([[5, 200, 31], [7, 7, 1]])
    text = adapters.load(backend).generate(params, OTHERS[name], prompt, 12, temperature=0.0)
    assert text.shape == (2, 12)
    np.testing.assert_array_equal(text[:, :3], prompt)
    logits = forward(params, OTHERS[name], text)[0]
    np.testing.assert_array_equal(text[:, 3:], logits[:, 2:-1].argmax(axis=-1))
