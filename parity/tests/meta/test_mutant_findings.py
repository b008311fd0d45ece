"""What parity/suite/mutants found untested: the engine's step, bfloat16 logits, last digits of a gate's gradient."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import in_units
from parity.proof.operations.liquidnet import gates_vjp
from spec import LiquidNetConfig
from spec.config import TrainingConfig
from spec.data import IGNORED_LABEL, Batch
from spec.init import initial_parameters
from spec.mixers.liquidnet import half_life_bias
from spec.optimizer import MOMENTS, decayed_paths
from spec.reference import adamw_step, clip_by_global_norm, loss_and_gradients
from spec.reference.scan import decay_gates, sigmoid

# One block: a compilation takes seconds. A large eps: with a small one AdamW enlarges the rounding of small gradients.
CONFIG = LiquidNetConfig(vocab_size=13, d_model=8, d_ff=12, n_layers=1, max_seq_len=8)
TRAINING = TrainingConfig(batch_size=3, seq_len=7, adam_eps=1e-2, weight_decay=0.5, grad_clip=0.5)
RATES = (0.05, 0.1, 0.02)


def noisy_parameters(config: LiquidNetConfig) -> dict[str, np.ndarray]:
    """Outputs that begin at zero would hide what stands before them."""
    random = np.random.default_rng(1)
    noise = {path: random.standard_normal(x.shape, np.float32) for path, x in initial_parameters(config).items()}
    return {path: x + np.float32(0.3) * noise[path] for path, x in initial_parameters(config).items()}


@pytest.fixture(params=sorted(adapters.FRAMEWORKS))
def engine(request):
    """Makes the training engine of a backend, with noise on every parameter."""
    reason = adapters.missing(request.param)
    if reason:
        pytest.skip(reason)

    def make():
        made = adapters.load_module(request.param, "training.engine").Engine(CONFIG, TRAINING)
        made.load(noisy_parameters(CONFIG), {}, 0)
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
    params = {path: x.astype(np.float64) for path, x in noisy_parameters(CONFIG).items()}
    first, second = ({path: np.zeros_like(x) for path, x in params.items()} for _ in MOMENTS)
    told = []
    for step, (batch, rate) in enumerate(zip(batches, RATES, strict=True), start=1):
        loss, gradients, _ = loss_and_gradients(params, CONFIG, batch.tokens, batch.labels, resets=batch.resets)
        gradients, norm = clip_by_global_norm(gradients, TRAINING.grad_clip)
        assert norm > TRAINING.grad_clip
        decayed = decayed_paths(CONFIG)
        params, first, second = adamw_step(params, gradients, first, second, step, rate, TRAINING, decayed)
        told.append((loss, norm))
    return told, params, dict(zip(MOMENTS, (first, second), strict=True))


def assert_close(found, truth):
    """To 1e-5 of the largest entry: rounding is some 1e-7 of it, a wrong formula some 1e-2."""
    for path, expected in truth.items():
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=path)


def test_the_engine_takes_the_steps_of_the_reference(engine):
    """Forward pass with resets, clipping, AdamW at a rate that changes, and what is told of each step."""
    batches, made = draw_batches(3), engine()
    told, params, moments = reference_steps(batches)
    found = [made.train_step(batch, rate) for batch, rate in zip(batches, RATES, strict=True)]
    np.testing.assert_allclose(found, told, rtol=1e-5)
    assert_close(made.dump()[0], params)
    for name in MOMENTS:
        assert_close(made.dump()[1][name], moments[name])
    loss, *_ = loss_and_gradients(params, CONFIG, batches[0].tokens, batches[0].labels, resets=batches[0].resets)
    assert made.evaluate(batches[0])[0] == pytest.approx(loss, rel=1e-5)


def test_a_loaded_engine_takes_the_same_step(engine):
    """Parameters, moments and the step, which the bias correction counts: bit for bit."""
    batches, whole, other = draw_batches(3), engine(), engine()
    for batch, rate in zip(batches[:2], RATES, strict=False):
        whole.train_step(batch, rate)
    other.train_step(batches[2], 0.3)
    other.load(*whole.dump(), 2)
    assert other.train_step(batches[2], RATES[2]) == whole.train_step(batches[2], RATES[2])
    for path, expected in whole.dump()[0].items():
        np.testing.assert_array_equal(other.dump()[0][path], expected)


def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16(adapter):
    """Products in bfloat16, sums in float32: hardly a logit is a number of bfloat16."""
    random = np.random.default_rng(0)
    config = LiquidNetConfig(vocab_size=64, d_model=32, d_ff=48, n_layers=1)
    tokens = random.integers(0, 64, size=(2, 7)).astype(np.int32)
    logits, _ = adapter.model(noisy_parameters(config), config, tokens, compute_dtype="bfloat16")
    assert logits.dtype == np.float32
    assert (logits == logits.astype(ml_dtypes.bfloat16).astype(np.float32)).mean() < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(adapters.FRAMEWORKS))
def test_a_tensor_keeps_dtype_and_bits_on_its_way_to_numpy(name, dtype):
    if adapters.missing(name):
        pytest.skip(adapters.missing(name))
    module = adapters.load_module(name, "layers")
    framework = __import__("torch") if name == "torch" else __import__("jax").numpy
    values = [1.0, -0.5, 3.25]
    make = framework.tensor if name == "torch" else framework.array
    found = adapters.load_module(name, "checkpoint.native").to_numpy(make(values, dtype=module.COMPUTE[dtype]))
    assert found.dtype == np.dtype(getattr(ml_dtypes, dtype, dtype)) and found.tolist() == values


def test_a_step_of_generation_reads_out_the_last_position(adapter):
    """The logits themselves: a text of one seed may be the same by chance where they are not."""
    params, text = noisy_parameters(CONFIG), np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
    expected, last = adapter.model(params, CONFIG, text)
    step = adapter.make_step(params, CONFIG)
    logits, states = step(text[:, :3], None)
    np.testing.assert_allclose(logits, expected[:, 2], rtol=0, atol=1e-5 * np.abs(expected).max())
    logits, states = step(text[:, 3:], states)
    np.testing.assert_allclose(logits, expected[:, 3], rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(states), last, rtol=0, atol=1e-5 * np.abs(last).max())


def test_the_gradient_of_the_decay_gate_keeps_its_digits(adapter):
    """-alpha sigmoid(p) at p from -12 to 12 and at every half-life: as y (1 - y), the last digits cancel.

    17 u for alpha, the sigmoid and their product (bounds/layers.py); doubled, since the bias is summed from it.
    """
    bias = np.concatenate([np.linspace(-12, 12, 257), half_life_bias(129)]).astype(np.float32)
    d = len(bias)
    zero, one = np.zeros((1, 1, d), np.float32), np.ones((1, 1, d), np.float32)
    found = gates_vjp(adapter, np.zeros((1, 1, 3 * d), np.float32), bias, 1e-6, one, zero, zero)["bias gradient"]
    p = bias.astype(np.float64)
    expected = -decay_gates(p, 1e-6)[0] * sigmoid(p)
    units = in_units(found, expected, 34 * 2.0**-24 * np.abs(expected))
    assert units.max() <= 1.0, f"the gradient at p = {p[units.argmax()]} is off by {units.max():.3g} units of its bound"
