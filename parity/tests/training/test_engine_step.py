"""The training engine: the steps of the reference, and the same step after a load."""

from __future__ import annotations

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.problems.cases import perturbed_parameters
from spec import LiquidNetConfig
from spec.config import TrainingConfig
from spec.data import Batch
from spec.inputs import IGNORED_LABEL
from spec.optimizer import MOMENTS, decayed_paths
from spec.reference import adamw_step, clip_by_global_norm, loss_and_gradients

# One block: a compilation takes seconds. A large eps: with a small one AdamW enlarges the rounding of small gradients.
CONFIG = LiquidNetConfig(vocab_size=13, d_model=8, d_ff=12, n_layers=1, max_seq_len=8)
TRAINING = TrainingConfig(batch_size=3, seq_len=7, adam_eps=1e-2, weight_decay=0.5, grad_clip=0.5)
RATES = (0.05, 0.1, 0.02)
PARAMETERS = perturbed_parameters(CONFIG, 1)


@pytest.fixture(params=sorted(adapters.FRAMEWORKS))
def engine(request):
    """Makes the training engine of a backend, with noise on every parameter."""
    reason = adapters.missing(request.param)
    if reason:
        pytest.skip(reason)

    def make():
        made = adapters.load_module(request.param, "training.engine").Engine(CONFIG, TRAINING)
        made.load(PARAMETERS, {}, 0)
        return made

    return make


def draw_batches(count: int) -> list[Batch]:
    random = np.random.default_rng(0)
    shape = (count, TRAINING.batch_size, TRAINING.seq_len)
    tokens, labels = random.integers(0, CONFIG.vocab_size, size=(2, *shape)).astype(np.int32)
    labels[random.random(shape) < 0.2] = IGNORED_LABEL
    return [Batch(*parts) for parts in zip(tokens, labels, random.random(shape) < 0.3, strict=True)]


def reference_steps(batches: list[Batch]):
    """(loss, norm) of each step, the parameters and both moments after the last, in float64."""
    params = {path: x.astype(np.float64) for path, x in PARAMETERS.items()}
    first, second = ({path: np.zeros_like(x) for path, x in params.items()} for _ in MOMENTS)
    losses = []
    for step, (batch, rate) in enumerate(zip(batches, RATES, strict=True), start=1):
        loss, gradients, _ = loss_and_gradients(params, CONFIG, batch.tokens, batch.labels, resets=batch.resets)
        gradients, norm = clip_by_global_norm(gradients, TRAINING.grad_clip)
        assert norm > TRAINING.grad_clip
        decayed = decayed_paths(CONFIG)
        params, first, second = adamw_step(params, gradients, first, second, step, rate, TRAINING, decayed)
        losses.append((loss, norm))
    return losses, params, dict(zip(MOMENTS, (first, second), strict=True))


def assert_close(found, truth):
    """To 1e-5 of the largest entry: rounding is some 1e-7 of it, a wrong formula some 1e-2."""
    for path, expected in truth.items():
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=path)


def test_the_engine_takes_the_steps_of_the_reference(engine):
    """Forward pass with resets, clipping, AdamW at a rate that changes, and the loss and norm of each step."""
    batches, made = draw_batches(3), engine()
    expected, params, moments = reference_steps(batches)
    found = [made.train_step(batch, rate) for batch, rate in zip(batches, RATES, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_close(made.dump()[0], params)
    for name in MOMENTS:
        assert_close(made.dump()[1][name], moments[name])
    loss, *_ = loss_and_gradients(params, CONFIG, batches[0].tokens, batches[0].labels, resets=batches[0].resets)
    assert made.evaluate(batches[0])[0] == pytest.approx(loss, rel=1e-5)


def test_a_loaded_engine_takes_the_same_step(engine):
    """Parameters, moments and the step, which the bias correction counts: bit for bit."""
    batches, whole, other = draw_batches(3), engine(), engine()
    for batch, rate in zip(batches[:2], RATES[:2], strict=True):
        whole.train_step(batch, rate)
    other.train_step(batches[2], 0.3)
    other.load(*whole.dump(), 2)
    assert other.train_step(batches[2], RATES[2]) == whole.train_step(batches[2], RATES[2])
    for path, expected in whole.dump()[0].items():
        np.testing.assert_array_equal(other.dump()[0][path], expected)
