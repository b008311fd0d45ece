"""float16 in torch: as accurate as eleven bits are, and a step that overflows is made again, bit for bit."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import assert_within
from parity.proof.bounds.monte_carlo_arithmetic import estimate
from parity.proof.operations import OPERATIONS, expected
from parity.proof.operations.base import UNITS
from parity.proof.problems.cases import ModelCase
from spec import LiquidNetConfig
from spec.checkpoint.format import list_checkpoints, read_checkpoint
from spec.config import TrainingConfig
from spec.data import Batch
from tools.cli.main import main
from tools.training import train as shell

torch = pytest.importorskip("torch", reason="float16 needs its GradScaler")
engines = adapters.load_module("torch", "training.engine")
devices = adapters.load_module("torch", "ops.devices")

CONFIG = LiquidNetConfig(vocab_size=31, d_model=16, d_ff=24, n_layers=2, max_seq_len=16)
TRAINING = TrainingConfig(batch_size=4, seq_len=16, compute_dtype="float16")
HUGE = 2.0**40
FLAGS = ("--d-model", "16", "--d-ff", "24", "--n-layers", "1", "--batch-size", "2", "--seq-len", "16")
MORE = ("--eval-windows", "2", "--dtype", "float16")


def draw_batches(count: int) -> list[Batch]:
    """Labels that follow from the tokens, so that there is something to learn."""
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, size=(count, 4, 16)).astype(np.int32)
    return [Batch(x, (x + 1) % CONFIG.vocab_size, np.zeros(x.shape, bool)) for x in tokens]


def scaled(engine, scale: float, good_steps: int = 0):
    """The engine, its next step scaled by this, after so many steps without an overflow."""
    stored = engine.extra_state()["grad_scaler"]
    engine.load_extra_state({"grad_scaler": {**stored, "scale": scale, "_growth_tracker": good_steps}})
    return engine


def same(one, other) -> bool:
    """Parameters, moments and scale, bit for bit."""
    (first, moments), (second, others) = one.dump(), other.dump()
    groups = [(first, second), *((moments[name], others[name]) for name in moments)]
    equal = all(np.array_equal(a[path], b[path]) for a, b in groups for path in a)
    return equal and one.extra_state() == other.extra_state()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1.0, 2.0**6])
def test_a_float16_model_is_within_the_estimate_for_eleven_bits(seed, scale):
    """Logits, states, loss and gradients against float64; the bound is of bfloat16's kind, eight times tighter."""
    case = ModelCase(31, "some", "left", "some", False, seed, config=CONFIG)
    arrays, operation = case.arrays(), OPERATIONS["model"]
    truth, _ = expected("model", case, "float32")
    bound = estimate(operation.compute(case), truth, UNITS["float32"], product_unit=2.0**-11)
    adapter = adapters.load("torch")
    inputs = arrays.tokens, arrays.states, arrays.resets, arrays.padding
    logits, last = adapter.model(case.parameters, CONFIG, *inputs, compute_dtype="float16")
    assert logits.dtype == last.dtype == np.float32
    results = {"logits": logits, "last": last}
    device = devices.default_device()
    net = adapters.load_module("torch", "mixers.liquidnet").LiquidNet(CONFIG, compute_dtype="float16").to(device)
    adapters.load_module("torch", "checkpoint.native").load_parameters(net, case.parameters)
    tokens, labels, states, resets, padding, of_last = (
        torch.tensor(x, device=devices.default_device()) for x in arrays
    )
    loss, last = net.loss(tokens, labels, states.requires_grad_(), resets, padding)
    (scale * (loss + (of_last * last).sum())).backward()
    gradients = {path: parameter.grad for path, parameter in net.named_parameters()} | {"state gradient": states.grad}
    results |= {"loss": loss.detach().cpu().numpy(), "last beside the loss": last.detach().cpu().numpy()}
    results |= {path: gradient.cpu().numpy() / scale for path, gradient in gradients.items()}
    worst = assert_within(results, truth, bound, "model, float16, torch")
    assert worst > 1 / 30


def test_a_step_that_overflows_is_made_again_at_half_the_scale():
    """The huge scale leaves no other trace than the one that was found: the same step, and it counts once."""
    first, second = draw_batches(2)
    one = scaled(engines.Engine(CONFIG, TRAINING), HUGE, good_steps=7)
    told = one.train_step(first, 1e-2)
    found = one.extra_state()["grad_scaler"]
    assert 1.0 < found["scale"] < HUGE / 2 and found["_growth_tracker"] == 1
    other = scaled(engines.Engine(CONFIG, TRAINING), found["scale"])
    assert other.train_step(first, 1e-2) == told and same(one, other)
    assert one.train_step(second, 1e-2) == other.train_step(second, 1e-2) and same(one, other)


def test_the_norm_that_is_told_is_unscaled_and_clipping_comes_after():
    batch = draw_batches(1)[0]
    training = replace(TRAINING, grad_clip=1e-2)
    told = {}
    for dtype in ("float32", "float16"):
        engine = engines.Engine(CONFIG, replace(training, compute_dtype=dtype))
        told[dtype] = engine.train_step(batch, 1e-2)
        norm = sum((p.grad.double() ** 2).sum().item() for p in engine.model.parameters()) ** 0.5
        assert norm == pytest.approx(1e-2, rel=1e-4) and told[dtype][1] > 2e-2
    assert told["float16"] == pytest.approx(told["float32"], rel=2e-3)


def test_a_resumed_engine_repeats_the_bits_of_an_overflow():
    """Through JSON, as state.json goes; the overflow comes in the steps after."""
    batches = draw_batches(5)
    whole = engines.Engine(CONFIG, TRAINING)
    for batch in batches[:2]:
        whole.train_step(batch, 1e-2)
    state = json.loads(json.dumps(scaled(whole, HUGE).extra_state()))
    resumed, forgetful = (engines.Engine(CONFIG, replace(TRAINING, seed=9)) for _ in range(2))
    for other in (resumed, forgetful):
        other.load(*whole.dump(), 2)
    resumed.load_extra_state({"step": 2, **state})
    for batch in batches[2:]:
        told = whole.train_step(batch, 1e-2)
        assert resumed.train_step(batch, 1e-2) == told and same(whole, resumed)
        forgetful.train_step(batch, 1e-2)
    assert not same(whole, forgetful)


@pytest.mark.parametrize("scale, made", [(2.0**16, 17), (2.0, 2), (1.0, 1), (0.75, 1)])
def test_gradients_that_overflow_at_no_scale_stop_the_run(scale, made):
    engine = scaled(engines.Engine(CONFIG, TRAINING), scale)
    before, count = engine.dump()[0], []

    def overflow(gradient):
        count.append(gradient)
        return gradient * math.inf

    engine.model.final_norm.weight.register_hook(overflow)
    loss, norm = engine.train_step(draw_batches(1)[0], 1e-2)
    assert math.isfinite(loss) and not math.isfinite(norm) and len(count) == made
    assert all(np.array_equal(x, before[path]) for path, x in engine.dump()[0].items())


def test_a_loss_that_is_not_finite_is_not_computed_again():
    engine = engines.Engine(CONFIG, TRAINING)
    with torch.no_grad():
        engine.model.embedding.weight[0] = math.nan
    count, real = [], engine._gradients
    engine._gradients = lambda *inputs: count.append(1) or real(*inputs)
    assert not math.isfinite(engine.train_step(draw_batches(1)[0], 1e-2)[0]) and len(count) == 1


def test_the_losses_stay_by_those_of_float32():
    batches = draw_batches(30)
    losses = {}
    for dtype in ("float32", "float16"):
        engine = engines.Engine(CONFIG, replace(TRAINING, compute_dtype=dtype))
        losses[dtype] = [engine.train_step(batch, 1e-2)[0] for batch in batches]
    assert losses["float32"][-1] < losses["float32"][0] - 0.5
    np.testing.assert_allclose(losses["float16"], losses["float32"], rtol=5e-3)


def test_other_dtypes_have_no_scaler():
    for dtype in ("float32", "bfloat16"):
        engine = engines.Engine(CONFIG, replace(TRAINING, compute_dtype=dtype))
        assert engine.extra_state() == {}
        engine.load_extra_state({"grad_scaler": {"scale": HUGE}})
        assert all(map(math.isfinite, engine.train_step(draw_batches(1)[0], 1e-2)))


def test_a_checkpoint_without_a_scale_starts_with_the_usual_one():
    engine = engines.Engine(CONFIG, TRAINING)
    engine.load_extra_state({"step": 3})
    assert engine.extra_state()["grad_scaler"]["scale"] == 2.0**16


@pytest.mark.parametrize("stored", [{"scale": 2.0}, 3, {"scale": "2"}, {"scale": math.inf}, {"scale": True}])
def test_a_damaged_scale_is_refused(stored):
    engine = engines.Engine(CONFIG, TRAINING)
    if isinstance(stored, dict) and stored["scale"] != 2.0:
        stored = {**engine.extra_state()["grad_scaler"], **stored}
    with pytest.raises(ValueError, match=r"state\.json: grad_scaler needs a number each for scale, "):
        engine.load_extra_state({"grad_scaler": stored})


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def losses_of(out) -> list:
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read if "loss" in line]


def test_a_run_in_float16_resumes_to_the_same_bits(small_data, tmp_path, monkeypatch):
    """The scale doubles every second step from where it overflows, so that steps overflow all along the run."""
    often = functools.partial(torch.amp.GradScaler, init_scale=HUGE, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", often)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ("--data", small_data, *FLAGS, *MORE, "--steps", 8, "--checkpoint-every", 1, "--keep", 8)
    assert run("train", "torch", "--out", whole, *flags) == 0
    assert run("train", "torch", "--out", parts, *flags, "--stop-at", 3) == 0
    assert 1.0 < read_checkpoint(parts).state["grad_scaler"]["scale"] < HUGE
    assert run("train", "torch", "--data", small_data, "--out", parts, "--resume") == 0
    assert losses_of(whole) == losses_of(parts) and len(losses_of(whole)) == 8
    # Powers of two leave most bits of the weights alone: the scale itself is compared, after every step.
    for one, other in zip(list_checkpoints(whole), list_checkpoints(parts), strict=True):
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), (one.name, name)


def test_jax_refuses_float16_before_it_writes_anything(small_data, tmp_path, capsys):
    pytest.importorskip("jax", reason="it is the one that refuses")
    out = tmp_path / "new"
    message = "compute dtype float16 needs a GradScaler, which only torch has; use bfloat16"
    assert run("train", "jax", "--data", small_data, "--out", out, *FLAGS, *MORE) == 2
    assert capsys.readouterr().err == f"liquidnet: error: {message}\n" and not out.exists()
    assert run("train", "torch", "--data", small_data, "--out", out, *FLAGS, *MORE, "--steps", 2, "--stop-at", 1) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run("train", "jax", "--data", small_data, "--out", out, "--resume") == 2
    assert capsys.readouterr().err == f"liquidnet: error: {message}\n"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    for make in ("layers", "model"):
        module = adapters.load_module("jax", make)
        with pytest.raises(NotImplementedError, match="float16 needs a GradScaler"):
            module.accumulate_dtype("float16") if make == "layers" else module.build(CONFIG, compute_dtype="float16")


def test_bfloat16_on_a_gpu_without_it_names_float16(monkeypatch):
    said = []
    monkeypatch.setattr(shell, "_warn", said.append)
    shell._warn_if_emulated("torch", "bfloat16")
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(devices, "architecture", lambda device: "sm_75")
    shell._warn_if_emulated("torch", "float16")
    shell._warn_if_emulated("jax", "bfloat16")
    assert not said
    shell._warn_if_emulated("torch", "bfloat16")
    assert "sm_75" in said[0] and "use --dtype float16" in said[0]


@pytest.mark.parametrize(
    "hidden, found, expected",
    [
        (None, {"cuda", "xpu", "mps"}, "cuda"),
        (None, {"xpu", "mps"}, "xpu"),
        (None, {"mps"}, "mps"),
        (None, set(), "cpu"),
        ("", {"cuda", "xpu", "mps"}, "cpu"),
        ("-1", {"cuda"}, "cpu"),
        ("0", {"cuda"}, "cuda"),
    ],
)
def test_the_device_is_the_first_that_is_there(monkeypatch, hidden, found, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        monkeypatch.setattr(module, "is_available", lambda name=name: name in found)
    assert devices.default_device().type == expected
