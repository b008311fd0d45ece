"""torch.compile: the whole loss and its gradient as one graph, with the same numbers; and who compiles when."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.bounds import assert_within, select
from parity.proof.operations import expected
from parity.proof.problems.cases import ModelCase
from parity.suite.runs.trajectory_drift import OTHERS
from spec import LiquidNetConfig
from spec.checkpoint.format import read_checkpoint
from spec.config import TrainingConfig
from spec.data import Batch, open_data
from spec.mixers import families
from tools.cli.main import main
from tools.training import train as shell
from tools.training.run_dir import RunDir

torch = pytest.importorskip("torch", reason="JAX compiles everywhere")
engines = adapters.load_module("torch", "training.engine")
models = adapters.load_module("torch", "model")
capabilities = adapters.load_module("torch", "mixers").capabilities
DEVICE = adapters.load_module("torch", "ops.devices").default_device()

# Dynamo's own way with an autograd.Function, in torch 2.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

CONFIG = LiquidNetConfig(vocab_size=13, d_model=8, d_ff=12, n_layers=2, max_seq_len=9)
CHOICES = [
    *((method, "auto", False) for method in adapters.load("torch").METHODS["mixer"]),
    *(("auto", method, False) for method in adapters.load("torch").METHODS["loss"]),
    ("auto", "chunked", True),
]
TRAIN = ("--d-model", "8", "--d-ff", "12", "--n-layers", "1", "--batch-size", "2", "--seq-len", "8")


@pytest.fixture
def without_a_compiler(monkeypatch):
    """torch.compile traces and differentiates as ever, and runs the graph operation by operation: no C++ is made."""
    torch.compiler.reset()
    eagerly = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", eagerly)
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("method, loss_method, remat", CHOICES)
def test_the_loss_is_one_graph(without_a_compiler, method, loss_method, remat):
    one_graph("model", CONFIG, method, loss_method, remat)


@pytest.mark.parametrize("name", [name for name, config in OTHERS.items() if capabilities(config).compile])
def test_the_loss_of_every_family_that_says_so_is_one_graph(without_a_compiler, name):
    one_graph(f"{name}_model", replace(families()[name].small_config(), n_layers=1))


def one_graph(operation, config, method="auto", loss_method="auto", remat=False):
    """`fullgraph` raises at a graph break; loss, states and every gradient are within the bounds of the model."""
    case = ModelCase(9, "some", "left", "some", False, 3, config=config)
    truth, bound = expected(operation, case, "float32")
    net = models.build(config, method=method, remat=remat, loss_method=loss_method).to(DEVICE)
    adapters.load_module("torch", "checkpoint.native").load_parameters(net, case.parameters)
    tokens, labels, states, resets, padding, of_last = (torch.tensor(x, device=DEVICE) for x in case.arrays())
    loss_of = torch.compile(net.loss, fullgraph=True, dynamic=False)
    rows = 5 if loss_method == "chunked" else None
    try:
        with adapters.chunk_logits(
            adapters.load_module("torch", "ops.cross_entropy"), rows and rows * config.vocab_size
        ):
            loss, last = loss_of(tokens, labels, states.requires_grad_(), resets, padding)
    except NotImplementedError as error:
        pytest.skip(str(error))
    (loss + (of_last * last).sum()).backward()
    gradients = {path: parameter.grad for path, parameter in net.named_parameters()} | {"state gradient": states.grad}
    results = {"loss": loss.detach().cpu().numpy(), "last beside the loss": last.detach().cpu().numpy()}
    results |= {path: gradient.cpu().numpy() for path, gradient in gradients.items()}
    assert len(results) == len(truth) - 2, "the loss needs neither logits nor the last states beside them"
    assert_within(results, *select(results, truth, bound), f"{operation}, float32, torch compiled")


def steps(compiled: bool, count: int = 3) -> tuple[list, dict]:
    """What is told of a few steps, and the parameters after them."""
    training = TrainingConfig(batch_size=2, seq_len=9, adam_eps=1e-2)
    engine = engines.Engine(CONFIG, training, compile=compiled)
    assert engine.environment()["compile"] is compiled
    tokens = np.random.default_rng(0).integers(0, 13, size=(count, 2, 9)).astype(np.int32)
    told = [engine.train_step(Batch(x, (x + 1) % 13, x == 3), 1e-2) for x in tokens]
    engine.evaluate(Batch(tokens[0], tokens[0], tokens[0] == 3))
    return told, engine.dump()[0]


def assert_close(compiled, plain):
    np.testing.assert_allclose(compiled[0], plain[0], rtol=1e-5)
    for path, expected_parameter in plain[1].items():
        atol = 1e-5 * np.abs(expected_parameter).max()
        np.testing.assert_allclose(compiled[1][path], expected_parameter, rtol=0, atol=atol, err_msg=path)


def test_a_compiled_engine_takes_the_same_steps(without_a_compiler):
    assert_close(steps(True), steps(False))


# What torch's own compiler imports is deprecated here and there.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.long
def test_a_compiled_engine_takes_the_same_steps_with_a_compiler():
    """A minute on a CPU, most of it in the C++ compiler."""
    if DEVICE.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    torch.compiler.reset()
    assert_close(steps(True), steps(False))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_the_choice_is_kept_and_a_change_is_told(without_a_compiler, small_data, tmp_path, capsys):
    """Bits differ between a compiled step and a plain one: the checkpoint says which it was."""
    out = tmp_path / "run"
    flags = ("--data", small_data, "--out", out)
    assert run("train", "torch", *flags, *TRAIN, "--eval-windows", 2, "--steps", 3, "--stop-at", 1, "--compile") == 0
    assert json.loads((out / "config.json").read_text())["execution"]["compile"] is True
    assert read_checkpoint(out).state["environment"]["compile"] is True
    assert run("train", "torch", *flags, "--resume", "--stop-at", 2) == 0
    assert read_checkpoint(out).state["environment"]["compile"] is True
    assert "will not repeat" not in capsys.readouterr().err
    assert run("train", "torch", *flags, "--resume", "--no-compile") == 0
    assert "will not repeat the same bits, since these changed: compile True -> False" in capsys.readouterr().err
    assert read_checkpoint(out).state["environment"]["compile"] is False


def test_runs_from_before_the_choice_go_on(small_data, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ("--data", small_data, "--out", out)
    assert run("train", "torch", *flags, *TRAIN, "--eval-windows", 2, "--steps", 2, "--stop-at", 1) == 0
    settings = json.loads((out / "config.json").read_text())
    assert settings["execution"].pop("compile") is None
    (out / "config.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert run("train", "torch", *flags, "--resume") == 0
    settings["execution"]["compile"] = "yes"
    (out / "config.json").write_text(json.dumps(settings))
    assert run("train", "torch", *flags, "--resume") == 2
    assert "compile must be true, false or null, got 'yes'" in capsys.readouterr().err


def test_jax_always_compiles(small_data, tmp_path, capsys):
    pytest.importorskip("jax", reason="it is the one that refuses")
    out = tmp_path / "run"
    flags = ("--data", small_data, "--out", out)
    assert run("train", "jax", *flags, *TRAIN, "--no-compile") == 2
    message = "JAX always compiles its steps; leave --no-compile out, or train with torch"
    assert capsys.readouterr().err == f"liquidnet: error: {message}\n" and not out.exists()
    with pytest.raises(ValueError, match="JAX always compiles"):
        adapters.load_module("jax", "training.engine").Engine(CONFIG, TrainingConfig(), compile=False)
    # What a leg in torch did without is no matter to the next one in JAX.
    more = ("--eval-windows", 2, "--steps", 2, "--stop-at", 1)
    assert run("train", "torch", *flags, *TRAIN, *more, "--no-compile") == 0
    settings = shell.Train("jax", small_data, out, resume=True).resolve(open_data(small_data), RunDir(out).settings())
    assert settings.execution.compile is False and shell._compiles("jax", settings.execution.compile)


def test_compiling_and_not_compiling_exclude_each_other(small_data, tmp_path, capsys):
    assert run("train", "torch", "--data", small_data, "--out", tmp_path / "run", "--compile", "--no-compile") == 2
    assert "--compile and --no-compile exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "backend, asked, device, triton, expected_choice",
    [
        ("torch", None, "cpu", object(), False),
        ("torch", None, "cuda", object(), True),
        ("torch", None, "cuda", None, False),
        ("torch", None, "mps", object(), False),
        ("torch", True, "cpu", None, True),
        ("torch", False, "cuda", object(), False),
        ("jax", None, "cpu", None, True),
        ("jax", False, "cpu", None, True),
    ],
)
def test_who_compiles_when_nothing_is_said(monkeypatch, backend, asked, device, triton, expected_choice):
    devices = adapters.load_module("torch", "ops.devices")
    monkeypatch.setattr(devices, "default_device", lambda: torch.device(device))
    monkeypatch.setattr(devices, "HAS_TRITON", triton is not None)
    assert shell._compiles(backend, asked) is expected_choice
