"""A Liquid SSM as a newcomer meets it: the published constructor, whole runs by command line, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.problems.cases import perturbed_parameters
from spec import LiquidSSMConfig
from spec.checkpoint.format import read_checkpoint
from spec.parameters import num_parameters
from spec.reference import loss_and_gradients
from tools.cli.main import main

# One block: a compilation takes seconds.
SIZES = {"vocab_size": 50, "d_model": 16, "state_dim": 4, "num_layers": 1, "max_seq_len": 16}
CONFIG = LiquidSSMConfig(50, d_model=16, d_ff=48, n_layers=1, max_seq_len=16, d_state=4)
TOKENS, LABELS = np.random.default_rng(0).integers(0, 50, (2, 2, 12)).astype(np.int32)

MODEL = ("--preset", "ssm-nano", "--d-model", "16", "--d-ff", "24", "--n-layers", "1", "--d-state", "4")
# Rate and noise are so large that six steps without the noise come to another loss.
SMALL = ("--batch-size", "2", "--seq-len", "16", "--eval-windows", "4", "--checkpoint-every", "3")
LEARN = (*MODEL, *SMALL, "--steps", "6", "--lr", "0.03", "--warmup-steps", "1", "--exploration-rate", "20")
TRAINED = LiquidSSMConfig(257, 16, 24, 1, 16, d_state=4, state="diagonal", exploration_rate=20.0)


@cache
def published(backend):
    """The model of the published constructor with noise on every weight, how arrays are made, its call and its loss."""
    model = adapters.load_module(backend, "mixers.liquid_ssm").LiquidSSMLanguageModel(**SIZES)
    adapters.load_module(backend, "checkpoint.native").load_parameters(model, perturbed_parameters(CONFIG, 1))
    if backend == "torch":
        import torch

        return model, torch.as_tensor, model, model.loss
    import jax.numpy as jnp
    from flax import nnx

    # Op by op JAX compiles hundreds of small programs.
    compiled, loss = nnx.jit(type(model).__call__), nnx.jit(type(model).loss)
    return model, jnp.asarray, lambda *given, **named: compiled(model, *given, **named), lambda *x: loss(model, *x)


def array(x):
    """NumPy of either backend's array."""
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)


def train(backend, data, out, *more):
    """A leg of a run by command line; its step losses so far."""
    with pytest.raises(SystemExit) as stop:
        main(["train", backend, "--data", str(data), "--out", str(out), *map(str, more)])
    assert stop.value.code == 0
    return losses(out)


def lines(run):
    """What metrics.jsonl says."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    """The loss of each step."""
    told = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in told] == list(range(1, len(told) + 1))
    return [line["loss"] for line in told]


def carry_back(run, to):
    """A copy of the run as it was after step 3."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "step_00000006")
    return to


def assert_same(one, other):
    """Two checkpoints have the same weights, moments and states, bit for bit, and all that stands beside them."""
    assert (one.config, one.state, one.tokenizer) == (other.config, other.state, other.tokenizer)
    found, expected = ({"": x.parameters, **x.moments, "states": {"": x.states}} for x in (one, other))
    found, expected = ({(kind, path): y for kind in x for path, y in x[kind].items()} for x in (found, expected))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=str(path), strict=True)


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    """A finished run of torch with exploration noise."""
    pytest.importorskip("torch", reason="the run is PyTorch's")
    out = tmp_path_factory.mktemp("ssm") / "run"
    train("torch", small_data, out, *LEARN)
    return out


def test_the_published_call_gives_loss_logits_and_states(adapter):
    """The float64 reference knows what the numbers are; without labels there is no loss."""
    model, own, call, loss = published(adapter.NAME)
    assert model.config == CONFIG and model.num_parameters() == num_parameters(CONFIG)
    params, states = perturbed_parameters(CONFIG, 1), np.random.default_rng(1).standard_normal((1, 2, 4), np.float32)
    tokens, labels = own(TOKENS), own(LABELS)
    out = call(tokens, labels=labels, states=own(states))
    assert out.logits.shape == (2, 12, 50) and out.states.shape == (1, 2, 4)
    truth, without = (loss_and_gradients(params, CONFIG, TOKENS, LABELS, x)[0] for x in (states, None))
    assert array(out.loss) == pytest.approx(truth, rel=1e-5) and abs(truth - without) > 1e-3 * truth
    assert array(out.loss) == pytest.approx(array(loss(tokens, labels, own(states))[0]), rel=1e-6)
    silent = call(tokens, states=own(states))
    assert silent.loss is None
    np.testing.assert_allclose(array(silent.logits), array(out.logits), rtol=1e-6, atol=1e-6)


def test_the_published_generate_continues_the_prompt(adapter):
    """As many tokens as asked for, the prompt's first; another seed writes another text."""
    model, own, *_ = published(adapter.NAME)
    texts = [array(model.generate(own(TOKENS)[:1], max_length=40, temperature=1.0, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0].shape == (1, 40) and texts[0].min() >= 0 and texts[0].max() < 50
    np.testing.assert_array_equal(texts[0][:, :12], TOKENS[:1])
    assert (texts[0] == texts[1]).all() and (texts[0] != texts[2]).any()


def test_a_text_goes_on_from_the_states_of_the_output(adapter):
    """Two halves are the whole, roundings aside; a half that forgets is not."""
    _, own, call, _ = published(adapter.NAME)
    tokens, zero = own(TOKENS), own(np.zeros((1, 2, 4), np.float32))
    whole, half = call(tokens, states=zero), call(tokens[:, :6], states=zero)
    rest, forgetful = call(tokens[:, 6:], states=half.states), call(tokens[:, 6:], states=zero)
    found = np.concatenate([array(half.logits), array(rest.logits)], axis=1)
    np.testing.assert_allclose(found, array(whole.logits), rtol=0, atol=1e-5)
    np.testing.assert_allclose(array(rest.states), array(whole.states), rtol=0, atol=1e-5)
    assert np.abs(array(forgetful.logits) - array(whole.logits)[:, 6:]).max() > 1e-2


def test_the_published_defaults(adapter, monkeypatch):
    """By the configuration alone: the model itself has millions of weights; they are counted here by hand."""
    base, asked = adapters.load_module(adapter.NAME, "model").LanguageModel, []
    model = adapters.load_module(adapter.NAME, "mixers.liquid_ssm").LiquidSSMLanguageModel
    monkeypatch.setattr(base, "__init__", lambda self, config, **options: asked.append(config))
    model()
    model(32000, 512, 256, 6, 2048)
    assert asked == [LiquidSSMConfig(), LiquidSSMConfig()]
    mixer = (256 + 32) * 512 + 32 * 256 + 256 * 32 + 256 + 256 + 512 * 256 + 512
    assert num_parameters(LiquidSSMConfig()) == 32000 * 512 + 6 * (mixer + 512 + 512 + 3 * 512 * 1368) + 512


def test_a_configuration_stands_for_the_sizes(adapter):
    """Also for what the published sizes do not tell."""
    config = replace(CONFIG, d_ff=8, d_tau=3, state="diagonal", eta=0.25)
    model = adapters.load_module(adapter.NAME, "mixers.liquid_ssm").LiquidSSMLanguageModel(config=config, seed=3)
    assert model.config == config and model.num_parameters() == num_parameters(config)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"method": "chunked"}, "unknown liquid_ssm method 'chunked'; choose one of auto, sequential, parallel"),
        ({"compute_dtype": "float31"}, "unknown compute dtype 'float31'.*did you mean 'float32'"),
        ({"state_dim": -4}, "d_state must be an integer of at least 1, got -4"),
    ],
)
def test_a_wrong_argument_is_named(adapter, given, told):
    with pytest.raises(ValueError, match=told):
        adapters.load_module(adapter.NAME, "mixers.liquid_ssm").LiquidSSMLanguageModel(**{**SIZES, **given})


@pytest.mark.parametrize(
    "backend, more",
    [
        ("torch", ("--state", "dense")),
        ("torch", ("--stream",)),
        pytest.param("jax", ("--stream",), marks=pytest.mark.long),
    ],
    ids=["torch dense", "torch stream", "jax stream"],
)
def test_a_run_with_noise_resumes_to_the_same_bits(backend, more, small_data, tmp_path):
    """Losses, weights, moments, and the states of a stream."""
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(backend, small_data, whole, *LEARN, *more)
    if backend == "torch":
        assert train(backend, small_data, parts, *LEARN, *more, "--stop-at", 3) == expected[:3]
    else:  # what a kill after step 3 leaves is a compilation less
        carry_back(whole, parts)
    assert train(backend, small_data, parts, "--resume") == expected
    assert_same(read_checkpoint(parts), read_checkpoint(whole))
    assert (read_checkpoint(whole).states is None) != ("--stream" in more)


def test_another_backend_carries_a_run_on(run, small_data, tmp_path):
    """The checkpoint says what the model is, to the last field; JAX, a row at a time, takes the steps of torch."""
    pytest.importorskip("jax", reason="hands over between both backends")
    out = carry_back(run, tmp_path / "run")
    stored = json.loads((out / "checkpoints" / "step_00000003" / "config.json").read_text())
    assert stored == {"family": "liquid_ssm", **asdict(TRAINED)}
    found = train("jax", small_data, out, "--resume", "--micro-batch-size", 1)
    assert [line["backend"] for line in lines(out) if "loss" in line] == ["torch"] * 3 + ["jax"] * 3
    np.testing.assert_allclose(found, losses(run), rtol=1e-5)
    assert read_checkpoint(out).config == TRAINED


def test_every_format_keeps_every_bit(run, tmp_path):
    """A run, a .pt, a .msgpack and a directory of it; configuration, step and tokenizer go along."""
    pytest.importorskip("jax", reason=".msgpack files are Flax's")
    places = [run, tmp_path / "one.pt", tmp_path / "two.msgpack", tmp_path / "three"]
    for source, target in pairwise(places):
        main(["convert", str(source), str(target)])
    assert_same(read_checkpoint(places[-1]), read_checkpoint(run))


def test_a_run_is_evaluated_and_writes_text(adapter, run, small_data, capsys):
    """The trainer's own figure, without noise, in either backend; and as many bytes as asked for at most."""
    chosen = ("--checkpoint", str(run), "--backend", adapter.NAME)
    main(["evaluate", *chosen, "--data", str(small_data), "--windows", "4", "--batch-size", "2"])
    told, logged = json.loads(capsys.readouterr().out), lines(run)[-1]
    assert told["step"] == 6 and told["val_loss"] == pytest.approx(logged["val_loss"], rel=1e-5)
    main(["generate", *chosen, "--prompt", "The ", "--max-tokens", "20"])
    text = capsys.readouterr().out
    assert text.startswith("The ") and 5 < len(text) <= 25


def test_micro_batches_get_the_noise_of_their_rows(run, small_data, tmp_path):
    """A row at a time is the whole batch but for rounding; without noise it is another run."""
    found = train("torch", small_data, tmp_path / "cut", *LEARN, "--micro-batch-size", 1)
    np.testing.assert_allclose(found, losses(run), rtol=1e-5)
    silent = train("torch", small_data, tmp_path / "silent", *LEARN[:-1], 0)
    assert np.abs(np.subtract(silent, losses(run))).max() > 1e-2


@pytest.mark.parametrize(
    "backend, flags, told",
    [
        ("torch", ("--preset", "nano"), ("--d-state", "is a Liquid SSM's", "--preset ssm-nano")),
        ("torch", ("--d-state", "3", "--state", "diagonal"), ("diagonal", "pairs", "d_state 3")),
        ("torch", ("--compile",), ("a Liquid SSM is neither compiled", "leave out --compile")),
        ("torch", ("--method", "chunked"), ("method 'chunked'", "choose one of auto, sequential, parallel")),
        ("torch", ("--method", "parallel", "--state", "dense"), ("'parallel'", "dense", "'sequential'")),
        ("jax", ("--method", "parallel", "--state", "dense"), ("'parallel'", "dense", "'sequential'")),
        ("torch", ("--exploration-rate", "-1"), ("exploration_rate must be a number in [0, 1000], got -1",)),
    ],
)
def test_what_cannot_be_trained_leaves_nothing(backend, flags, told, refused, small_data, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    message = refused("train", backend, "--data", str(small_data), "--out", str(tmp_path / "out"), *MODEL, *flags)
    assert all(part in message for part in told), message
    assert not (tmp_path / "out").exists()


def test_a_modelled_time_is_a_liquidnets(refused):
    assert "is a Liquid SSM, of which --liquid-ssm tells" in refused("bench", "--model", "--preset", "ssm-nano")
