"""`liquidnet compare` finds a planted fault in exactly its own layer, and finds none where there is none."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.layer_diff import diff as finder
from parity.proof.layer_diff.activations import names
from parity.proof.layer_diff.diff import first_outside, judge, locate
from parity.proof.layer_diff.weights import differences
from parity.proof.problems.cases import perturbed_parameters
from parity.suite.support.fixtures import TEXT
from spec import LiquidNetConfig
from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.reference import activations
from tools.cli.main import main
from tools.compare.command import encode, open_models, parse_source
from tools.compare.report import _shown
from tools.tokenizer import build_tokenizer

CONFIG = LiquidNetConfig(vocab_size=257, d_model=16, d_ff=24, n_layers=2, max_seq_len=8)
PARAMETERS = perturbed_parameters(CONFIG, seed=1)
BYTES = build_tokenizer("byte").to_json()
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(adapters.missing(name)), reason=str(adapters.missing(name))))
    for name in adapters.FRAMEWORKS
]
# What does not depend on the backend: a model is compiled in a second or two by JAX.
ANY = next((name for name in adapters.FRAMEWORKS if not adapters.missing(name)), "none")
BOTH = pytest.mark.skipif(any(map(adapters.missing, adapters.FRAMEWORKS)), reason="compares both backends")
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, size=(2, 31))


def recorder(backend):
    return importlib.import_module(f"parity.proof.layer_diff.activations_{backend}")


@cache
def sound(backend):
    """The trace of a model in order."""
    return recorder(backend).activations(recorder(backend).load(CONFIG, PARAMETERS), TOKENS)


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint whose parameters and configuration differ as asked, and returns its path."""

    def write(name="a", tokenizer=BYTES, config=CONFIG, **changed):
        path = tmp_path / name
        parameters = perturbed_parameters(config, seed=1) | changed
        write_checkpoint(path, Checkpoint(config, parameters, tokenizer=tokenizer))
        return path

    return write


@pytest.fixture
def refused(capsys):
    """Run a comparison that must be refused; returns its one line."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *map(str, arguments)])
        captured = capsys.readouterr()
        assert stop.value.code == 2 and captured.err.count("\n") == 1 and not captured.out, captured
        assert captured.err.startswith("liquidnet: error: ")
        return captured.err

    return run


@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_activations_are_the_references(backend):
    truth = activations(PARAMETERS, CONFIG, TOKENS)
    recorded = sound(backend)
    assert list(recorded) == list(truth) == names(CONFIG)
    assert {name: x.shape for name, x in recorded.items()} == {name: x.shape for name, x in truth.items()}
    assert {x.dtype for x in recorded.values()} == {np.dtype(np.float32)}
    rows = locate(PARAMETERS, CONFIG, TOKENS, [recorded])
    assert first_outside(rows) is None
    # Neither judgement is blind.
    assert max(row.whole[0].units for row in rows) > 0.05 and max(row.alone[0].units for row in rows) > 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_recording_ends_with_its_block(backend):
    model = recorder(backend).load(CONFIG, PARAMETERS)
    kinds = {type(model), type(model.blocks[0]), type(model.final_norm), type(model.blocks[0].mlp.input)}
    calls = {kind: kind.__call__ for kind in kinds}
    with pytest.raises((ValueError, IndexError)):
        recorder(backend).activations(model, TOKENS[:, :0])
    assert {kind: kind.__call__ for kind in kinds} == calls
    assert backend == "jax" or not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "plant, tensor",
    [
        (lambda model: setattr(model.blocks[1].mlp_norm, "eps", 1e-5), "blocks.1.mlp_norm"),
        (lambda model: setattr(model.blocks[0].mixer_norm, "eps", 1e-5), "blocks.0.mixer_norm"),
        (lambda model: setattr(model.final_norm, "eps", 1e-5), "final_norm"),
        (lambda model: setattr(model.blocks[1].mixer, "delta_min", 1e-4), "blocks.1.mixer.gated"),
        # The sum after the mixer is met in the norm that it enters.
        (lambda model: setattr(model.blocks[1], "scale", 1.0), "blocks.1.mlp_norm"),
    ],
)
def test_a_fault_in_a_live_model_is_its_layers(backend, plant, tensor):
    model = recorder(backend).load(CONFIG, PARAMETERS)
    plant(model)
    rows = locate(PARAMETERS, CONFIG, TOKENS, [sound(backend), recorder(backend).activations(model, TOKENS)])
    first = first_outside(rows)
    assert first is not None and (first.tensor, first.outside) == (tensor, [1])
    # The layers after it are wrong from the tokens on, but right about what they get.
    alone = [row.tensor for row in rows if row.alone[1].units > 1.0]
    assert alone in ([tensor], [tensor, "blocks.1.mixer.state"], [tensor, "blocks.1"])
    assert rows[-1].whole[1].units > 1.0 and all(row.worst(0).units < 1.0 for row in rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_found_where_it_arises(backend):
    model = recorder(backend).load(CONFIG, PARAMETERS)
    model.blocks[1].mlp_norm.eps = float("nan")
    rows = locate(PARAMETERS, CONFIG, TOKENS, [recorder(backend).activations(model, TOKENS)])
    assert [row.tensor for row in rows if row.alone[0].units > 1.0] == ["blocks.1.mlp_norm"]
    assert first_outside(rows).tensor == "blocks.1.mlp_norm" and np.isnan(first_outside(rows).difference)


def test_rounding_of_a_few_entries_is_no_fault(monkeypatch):
    """A few runs may be lucky all of them: here one, which would blame the state; many more are asked first."""
    config = LiquidNetConfig(vocab_size=31, d_model=4, d_ff=6, n_layers=2, max_seq_len=8)
    monkeypatch.setattr(finder, "RUNS", 1)
    for seed in (4, 26, 40):
        parameters, tokens = perturbed_parameters(config, seed), np.random.default_rng(seed).integers(0, 31, (1, 100))
        plain = [activations(parameters, config, tokens, dtype=np.float32)]
        assert first_outside(judge(parameters, config, tokens, plain, 1)).tensor.endswith("mixer.state")
        assert first_outside(locate(parameters, config, tokens, plain)) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transposed_matrix_is_located_and_named(backend, checkpoint, compare):
    path = "blocks.1.mixer.output.weight"
    b = checkpoint("b", **{path: PARAMETERS[path].T})
    code, report = compare(f"{backend}:{checkpoint()}", b)
    assert code == 1
    assert f"blocks.1.mixer.output of B ({backend}) is the first tensor outside its bound" in report
    assert f"weights: 1 of {len(PARAMETERS)} tensors differ\n  {path} of B is A's transposed\n" in report
    assert "the rest follows from this" in report


@pytest.mark.parametrize(
    "path, order, words",
    [
        ("blocks.0.mixer.input.weight", (1, 0, 2), "decay | value | gate in place of value | decay | gate"),
        ("blocks.0.mixer.input.weight", (2, 0, 1), "gate | value | decay in place of value | decay | gate"),
        ("blocks.1.mlp.input.weight", (1, 0), "up | gate in place of gate | up"),
    ],
)
def test_swapped_rows_of_a_fused_matrix_are_located_and_named(checkpoint, compare, path, order, words):
    parts = np.split(PARAMETERS[path], len(order))
    b = checkpoint("b", **{path: np.concatenate([parts[i] for i in order])})
    code, report = compare(f"{ANY}:{checkpoint()}", b)
    assert code == 1 and f"{path} of B is A's with its rows as {words}" in report
    assert f"{path.removesuffix('.weight')} of B ({ANY}) is the first tensor outside its bound" in report


@pytest.mark.parametrize(
    "path, change, words",
    [
        ("embedding.weight", lambda x: x.astype(ml_dtypes.bfloat16), "is A's rounded to bfloat16"),
        ("blocks.0.mixer_norm.weight", lambda x: np.float32(0.7) * x, "is A's times 0.7"),
        ("blocks.0.mlp.output.weight", np.zeros_like, "is zero"),
        ("blocks.1.mlp.input.weight", lambda x: np.stack([x[:24], x[24:]], 1).reshape(48, 16), "as gate, up in turn"),
        ("blocks.0.mlp_norm.weight", lambda x: PARAMETERS["final_norm.weight"], "is A's final_norm.weight"),
        ("final_norm.weight", lambda x: x + np.float32(0.5) * (x == x[3]), "differs in 1 of 16 values, by up to 0.5"),
    ],
)
def test_how_weights_differ_is_said(path, change, words):
    found = differences(CONFIG, PARAMETERS, {**PARAMETERS, path: change(PARAMETERS[path])})
    assert list(found) == [path] and words in found[path]
    assert not differences(CONFIG, PARAMETERS, {name: x.astype(np.float64) for name, x in PARAMETERS.items()})


def test_eps_moved_in_the_configuration_is_reported_first(checkpoint, compare):
    code, report = compare(f"{ANY}:{checkpoint()}", checkpoint("b", config=replace(CONFIG, norm_eps=1e-5)))
    assert code == 1
    assert report.index("configuration: norm_eps is 1e-06 in A and 1e-05 in B") < report.index("largest errors")
    assert f"blocks.0.mixer_norm of B ({ANY}) is the first tensor outside its bound" in report
    assert "off on their own inputs too: blocks.0.mlp_norm of B" in report


@BOTH
@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_moved_in_one_backend_names_backend_and_layer(backend, checkpoint, compare, monkeypatch):
    usual = recorder(backend).load

    def load(*arguments):
        model = usual(*arguments)
        model.blocks[1].mlp_norm.eps = 1e-5
        return model

    monkeypatch.setattr(recorder(backend), "load", load)
    code, report = compare(checkpoint())
    letter = {"torch": "A", "jax": "B"}[backend]
    assert code == 1 and f"blocks.1.mlp_norm of {letter} ({backend}) is the first tensor outside its bound" in report
    assert f"the fault is in what {backend} computes" in report


@BOTH
def test_one_checkpoint_in_both_backends_agrees(checkpoint, compare, tmp_path):
    code, report = compare(checkpoint(), "--json", tmp_path / "found.json", "--all")
    assert code == 0 and "every tensor is within its bound" in report
    assert all(name in report for name in names(CONFIG))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["within"] and found["first"] is None and not found["weights"]
    assert [row["tensor"] for row in found["rows"]] == names(CONFIG)
    assert {letter: model["backend"] for letter, model in found["sides"].items()} == {"A": "torch", "B": "jax"}
    assert found["tokens"] == list(TEXT[1].encode())


def test_json_says_where_and_how_much(checkpoint, compare, tmp_path):
    path = "blocks.0.mlp_norm.weight"
    b = checkpoint("b", **{path: PARAMETERS[path] * np.where(np.arange(16) == 5, np.float32(3e30), np.float32(1))})
    assert compare(f"{ANY}:{checkpoint()}", b, "--json", tmp_path / "found.json")[0] == 1
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["first"] == {"tensor": "blocks.0.mlp_norm", "sides": ["B"]} and path in found["weights"]
    row = next(row for row in found["rows"] if row["tensor"] == "blocks.0.mlp_norm")
    error = row["layer"]["B"]
    off = abs(error["got"] - error["expected"])
    assert error["at"][2] == 5 and error["units"] == pytest.approx(off / error["bound"])
    assert found["rows"][-1]["so_far"]["B"]["units"] is None, "an overflow"


@BOTH
@pytest.mark.parametrize(
    "sources, expected",
    [
        (("a",), ("torch", "jax")),
        (("jax:a",), ("jax", "torch")),
        (("a", "a"), ("torch", "jax")),
        (("a", "torch:a"), ("jax", "torch")),
        (("torch:a", "torch:a"), ("torch", "torch")),
        (("a", "b"), ("torch", "torch")),
        (("jax:a", "b"), ("jax", "jax")),
        (("a", "jax:b"), ("torch", "jax")),
    ],
)
def test_a_backend_that_is_not_named_follows(sources, expected, checkpoint, tmp_path, monkeypatch):
    checkpoint("a"), checkpoint("b"), checkpoint("jax:odd")
    monkeypatch.chdir(tmp_path)
    assert parse_source("jax:odd")[0] is None, "a file of that name is meant"
    assert tuple(model.backend for model in open_models(*sources, *[None] * (2 - len(sources)))) == expected


def test_text_becomes_tokens(checkpoint, compare, tmp_path):
    source = f"{ANY}:{checkpoint(config=replace(CONFIG, vocab_size=13), tokenizer=None)}"
    (tmp_path / "text.txt").write_text("a fox")
    code, report = compare(source, source, "--text-file", tmp_path / "text.txt", "--json", tmp_path / "found.json")
    assert code == 0 and "no tokenizer is stored" in report
    assert json.loads((tmp_path / "found.json").read_text())["tokens"] == [byte % 13 for byte in b"a fox"]
    assert "on 3 tokens" in compare(source, source, "--max-tokens", 3)[1]
    # The first ones: a model reads a text from its beginning.
    assert encode("a fox", None, 13, 3).tolist() == [[byte % 13 for byte in b"a f"]]


def test_bad_input_is_refused_in_one_line(refused, checkpoint, tmp_path):
    a = f"{ANY}:{checkpoint()}"
    assert "does not exist" in refused(f"{ANY}:{tmp_path / 'none'}", a)
    assert "unknown backend 'tensorflow'; choose one of torch, jax" in refused(f"tensorflow:{tmp_path / 'a'}")
    smaller = checkpoint("b", config=replace(CONFIG, vocab_size=256, n_layers=1))
    assert "models of different shapes: vocab_size 257 and 256, n_layers 2 and 1" in refused(a, smaller)
    assert "different tokenizers" in refused(a, checkpoint("c", tokenizer=BYTES.replace("endoftext", "eos")))
    foreign = f"{ANY}:{checkpoint('d', config=replace(CONFIG, vocab_size=65))}"
    assert "gives token 104, the model has a vocabulary of 65" in refused(foreign, foreign, "--text", "a h")
    assert "the text is empty" in refused(a, a, "--text", "")
    assert "the text is not UTF-8" in refused(a, a, "--text", "\udc80")
    assert "not both" in refused(a, a, "--text", "a", "--text-file", tmp_path / "text")
    assert "text" in refused(a, a, "--text-file", tmp_path / "text")
    assert "--max-tokens must be in [1, 4096], got 0" in refused(a, a, "--max-tokens", 0)


def test_where_all_agrees_the_table_has_what_each_block_gives():
    rows = [SimpleNamespace(tensor=name) for name in ("embedding", "blocks.0", "blocks.0.mixer.input", "blocks.1",
                                                       "final_norm", "logits")]  # fmt: skip
    shown = [row.tensor for _, row in _shown(rows, None, everything=False)]
    assert shown == ["embedding", "blocks.0", "blocks.1", "logits"]
    assert [row.tensor for _, row in _shown(rows, None, everything=True)] == [row.tensor for row in rows]
