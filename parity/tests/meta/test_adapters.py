"""Both adapters are an `Adapter`, and twins: the same public names in the same order, with the same parameters."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from parity.proof import adapters

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


@pytest.mark.parametrize("name", FILES)
def test_an_adapter_has_what_the_protocol_names_and_no_more(name):
    found = public(FILES[name].read_text())
    assert set(found) == {
        member for member in {*adapters.Adapter.__annotations__, *vars(adapters.Adapter)} if not member.startswith("_")
    }
    for member, parameters in found.items():
        function = getattr(adapters.Adapter, member, None)
        if function is not None:
            assert [part.partition("=")[0].strip("* ") for part in parameters.split(", ")] == list(
                inspect.signature(function).parameters
            ), member


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("def vjp(operation, inputs, constants,", "def vjp(operation, constants, inputs,"),
        ('method="auto", compute_dtype="float32"):', 'compute_dtype="float32", method="auto"):'),
        ('    "gates": ', '    "gate": '),
        ("def initialize(", "def fresh("),
    ],
)
def test_a_difference_is_found(right, wrong):
    torch, jax = (path.read_text() for path in FILES.values())
    assert right in jax
    assert list(public(torch).items()) != list(public(jax.replace(right, wrong)).items())
