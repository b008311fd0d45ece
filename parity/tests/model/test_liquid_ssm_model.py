"""Whole Liquid SSMs, dense and diagonal, in either backend: in pieces, token by token, over a hand-over, with noise."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import assert_within, double_bound, select
from parity.proof.operations import OPERATIONS, check, expected
from parity.proof.operations.liquid_ssm import DENSE, DIAGONAL
from parity.proof.problems.cases import CONFIG as PLAIN
from parity.proof.problems.cases import ModelCase, perturbed_parameters
from parity.suite.runs.trajectories import Segment, hand_over
from parity.suite.runs.trajectory_drift import NOISE, SMALL_SSM, SMALL_TRAINING, bounded_run, story_data
from spec.data import BatchShard, next_batch, with_side_inputs
from spec.reference import forward
from spec.sampling import Sampling, generate

CONFIGS = pytest.mark.parametrize("config", [DENSE, DIAGONAL], ids=lambda config: config.state)
STEPS = 8


def run(adapter, case, start=0, stop=None, states=None, **options):
    """(logits, last states) of some tokens of a case."""
    arrays = case.arrays()
    parts = (x[:, start:stop] for x in (arrays.tokens, arrays.resets, arrays.padding))
    tokens, resets, padding = parts
    states = arrays.states if states is None else states
    whole = OPERATIONS["ssm_model"].side(case)
    side = {"noise": whole["noise"][:, :, start:stop], "dt_scale": whole["dt_scale"][:, start:stop]}
    return adapter.model(case.parameters, case.config, tokens, states, resets, padding, side=side, **options)


@CONFIGS
@pytest.mark.parametrize("cuts", [(17,), (1, 2, 20), tuple(range(1, 31))], ids=["two parts", "four", "token by token"])
def test_the_parts_of_a_text_are_the_text(adapter, config, cuts):
    """Whatever is read at a time, and so decode is prefill: within the bound of the whole text in float64."""
    case = ModelCase(31, "some", "left", "none", False, 5, config=config)
    states, logits = None, []
    for start, stop in zip((0, *cuts), (*cuts, 31), strict=True):
        some, states = run(adapter, case, start, stop, states, compute_dtype="float64")
        logits.append(some)
    truth, bounds = expected("ssm_model", case, "float64")
    found = {"logits": np.concatenate(logits, axis=1), "last": states}
    assert_within(found, *select(found, truth, bounds), f"in parts, {adapter.NAME}")


@CONFIGS
def test_a_reset_starts_a_fresh_document(adapter, config):
    """No bit of what stands before it gets through, the initial state included."""
    case, at = ModelCase(31, "none", "none", "none", False, 6, config=config), 12
    arrays, before = case.arrays(), ModelCase(31, "some", "none", "none", False, 7, config=config).arrays()
    resets = np.broadcast_to(np.arange(31) == at, arrays.resets.shape)
    tokens = np.where(np.arange(31) < at, before.tokens, arrays.tokens)
    # By the stepping method: how often `parallel` goes over a row depends on all of it.
    options = {"method": "sequential"}
    one, last = adapter.model(case.parameters, config, arrays.tokens, arrays.states, resets, arrays.padding, **options)
    two, last_too = adapter.model(case.parameters, config, tokens, before.states, resets, arrays.padding, **options)
    np.testing.assert_array_equal(one[:, at:], two[:, at:])
    np.testing.assert_array_equal(last, last_too)
    logits, last = adapter.model(
        case.parameters, config, tokens, before.states, resets, arrays.padding, compute_dtype="float64"
    )
    truth = dict(zip(("logits", "last"), forward(case.parameters, config, arrays.tokens[:, at:]), strict=True))
    limits = {name: double_bound(x) for name, x in truth.items()}
    assert_within({"logits": logits[:, at:], "last": last}, truth, limits, f"fresh document, {adapter.NAME}")


@CONFIGS
def test_padding_changes_nothing(adapter, config):
    """Whatever stands there, neither logits of other tokens nor states differ by a bit."""
    case = ModelCase(31, "none", "left", "none", False, 8, config=config)
    arrays = case.arrays()
    other = np.where(arrays.padding, (arrays.tokens + 1) % config.vocab_size, arrays.tokens).astype(np.int32)
    found = [
        adapter.model(
            case.parameters, config, tokens, arrays.states, arrays.resets, arrays.padding, method="sequential"
        )
        for tokens in (arrays.tokens, other)
    ]
    np.testing.assert_array_equal(*(logits[~arrays.padding] for logits, _ in found))
    np.testing.assert_array_equal(*(last for _, last in found))


@CONFIGS
def test_a_sentence_goes_on_in_the_other_backend(config):
    """Ten tokens in one backend, ten in the other: the text of either alone."""
    for name in adapters.FRAMEWORKS:
        pytest.importorskip(name, reason="hands a state over between both backends")
    params, prompt = perturbed_parameters(config, 5), np.array([[1, 2, 3]])

    def text(*order: str) -> list[int]:
        calls = iter(range(100))

        def step(tokens, states):
            adapter = adapters.load(order[next(calls) // 10 % len(order)])
            logits, states = adapter.model(params, config, tokens.astype(np.int32), states)
            return logits[:, -1], states

        return [int(tokens[0]) for tokens in itertools.islice(generate(step, prompt, Sampling(seed=3)), 20)]

    assert text("jax") == text("torch", "jax") == text("jax", "torch") == text("torch")
    assert len(set(text("torch"))) > 3


@pytest.mark.long
@pytest.mark.parametrize("state", ["dense", "diagonal"])
def test_a_run_goes_over_to_the_other_backend(state, tmp_path, report):
    """Through a native and a neutral checkpoint, with noise, within the bound of the float64 reference."""
    for name in adapters.FRAMEWORKS:
        pytest.importorskip(name, reason="hands a run over between both backends")
    model, data = replace(SMALL_SSM, state=state), story_data()
    truth, bound = bounded_run(data, STEPS, SMALL_TRAINING, model=model)
    for order in (("torch", "jax"), ("jax", "torch")):
        segments = [Segment(name, data, SMALL_TRAINING, model=model, noise=NOISE) for name in order]
        (tmp_path / order[0]).mkdir()
        losses = hand_over(*segments, STEPS // 2, tmp_path / order[0])
        units = float((np.abs(losses - truth) / bound).max())
        report(f"{state}, {' -> '.join(order)}: {STEPS} steps with noise at {units:.2f} of the bound")
        assert units <= 1.0
    silent = bounded_run(data, STEPS, SMALL_TRAINING, model=replace(model, exploration_rate=0.0))[0]
    assert np.abs(silent - truth).max() > 10.0 * bound.max()


@pytest.mark.long
@CONFIGS
def test_half_a_precision_keeps_states_whole(adapter, config):
    """Products of eight bits: states in float32, a loss near that of float32, gradients of everything."""
    case = ModelCase(20, "none", "none", "none", False, 9, config=config)
    arrays = case.arrays()
    exact = adapter.loss_and_gradients(case.parameters, config, *arrays)
    found = adapter.loss_and_gradients(case.parameters, config, *arrays, compute_dtype="bfloat16")
    assert found[3].dtype == found[2].dtype == np.float32
    # Logits near 1 are off by a few roundings of eight bits.
    assert found[0] != exact[0] and abs(found[0] - exact[0]) < 2.0**-5
    assert all(np.isfinite(x).all() and x.any() for x in found[1].values())


@CONFIGS
def test_what_is_made_again_is_the_same(adapter, config):
    """Gradients with recomputed blocks, noise and gaps included."""
    case = ModelCase(31, "some", "left", "some", False, 5, config=config)
    check("ssm_model", adapter.NAME, "auto", "float64", case, remat=True)


def test_noise_is_that_of_the_sample():
    """Whoever has a row, in whatever step it comes; and every sample has its own, as every layer and token."""
    data, training = story_data(), SMALL_TRAINING
    whole = with_side_inputs(next_batch(data, 8, training), SMALL_SSM, training, 8).side["noise"]
    parts = [
        with_side_inputs(next_batch(data, 8, training, shard), SMALL_SSM, training, 8, shard).side["noise"]
        for shard in (BatchShard(0, 3), BatchShard(1, 3), BatchShard(2, 3))
    ]
    assert whole.shape == (4, 16, 2, 6) and whole.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    following = with_side_inputs(next_batch(data, 12, training), SMALL_SSM, training, 12).side["noise"]
    assert len(np.unique([whole, following])) == 2 * whole.size
    assert abs(whole.mean()) < 5.0 / np.sqrt(whole.size) and abs(whole.std() - 1.0) < 5.0 / np.sqrt(whole.size)
    assert not with_side_inputs(
        next_batch(data, 8, training), replace(SMALL_SSM, exploration_rate=0.0), training, 8
    ).side


def test_noise_is_for_training_alone(adapter):
    """Evaluation of the same weights is the same whatever the rate."""
    engine = adapters.load_module(adapter.NAME, "training.engine").Engine
    batch = next_batch(story_data(), 0, SMALL_TRAINING)
    told = []
    for rate in (0.0, 0.5):
        one = engine(replace(SMALL_SSM, exploration_rate=rate), SMALL_TRAINING)
        one.load(perturbed_parameters(SMALL_SSM, 1), {}, 0)
        told.append(one.evaluate(batch)[0])
    assert told[0] == told[1]


def test_side_inputs_are_keywords_of_every_call(adapter):
    """`loss`, `logits` and `hidden` take them by the names of the model's call, or together as `side`."""
    model = adapters.load_module(adapter.NAME, "model").build(DIAGONAL)
    (tokens,) = (
        adapter._tensors(np.zeros((2, 5), np.int64)) if adapter.NAME == "torch" else (np.zeros((2, 5), np.int32),)
    )
    scale = np.full((2, 5), 0.5, np.float32)
    (gaps,) = adapter._tensors(scale) if adapter.NAME == "torch" else (scale,)
    for call in (model.logits, model.hidden, lambda tokens, **given: model.loss(tokens, tokens, **given)):
        last, same = (call(tokens, **given)[1] for given in ({"gaps": gaps}, {"side": {"dt_scale": gaps}}))
        assert (np.asarray(last.tolist()) == np.asarray(same.tolist())).all()
        with pytest.raises(ValueError, match="one and the same"):
            call(tokens, gaps=gaps, dt_scale=gaps)
    with pytest.raises(ValueError, match="takes no side input 'gaps'"):
        adapters.load_module(adapter.NAME, "model").build(PLAIN).loss(tokens, tokens, gaps=gaps)
