"""Families are asked, not listed: no source names one outside its own files; each gives what the base class says."""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from parity.proof import adapters, family_checks
from spec.checkpoint.checksums import checksums, sha256
from spec.checkpoint.format import Checkpoint, read_checkpoint, write_checkpoint
from spec.config import ModelConfig, config_to_json
from spec.init import initial_parameters
from spec.mixers import backend_attributes, config_from_json, families, family
from spec.parameters import parameter_table
from spec.presets import PRESETS

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
    "parity/suite/mutants/generic/coverage_record.py": "the folder of its record",
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
    config = next(iter(families().values())).small_config()
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


@OWN
@pytest.mark.parametrize("check", list(family_checks.OF_REFERENCE))
def test_the_reference_of_a_family(check, name) -> None:
    """Its configuration, parameters, adjoint, activations, side inputs and state; what each asks stands with it."""
    family_checks.OF_REFERENCE[check](name)


@OWN
@pytest.mark.parametrize("check", ["backend_module", "backend_parameters"])
def test_a_backend_has_its_mixer(adapter, check, name) -> None:
    """The parameters of the table by path and shape, methods, and a choice that is one of them."""
    family_checks.OF_BACKEND[check](name, adapter.NAME)


@OWN
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.long)])
def test_the_state_of_a_backend_is_that_of_the_reference(backend, name) -> None:
    """In pieces, row by row and token by token; JAX compiles a program for each of the shapes."""
    if reason := adapters.missing(backend):
        pytest.skip(reason)
    family_checks.backend_texts(name, backend)


def test_presets_are_in_the_order_of_the_families() -> None:
    assert list(PRESETS) == [key for one in families().values() for key in one.presets]


@pytest.mark.parametrize("name", families())
def test_a_family_of_blocks_of_its_own_has_a_mixer(name):
    """One that is made of others has theirs."""
    own = families()[name]
    blocks = {own.of_block(own.small_config(), i)[0] for i in range(own.small_config().n_layers)}
    assert ("Mixer" in backend_attributes(own)) is (blocks == {own})
