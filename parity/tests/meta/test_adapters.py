"""Both adapters are twins: the same public names in the same order, with the same parameters. What they compute in."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from parity.proof import adapters, environment

FILES = {name: Path(adapters.__file__).with_name(f"{name}.py") for name in adapters.FRAMEWORKS}


def public(source: str) -> dict[str, str]:
    """Public functions with their parameters, public constants with the keys of their dict, in order."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.unparse(node.args)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            found[node.targets[0].id] = ", ".join(ast.unparse(key) for key in keys if key is not None)
    return {name: what for name, what in found.items() if not name.startswith("_")}


def test_the_adapters_are_twins():
    torch, jax = (list(public(path.read_text()).items()) for path in FILES.values())
    assert torch == jax


def test_one_adapter_says_what_each_function_does():
    functions = [node for node in ast.parse(FILES["torch"].read_text()).body if isinstance(node, ast.FunctionDef)]
    assert [one.name for one in functions if not one.name.startswith("_") and not ast.get_docstring(one)] == []


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("def vjp(operation, inputs, constants,", "def vjp(operation, constants, inputs,"),
        ('method="auto", compute_dtype="float32", side=None):', 'compute_dtype="float32", method="auto", side=None):'),
        ('"rsqrt": ', '"sqrt": '),
        ("def initialize(", "def fresh("),
    ],
)
def test_a_difference_is_found(right, wrong):
    torch, jax = (path.read_text() for path in FILES.values())
    assert right in jax
    assert list(public(torch).items()) != list(public(jax.replace(right, wrong)).items())


def test_sums_have_one_order_and_float32_is_float32():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    environment.one_thread_and_full_float32()
    assert torch.get_num_threads() == 1
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_the_sources_are_those_of_a_commit_or_changed_since(tmp_path):
    assert environment.commit(tmp_path) is None

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    name = environment.commit(tmp_path)
    assert name is not None and re.fullmatch("[0-9a-f]{7,40}", name)
    (tmp_path / "a").write_text("2")
    assert environment.commit(tmp_path) == f"{name}+"
