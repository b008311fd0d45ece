"""Families are asked, not listed: no source names one outside its own files; each gives what the base class says."""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from parity.proof import adapters
from parity.proof.problems.cases import perturbed_parameters
from parity.proof.problems.complex_step import complex_step
from spec.checkpoint.checksums import checksums, sha256
from spec.checkpoint.format import Checkpoint, read_checkpoint, write_checkpoint
from spec.config import ModelConfig, config_to_json
from spec.init import initial_parameters, stream
from spec.mixers import config_from_json, families, family, state_shape
from spec.mixers.base import NO_MASKS, Masks
from spec.parameters import parameter_table
from spec.presets import PRESETS, RECIPES
from spec.reference import activations, forward
from spec.reference.blocks import within

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("spec", "torch_impl", "jax_impl", "parity/proof", "parity/suite", "tools")

# `liquidnet` is the project's name as well: these say it of the project.
OF_THE_PROJECT = {
    "spec/mixers/__init__.py": "the group of entry points",
    "tools/data/hub.py": "the folder of its downloads",
    "tools/plot/figure.py": "what its SVG files are salted with",
    "tools/training/selftest.py": "the folder of its verdicts",
    "torch_impl/kernels/numba/__init__.py": "the folder of its compiled kernels",
    "parity/suite/support/doc_checks.py": "the command",
}
EXCEPTIONS = {
    "spec/__init__.py": "public names",
    "torch_impl/__init__.py": "public names",
    "jax_impl/__init__.py": "public names",
    "tools/bench/command.py": "the flag --liquid-ssm",
    "tools/bench/peers.py": "a kernel of another project",
    "tools/bench/liquid_ssm_solvers.py": "the bench of one family's own methods",
    "parity/suite/mutants/catalogue.py": "the file of faults planted in one family",
    "parity/suite/compiled/triton/problem.py": "the truth of the fused kernels, which one family has",
}
OWN = pytest.mark.parametrize("name", list(families()))


def stems() -> tuple[str, ...]:
    """How the classes of a family begin: `LiquidNet` of LiquidNetConfig."""
    return tuple(one.Config.__name__.removesuffix("Config") for one in families().values())


def is_own(path: str) -> bool:
    """Whether a file is a family's: it, or a folder that it is in, has the family's name."""
    return bool({*Path(path).with_suffix("").parts} & set(families()))


def words_of(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, word, whether it is text) of every name, import and string of a file that is no docstring."""
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstrings |= {id(one.value) for one in node.body if isinstance(one, ast.Expr)}
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word):
                yield node.lineno, word, False
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield from ((node.lineno, part, True) for part in text.split("."))
            case ast.ImportFrom(module=module, names=names):
                parts = [*(module or "").split("."), *(alias.name for alias in names)]
                yield from ((node.lineno, part, False) for part in parts)
            case ast.Import(names=names):
                yield from ((node.lineno, part, False) for alias in names for part in alias.name.split("."))


def named(path: str, source: str) -> list[str]:
    """Where a file names a family that is not its own business."""
    if is_own(path) or path in EXCEPTIONS:
        return []
    known = set(families())
    found = []
    for line, word, is_text in words_of(ast.parse(source)):
        project = is_text and path in OF_THE_PROJECT and word == "liquidnet"
        # As text the name of a class is the project's, or a title.
        if (word in known and not project) or (word.startswith(stems()) and not is_text):
            found.append(f"{path}:{line} {word}")
    return found


def sources() -> dict[str, str]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}


def test_no_family_is_named_outside_its_own_files() -> None:
    wrong = [one for path, source in sources().items() for one in named(path, source)]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_one() -> None:
    """What no longer names a family needs no exception."""
    found = sources()
    for listed in (EXCEPTIONS, OF_THE_PROJECT):
        for path in list(listed):
            with pytest.MonkeyPatch.context() as without:
                without.delitem(listed, path)
                assert named(path, found[path]), path


@pytest.mark.parametrize(
    "source, count",
    [
        ("from spec.mixers.liquid_ssm import LiquidSSMConfig", 2),
        ("from spec import LiquidNetConfig as Config", 1),
        ("def f(config):\n    return isinstance(config, LiquidSSMConfig)", 1),
        ("def f(config):\n    return isinstance(config, (int, spec.LiquidNetConfig))", 1),
        ("def f(config):\n    return config.family == 'liquid_ssm'", 1),
        ("BY_FAMILY = {'liquidnet': 1}", 1),
        ("import importlib\nimportlib.import_module('torch_impl.mixers.liquid_ssm')", 1),
        ("model = models.LiquidNet(config)", 1),
        ("def f(model: LiquidSSMLanguageModel): ...", 1),
        ("print('LiquidNet: one language model')", 0),
        ("def f(config):\n    'As a LiquidNet and liquid_ssm.'\n    return family(config)", 0),
    ],
)
def test_a_planted_name_is_found(source: str, count: int) -> None:
    assert len(named("tools/export.py", source)) == count
    assert named("spec/mixers/liquid_ssm/more.py", source) == named("jax_impl/mixers/liquidnet.py", source) == []


UNKNOWN = "unknown model family 'liquid_nte'; this version knows liquidnet, liquid_ssm.*; did you mean 'liquidnet'"


@dataclass(frozen=True)
class UnknownConfig(ModelConfig):
    vocab_size: int = 5
    d_model: int = 4
    d_ff: int = 4
    n_layers: int = 1
    max_seq_len: int = 4
    norm_eps: float = 1e-6

    family: ClassVar[str] = "liquid_nte"


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path) -> None:
    """By its name, in JSON and in a checkpoint; nothing is made of it in silence."""
    for ask in (parameter_table, initial_parameters, family, lambda config: config_from_json(config_to_json(config))):
        with pytest.raises(ValueError, match=UNKNOWN):
            ask(UnknownConfig())
    config = small(next(iter(families())))
    counters = {"step": 0, "samples_consumed": 0, "tokens": 0, "seed": 0}
    write_checkpoint(tmp_path / "run", Checkpoint(config, initial_parameters(config), {}, counters))
    assert read_checkpoint(tmp_path / "run").config == config
    unknown = json.dumps({**config_to_json(config), "family": "liquid_nte"}).encode()
    (tmp_path / "run" / "config.json").write_bytes(unknown)
    sums = {path.name: sha256(path.read_bytes()) for path in (tmp_path / "run").iterdir() if path.name != "SHA256SUMS"}
    (tmp_path / "run" / "SHA256SUMS").write_bytes(checksums(sums))
    with pytest.raises(ValueError, match=UNKNOWN):
        read_checkpoint(tmp_path / "run")


def test_no_backend_builds_an_unknown_family(adapter) -> None:
    build = adapters.load_module(adapter.NAME, "model").build
    with pytest.raises(ValueError, match=UNKNOWN):
        build(UnknownConfig())


def small(name: str) -> ModelConfig:
    """A model of the family in which complex steps take no time."""
    config = next(iter(families()[name].presets.values())).config
    widths = {one.name: 4 for one in fields(config) if one.name.startswith("d_")}
    return replace(config, **widths, vocab_size=11, n_layers=2, max_seq_len=8)


def mixer_problem(name: str):
    """Weights of the first mixer, input, state, masks and side inputs of two rows of five tokens."""
    config, random = small(name), np.random.default_rng(7)
    n = family(config).state_size(config)
    weights = {k: x.astype(np.float64) for k, x in within(perturbed_parameters(config, 3), "blocks.0.mixer.").items()}
    masks = Masks(random.random((2, 5)) < 0.3, np.arange(5) < np.array([[0], [2]]))
    sizes = {"b": 2, "t": 5, "n": n}
    side = {
        one.name: random.random([sizes[a] for a in one.axes if a != "l"])
        for one in families()[name].side_inputs(config)
    }
    return config, weights, random.standard_normal((2, 5, config.d_model)), random.standard_normal((2, n)), masks, side


@OWN
def test_a_configuration_is_a_flat_object_with_its_family(name) -> None:
    one, config = families()[name], small(name)
    assert one.name == one.Config.family == name and family(config) is family(name) is one
    shared = {"vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len", "norm_eps"}
    own = [field.name for field in fields(one.Config)]
    assert shared <= set(own) and {*one.shape_fields, *one.constants} <= set(own) - shared
    stored = json.loads(json.dumps(config_to_json(config)))
    assert list(stored) == ["family", *own] and config_from_json(stored) == config
    for bad in ({"d_model": 0}, {"norm_eps": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            replace(config, **bad)


@OWN
def test_presets_are_those_of_the_families(name) -> None:
    own = families()[name].presets
    assert own and all(PRESETS[key] is one.config and RECIPES[key] is one.training for key, one in own.items())
    assert list(PRESETS) == [key for one in families().values() for key in one.presets]


@OWN
def test_parameters_begin_as_a_function_of_their_stream(name) -> None:
    """Of no global generator, in the shape of the table, in float32; a fused matrix has the rows of its parts."""
    rows = families()[name].parameters(small(name))
    assert len({row.path for row in rows}) == len(rows)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for row in rows:
        first, again = (row.init(stream(3, row.path), row.shape) for _ in range(2))
        assert first.dtype == np.float32 and first.shape == row.shape and np.array_equal(first, again)
        assert sum(row.parts.values()) == row.shape[0] and " | ".join(row.parts) == row.axes[0]
        assert len(row.axes) == len(row.shape) and row.weight_decay == (len(row.shape) == 2)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@OWN
def test_the_adjoint_is_that_of_the_forward_pass(name) -> None:
    """Each weight, the input and the initial state by complex steps, resets, padding and side inputs included."""
    config, weights, z, state, masks, side = mixer_problem(name)
    own, random = families()[name], np.random.default_rng(8)
    mixed = own.forward(z, weights, config, state, masks, side)
    to_y, to_last = random.standard_normal(mixed.y.shape), random.standard_normal(mixed.last.shape)

    def total(z, weights, state):
        z, state, *of = (x.astype(np.complex128) for x in (z, state, *weights.values()))
        found = own.forward(z, dict(zip(weights, of, strict=True)), config, state, masks, side)
        return (to_y * found.y).sum() + (to_last * found.last).sum()

    grad_z, gradients, grad_state = own.adjoint(mixed.saved, to_y, to_last)
    assert set(gradients) == set(weights)
    found = {"z": grad_z, "state": grad_state, **gradients}
    expected = {
        "z": complex_step(lambda x: total(x, weights, state), z),
        "state": complex_step(lambda x: total(z, weights, x), state),
        **{k: complex_step(lambda x, k=k: total(z, {**weights, k: x}, state), w) for k, w in weights.items()},
    }
    for key, exact in expected.items():
        np.testing.assert_allclose(found[key], exact, rtol=1e-11, atol=1e-12, err_msg=key)


@OWN
def test_activations_are_what_the_family_lists(name) -> None:
    """In the forward pass and one step at a time, which from the right ones gives the right ones."""
    config, weights, z, *_ = mixer_problem(name)
    own = families()[name]
    mixed = own.forward(z, weights, config, None, NO_MASKS, {})
    assert tuple(mixed.activations) == own.activations and own.activations[-2:] == (own.recurrence, "output")
    alone, last, y = own.each_alone(z, weights, config, mixed.activations)
    for key, exact in {**mixed.activations, "last": mixed.last, "y": mixed.y}.items():
        np.testing.assert_allclose({**alone, "last": last, "y": y}[key], exact, rtol=1e-12, atol=1e-14, err_msg=key)
    inside = activations(initial_parameters(config), config, np.zeros((1, 2), int))
    tensors = {key.removeprefix("blocks.0.") for key in inside}
    assert {*own.formulas, *own.enters.values()} <= tensors
    assert set(own.enters) <= {f"mixer.{path}" for path in weights}


@OWN
def test_side_inputs_are_read_by_name_and_checked(name) -> None:
    """Each changes what the model gives, under its alias too; another name, a wrong shape or both names are refused."""
    config, own = small(name), families()[name]
    params, tokens = perturbed_parameters(config, 1), np.arange(6).reshape(2, 3)
    plain = forward(params, config, tokens)[0]
    sizes = {**dict(zip("lbn", state_shape(config, 2), strict=True)), "t": 3}
    for one in own.side_inputs(replace(config, **EXPLORING.get(name, {}))):
        array = np.random.default_rng(1).random([sizes[axis] for axis in one.axes])
        for key in filter(None, (one.name, one.alias)):
            exploring = replace(config, **EXPLORING.get(name, {}))
            assert np.abs(forward(params, exploring, tokens, **{key: array})[0] - plain).max() > 1e-6
            with pytest.raises(ValueError, match=rf"{key} \[.*must have shape"):
                forward(params, config, tokens, **{key: array[:1, :1]})
        if one.alias:
            with pytest.raises(ValueError, match="one and the same"):
                forward(params, config, tokens, **{one.name: array, one.alias: array})
        of_batch = array.transpose(np.argsort(one.permutation))
        assert of_batch.shape[:2] == (2, 3)
        np.testing.assert_array_equal(own.in_order_of_call(config, {one.name: of_batch})[one.name], array)
    with pytest.raises(ValueError, match=f"a {own.title} takes no side input 'weather'"):
        forward(params, config, tokens, weather=np.ones((2, 3)))


EXPLORING = {"liquid_ssm": {"exploration_rate": 0.5}}


@OWN
def test_training_side_inputs_are_a_function_of_seed_and_sample(name) -> None:
    config, own = replace(small(name), **EXPLORING.get(name, {})), families()[name]
    first, again, other = (own.training_side_inputs(config, 3, sample, 5) for sample in (8, 8, 9))
    assert set(first) <= {one.name for one in own.side_inputs(config)}
    for key, array in first.items():
        assert len(array) == 5 and array.dtype == np.float32
        assert np.array_equal(array, again[key]) and not np.array_equal(array, other[key])


@OWN
def test_a_backend_has_its_mixer(adapter, name) -> None:
    """The parameters of the table by path and shape, methods, and a choice that is one of them."""
    module = adapters.load_module(adapter.NAME, "mixers").mixer_module(name)
    config = small(name)
    built = adapters.load_module(adapter.NAME, "model").build(config, seed=2)
    assert type(built) is getattr(module, "Model", adapters.load_module(adapter.NAME, "model").LanguageModel)
    assert type(built.blocks[0].mixer) is module.Mixer
    found = adapters.load_module(adapter.NAME, "checkpoint.native").dump_parameters(built)
    for path, array in initial_parameters(config, 2).items():
        np.testing.assert_array_equal(found.pop(path), array, err_msg=path)
    assert not found
    assert module.choose_method(config, 2, 8) in module.METHODS
    for method in ("auto", *module.METHODS):
        assert all(isinstance(one, bool) for one in module.capabilities(config, method))
    assert families()[name].operation in adapter.METHODS
