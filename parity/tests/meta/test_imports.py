"""Each backend runs where the other is not installed, and imports point one way: tools, parity -> impl -> spec."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
OWN = frozenset({"spec", "torch_impl", "jax_impl", "parity", "tools"})
TORCH = frozenset({"torch", "triton", "torch_impl"})
JAX = frozenset({"jax", "jaxlib", "flax", "optax", "orbax", "jax_impl"})
ABOVE = frozenset({"parity", "tools"})

SPEC_MAY_IMPORT = frozenset({"spec", "numpy", "ml_dtypes", "safetensors", "jaxtyping"}) | sys.stdlib_module_names
IMPL_MAY_NOT_IMPORT = {"torch_impl": JAX | ABOVE, "jax_impl": TORCH | ABOVE}

# A model in PyTorch, written out as one, which the bench imports on demand.
PEER = "tools.bench.peers"

# Hidden packages are absent, not broken: `importlib.util.find_spec` finds nothing, as on a machine without them.
HIDE = """
import sys
hidden = {hidden!r}

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""

SEE_NOTHING = """
seen = hidden & {name.partition(".")[0] for name in sys.modules}
assert not seen, f"imported although hidden: {sorted(seen)}"
"""

# A module may lack an optional third package; it may lack neither the hidden ones nor a module of this project.
IMPORT_ALL = """
import importlib
for module in {modules!r}:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        assert (error.name or "").partition(".")[0] not in hidden | {own!r}, f"{{module}} needs {{error.name}}"
"""

# Imports inside functions are seen only by running them.
RUN_MODEL = """
import {package} as backend
from spec import LiquidNetConfig
{tokens}
model = backend.LiquidNet(LiquidNetConfig(vocab_size=11, d_model=8, d_ff=16, n_layers=2, max_seq_len=8))
logits, states = model(tokens)
assert tuple(logits.shape) == (1, 3, 11) and tuple(states.shape) == (2, 1, 8)
logits, states = model(tokens[:, :1], states=states)
backend.load_parameters(model, backend.dump_parameters(model))
"""

TOKENS = {
    "torch_impl": "import torch; tokens = torch.tensor([[1, 2, 3]])",
    "jax_impl": "import jax.numpy as jnp; tokens = jnp.array([[1, 2, 3]])",
}


def run_without(hidden: frozenset[str], code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter in which the packages of `hidden` do not exist."""
    script = HIDE.format(hidden=hidden) + code
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)


def modules_of(package: str) -> list[str]:
    """Every module of a package by its dotted name, `__main__` excepted."""
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / package).rglob("*.py"))]
    assert paths, f"{package}/ is empty"
    parts = [path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts for path in paths]
    return [".".join(part) for part in parts if part[-1] != "__main__"]


def skip_without(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_hiding_hides() -> None:
    """The tests below could not fail if a hidden package could still be imported, or if one seen went unreported."""
    absent = "import importlib.util; assert importlib.util.find_spec('numpy') is None"
    assert run_without(frozenset({"numpy"}), absent).returncode == 0
    assert "No module named 'numpy'" in run_without(frozenset({"numpy"}), "import spec").stderr
    seen = run_without(frozenset(), "import json; hidden = {'json'}" + SEE_NOTHING)
    assert "imported although hidden: ['json']" in seen.stderr


@pytest.mark.parametrize("package, framework, hidden", [("torch_impl", "torch", JAX), ("jax_impl", "flax", TORCH)])
def test_a_backend_runs_without_the_other(package: str, framework: str, hidden: frozenset[str]) -> None:
    skip_without(framework)
    code = IMPORT_ALL.format(modules=modules_of(package), own=OWN) + RUN_MODEL.format(
        package=package, tokens=TOKENS[package]
    )
    done = run_without(hidden, code + SEE_NOTHING)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("package", ["spec", "tools"])
def test_spec_and_tools_import_without_any_backend(package: str) -> None:
    """The command line answers `--help` on a machine with one backend, or none."""
    modules = [module for module in modules_of(package) if module != PEER]
    code = IMPORT_ALL.format(modules=modules, own=OWN)
    done = run_without(TORCH | JAX, code + SEE_NOTHING)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("module", ["spec", "tools.cli.main"])
def test_no_backend_is_loaded_before_it_is_asked_for(module: str) -> None:
    done = run_without(frozenset(), f"import {module}\nhidden = {TORCH | JAX!r}{SEE_NOTHING}")
    assert done.returncode == 0, done.stderr[-4000:]


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports(tree: ast.Module, *, with_main: bool = True) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, those inside functions too; relative ones stay at home."""
    for statement in tree.body:
        if is_main_guard(statement) and not with_main:
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.lineno, (node.module or "").partition(".")[0]


def against_the_arrows(path: str, source: str) -> list[str]:
    """Imports of a file that its place in the tree forbids."""
    package = path.partition("/")[0]
    # `python -m torch_impl.train` is the same shell as `liquidnet train torch`: the one arrow that points up.
    with_main = path != f"{package}/train.py"
    found = imports(ast.parse(source), with_main=with_main)
    if package == "spec":
        return [f"{path}:{line} {name}" for line, name in found if name not in SPEC_MAY_IMPORT]
    return [f"{path}:{line} {name}" for line, name in found if name in IMPL_MAY_NOT_IMPORT[package]]


@pytest.mark.parametrize("package", ["spec", "torch_impl", "jax_impl"])
def test_imports_point_one_way(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths, f"{package}/ is empty"
    wrong = [bad for path in paths for bad in against_the_arrows(str(path.relative_to(ROOT)), path.read_text("utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path, source, count",
    [
        ("spec/data.py", "import scipy", 1),
        ("spec/data.py", "def f():\n    from torch import nn", 1),
        ("spec/data.py", "import json, numpy.random\nfrom spec.axes import BTD", 0),
        ("torch_impl/model.py", "import torch, jax.numpy", 1),
        ("torch_impl/model.py", "if __name__ == '__main__':\n    from tools.training.train import main", 1),
        ("torch_impl/training/engine.py", "if __name__ == '__main__':\n    from tools.training.train import main", 0),
        ("torch_impl/training/engine.py", "from tools.training.train import main", 1),
        ("jax_impl/model.py", "try:\n    import torch_impl\nexcept ImportError:\n    pass", 1),
    ],
)
def test_a_planted_import_is_found(path: str, source: str, count: int) -> None:
    assert len(against_the_arrows(path, source)) == count
