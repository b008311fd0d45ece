"""Engines whose rows read on: states carried from step to step, a whole text as one sequence, and micro-batches."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import in_units
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from parity.proof.problems.cases import perturbed_parameters
from spec import LiquidNetConfig
from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.config import TrainingConfig
from spec.data import Batch, Dataset, document_resets, next_batch, open_data, validation_stream
from spec.inputs import IGNORED_LABEL
from spec.optimizer import MOMENTS, decayed_paths
from spec.reference import adamw_step, clip_by_global_norm, forward, loss_and_gradients
from tools.cli.main import main
from tools.training.evaluate import mean_loss, total_nats

# One block: a compilation takes seconds. Two where it matters that states are stacked over layers.
CONFIG = LiquidNetConfig(vocab_size=13, d_model=8, d_ff=12, n_layers=1, max_seq_len=8)
DEEP = replace(CONFIG, n_layers=2)
END = 12
# A large eps: with a small one AdamW enlarges the rounding of small gradients.
TRAINING = TrainingConfig(batch_size=3, seq_len=7, adam_eps=1e-2, weight_decay=0.5, grad_clip=0.5, stream=True)
RATES = (0.05, 0.1, 0.02, 0.03, 0.04)
U = 2.0**-24


def made_up_data() -> Dataset:
    """Text for three windows a lane."""
    draw = np.random.default_rng(0).integers
    parts = (draw(0, CONFIG.vocab_size, count).astype(np.uint16) for count in (75, 61))
    return Dataset(*parts, {"vocab_size": CONFIG.vocab_size, "end_of_text_id": END}, "")


def stream_steps(steps: int) -> list[Batch]:
    data = made_up_data()
    return [next_batch(data, step * TRAINING.batch_size, TRAINING) for step in range(steps)]


@cache
def cached_engine(name: str, config: LiquidNetConfig, training: TrainingConfig, micro_batch: int | None):
    return adapters.load_module(name, "training.engine").Engine(config, training, micro_batch=micro_batch)


@pytest.fixture(params=sorted(adapters.FRAMEWORKS))
def engine(request):
    """Gives the training engine of a backend with noise on every parameter, as if nothing had been trained."""
    reason = adapters.missing(request.param)
    if reason:
        pytest.skip(reason)

    def give(config=CONFIG, training=TRAINING, micro_batch=None):
        made = cached_engine(request.param, config, training, micro_batch)
        params = perturbed_parameters(config, 1)
        made.load(params, {name: {path: np.zeros_like(x) for path, x in params.items()} for name in MOMENTS}, 0)
        made.load_states(None)
        return made

    give.name = request.param
    return give


def reference_run(batches: list[Batch], carry: bool = True):
    """(loss, norm) of each step, the parameters, both moments and the states after the last, in float64."""
    params = {path: x.astype(np.float64) for path, x in perturbed_parameters(CONFIG, 1).items()}
    moments = [{path: np.zeros_like(x) for path, x in params.items()} for _ in MOMENTS]
    told, states, decayed = [], None, decayed_paths(CONFIG)
    for step, (batch, rate) in enumerate(zip(batches, RATES, strict=True), start=1):
        given = states if carry else None
        loss, gradients, _ = loss_and_gradients(params, CONFIG, batch.tokens, batch.labels, given, batch.resets)
        states = forward(params, CONFIG, batch.tokens, given, batch.resets)[1]
        gradients, norm = clip_by_global_norm(gradients, TRAINING.grad_clip)
        params, *moments = adamw_step(params, gradients, *moments, step, rate, TRAINING, decayed)
        told.append((loss, norm))
    return np.array(told), params, dict(zip(MOMENTS, moments, strict=True)), states


def assert_close(found, truth):
    """To 1e-5 of the largest entry: rounding is some 1e-7 of it, a state that is not carried some 1e-2."""
    for path, expected in truth.items():
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=path)


def assert_same(one, other):
    """Bit for bit: what was told, parameters, moments and states."""
    assert one[0] == other[0]
    for found, expected in zip(one[1:], other[1:], strict=True):
        assert found.keys() == expected.keys()
        for path in expected:
            np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def everything(made, told):
    parameters, moments = made.dump()
    return told, parameters, *(moments[name] for name in MOMENTS), {"states": made.dump_states()}


def test_a_stream_takes_the_steps_of_a_reference_that_carries_its_states(engine):
    """Over an epoch's end; what goes back through the states of the step before is no gradient of this one."""
    batches, made = stream_steps(5), engine()
    assert [batch.resets[:, 0].all() for batch in batches] == [True, False, False, True, False]
    expected, params, moments, states = reference_run(batches)
    forgetful = reference_run(batches, carry=False)[0]
    assert (np.abs(forgetful - expected)[[1, 2, 4]] > 1e-3).any(axis=1).all()
    assert made.dump_states() is None
    told = [made.train_step(batch, rate) for batch, rate in zip(batches, RATES, strict=True)]
    np.testing.assert_allclose(told, expected, rtol=1e-5)
    assert_close(made.dump()[0], params)
    for name in MOMENTS:
        assert_close(made.dump()[1][name], moments[name])
    assert made.dump_states().shape == (1, 3, 8) and made.dump_states().dtype == np.float32
    assert_close({"states": made.dump_states()}, {"states": states})


def test_a_stream_resumes_to_the_same_bits(engine):
    """Stopped after two of five steps, and after none: in the middle of a lane and where it starts."""
    batches, whole = stream_steps(5), engine()
    told, stored = [], []
    for batch, rate in zip(batches, RATES, strict=True):
        stored.append((*whole.dump(), whole.dump_states()))
        told.append(whole.train_step(batch, rate))
    expected = everything(whole, told)
    other = adapters.load_module(engine.name, "training.engine").Engine(CONFIG, TRAINING)
    other.train_step(batches[2], 0.3)
    for start in (2, 0):
        parameters, moments, states = stored[start]
        other.load(parameters, moments, start)
        other.load_states(states)
        found = [other.train_step(batch, rate) for batch, rate in zip(batches[start:], RATES[start:], strict=True)]
        assert_same(everything(other, [*told[:start], *found]), expected)


def test_no_state_goes_over_to_the_next_lane(engine):
    """Whatever the states are, a step where lanes start has the same bits; in the middle of a lane it has not."""
    batches, found = stream_steps(3), []
    shape = (CONFIG.n_layers, TRAINING.batch_size, CONFIG.d_model)
    for states in (np.zeros(shape, np.float32), 10 * np.random.default_rng(0).standard_normal(shape, np.float32)):
        for batch in (batches[0], batches[1]):
            made = engine()
            made.load_states(states)
            found.append(everything(made, made.train_step(batch, 0.1)))
    assert_same(found[0], found[2])
    assert found[1][0] != found[3][0]


def test_a_step_that_is_not_finite_leaves_states_and_parameters(engine):
    made, (first, second, _) = engine(), stream_steps(3)
    made.train_step(first, 0.1)
    parameters, moments = made.dump()
    parameters["final_norm.weight"] = np.full_like(parameters["final_norm.weight"], np.inf)
    made.load(parameters, moments, 1)
    before = everything(made, None)
    told = made.train_step(second, 0.1)
    assert not np.isfinite(told).all()
    assert_same(everything(made, None), before)


# Without decay of the moments the first of them is the gradient, exactly; 1 - beta2^t is exact too.
WIDE = replace(TRAINING, batch_size=12, beta1=0.0, beta2=0.5, grad_clip=0.0)


@cache
def wide_problem():
    """Twelve rows with labels in some and none in others, their states, and what float64 makes of them."""
    random, shape = np.random.default_rng(3), (WIDE.batch_size, WIDE.seq_len)
    tokens, labels = random.integers(0, CONFIG.vocab_size, (2, *shape)).astype(np.int32)
    labels[random.random(shape) < np.linspace(0.0, 1.0, WIDE.batch_size)[:, None]] = IGNORED_LABEL
    labels[3:5] = IGNORED_LABEL
    batch = Batch(tokens, labels, random.random(shape) < 0.1)
    return batch, random.standard_normal((DEEP.n_layers, WIDE.batch_size, DEEP.d_model), np.float32)


@cache
def wide_truth(config: LiquidNetConfig, stream: bool):
    """Loss, gradients and states of the wide problem in float64, and how far float32 may be from each."""
    batch, states = wide_problem()
    params = perturbed_parameters(config, 1)

    def compute(lift):
        lifted = {path: lift(x) for path, x in params.items()}
        given = lift(states[: config.n_layers]) if stream else None
        loss, gradients, _ = loss_and_gradients(lifted, config, batch.tokens, batch.labels, given, batch.resets)
        last = {"states": forward(lifted, config, batch.tokens, given, batch.resets)[1]} if stream else {}
        return {"loss": np.asarray(loss), **last, **gradients}

    truth = compute(lambda x: np.asarray(x, np.float64))
    return truth, estimate(compute, truth, U)


@pytest.mark.parametrize("config, micro_batch, stream", [(CONFIG, 1, False), (CONFIG, 2, True), (DEEP, 5, True)])
def test_micro_batches_are_the_whole_batch(engine, config, micro_batch, stream, report):
    """Loss, gradients and states within the calibrated estimate of rounding, whatever the number of rows at a time.

    The update g / (sqrt(g^2) + eps) changes by at most 1 / eps of what the gradient does, and each of its ten
    operations rounds: 16 u of rate (1 + weight decay |theta|), and u of theta, allow for them.
    """
    (batch, states), (truth, bound) = wide_problem(), wide_truth(config, stream)
    rate, training = 0.05, replace(WIDE, stream=stream)
    made = engine(config, training, micro_batch)
    made.load_states(states[: config.n_layers] if stream else None)
    loss, _ = made.train_step(batch, rate)
    parameters, moments = made.dump()
    found = {"loss": np.asarray(loss), **moments["first_moment"], **({"states": made.dump_states()} if stream else {})}
    assert found.keys() == truth.keys() and (stream or made.dump_states() is None)
    units = {name: in_units(found[name], truth[name], bound[name]).max() for name in truth}
    theta = {path: x.astype(np.float64) for path, x in perturbed_parameters(config, 1).items()}
    zero, decayed = {path: np.zeros_like(x) for path, x in theta.items()}, decayed_paths(config)
    gradients = {path: truth[path] for path in theta}
    updated, *_ = adamw_step(theta, gradients, zero, zero, 1, rate, training, decayed)
    for path, expected in updated.items():
        of_rounding = 16 * U * rate * (1.0 + training.weight_decay * np.abs(theta[path])) + U * np.abs(expected)
        of_update = rate / training.adam_eps * bound[path] + of_rounding
        units[f"{path} after"] = in_units(parameters[path], expected, of_update).max()
    worst = max(units, key=units.__getitem__)
    report(f"{engine.name}, {micro_batch} rows at a time: {units[worst]:.2g} of the estimate ({worst})")
    assert units[worst] <= 1.0, f"{worst} is off by {units[worst]:.3g} units of its bound"


def test_a_micro_batch_has_rows(engine):
    with pytest.raises(ValueError, match="micro_batch must be an integer of at least 1, got 0"):
        engine(micro_batch=0)


def test_the_loss_of_a_text_does_not_depend_on_the_pieces(engine):
    """Nats of the whole sequence at once in float64, and where nothing is carried another number."""
    made, data = engine(), made_up_data()
    tokens, labels = data.val[None, :-1].astype(np.int32), data.val[None, 1:].astype(np.int32)
    params, resets = perturbed_parameters(CONFIG, 1), document_resets(data.val[None, :-1], END)
    expected, *_ = loss_and_gradients(params, CONFIG, tokens, labels, resets=resets)
    for size in (10, 100):
        found = mean_loss(made, validation_stream(data, size, 10**9), carry=True)
        assert found == pytest.approx(expected, rel=1e-5), size
    assert total_nats(made, validation_stream(data, 10, 47), carry=True)[1] == 47
    assert abs(mean_loss(made, validation_stream(data, 10, 10**9)) - expected) > 1e-3 * expected
    states = None
    for batch in validation_stream(data, 10, 10**9):
        _, states = made.evaluate(batch, states)
    last = forward(params, CONFIG, tokens, resets=resets)[1]
    np.testing.assert_allclose(np.asarray(states), last, rtol=0, atol=1e-5 * np.abs(last).max())


@pytest.mark.parametrize("backend", sorted(adapters.FRAMEWORKS))
def test_evaluate_reads_the_validation_part_as_one_sequence(backend, small_data, tmp_path, capsys):
    if adapters.missing(backend):
        pytest.skip(adapters.missing(backend))
    data, config = open_data(small_data), replace(CONFIG, vocab_size=257)
    params = perturbed_parameters(config, 1)
    write_checkpoint(tmp_path / "model", Checkpoint(config, params, tokenizer=data.tokenizer))
    command = ["evaluate", "--checkpoint", str(tmp_path / "model"), "--data", str(small_data), "--backend", backend]
    told = []
    for flags in ([], ["--seq-len", "100", "--windows", "1"]):
        main([*command, "--stream", *flags])
        told.append(json.loads(capsys.readouterr().out))
    tokens, labels = (data.val[None, part].astype(np.int32) for part in (slice(None, -1), slice(1, None)))
    resets = document_resets(tokens, data.end_of_text_id)
    expected, *_ = loss_and_gradients(params, config, tokens, labels, resets=resets)
    assert told[0]["tokens"] == len(data.val) - 1 and told[0]["step"] == 0
    assert told[0]["val_loss"] == pytest.approx(expected, rel=1e-5)
    val = data.meta["val"]
    assert told[0]["val_bpb"] == pytest.approx(expected / np.log(2) * val["tokens"] / val["bytes"], rel=1e-5)
    assert told[1]["tokens"] == 100
