"""Each backend runs where the other is not installed, and imports point one way, without circles."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity.suite.support import import_graph

ROOT = Path(__file__).resolve().parents[3]
#: Python files that a folder may hold, beside its __init__.py.
MOST_FILES = 15
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
        ("torch_impl/train.py", "if __name__ == '__main__':\n    from tools.training.train import main", 0),
        ("torch_impl/train.py", "from tools.training.train import main", 1),
        ("jax_impl/model.py", "try:\n    import torch_impl\nexcept ImportError:\n    pass", 1),
    ],
)
def test_a_planted_import_is_found(path: str, source: str, count: int) -> None:
    assert len(against_the_arrows(path, source)) == count


def test_imports_have_no_circle_and_none_points_up() -> None:
    """parity/suite -> tools -> parity/proof -> torch_impl | jax_impl -> spec, each module after those that it needs."""
    graph = import_graph.import_graph()
    assert len(graph) > 200
    assert import_graph.circles(graph) == []
    assert import_graph.upward(graph) == []


def plant(root: Path, files: dict[str, str]) -> import_graph.Graph:
    for path, source in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(source)
    return import_graph.import_graph(root)


SOUND = {
    "spec/__init__.py": "",
    "spec/data.py": "import numpy",
    "torch_impl/model.py": "from spec import data",
    "torch_impl/train.py": "if __name__ == '__main__':\n    from tools.main import main\n    main()",
    "parity/proof/bounds.py": "def f():\n    from torch_impl.model import Model",
    "tools/main.py": "import parity.proof.bounds",
    "parity/suite/report.py": "from tools.main import main",
    "parity/tests/test_report.py": "from parity.suite import report",
}


@pytest.mark.parametrize(
    "path, source, circle, up",
    [
        ("spec/more.py", "import json", [], []),
        ("spec/data.py", "import spec.more", [], []),
        ("spec/data.py", "from torch_impl.model import Model", ["spec.data", "torch_impl.model"], ["torch_impl.model"]),
        (
            "spec/data.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from parity.proof import bounds",
            ["parity.proof.bounds", "spec.data", "torch_impl.model"],
            ["parity.proof.bounds"],
        ),
        (
            "torch_impl/model.py",
            "import importlib\ndef f():\n    return importlib.import_module('parity.proof.bounds')",
            ["parity.proof.bounds", "torch_impl.model"],
            ["parity.proof.bounds"],
        ),
        ("torch_impl/model.py", "from jax_impl.model import Model", [], ["jax_impl.model"]),
        ("torch_impl/model.py", "if __name__ == '__main__':\n    from tools import other", [], ["tools.other"]),
        ("torch_impl/train.py", "from tools import other", [], ["tools.other"]),
        ("parity/proof/bounds.py", "from tools.other import x", [], ["tools.other"]),
        ("parity/__init__.py", "from tools.other import x", [], ["tools.other"]),
        ("tools/main.py", "import parity.suite.other", [], ["parity.suite.other"]),
        ("parity/suite/report.py", "from parity.tests.test_report import x", None, ["parity.tests.test_report"]),
        ("tools/main.py", "from tools import second", ["tools.main", "tools.second"], []),
    ],
)
def test_a_planted_circle_or_upward_import_is_found(
    tmp_path: Path, path: str, source: str, circle: list[str] | None, up: list[str]
) -> None:
    beside = {"jax_impl/model.py": "", "tools/other.py": "", "parity/suite/other.py": "", "spec/more.py": ""}
    beside["tools/second.py"] = "def f():\n    from tools.main import main"
    graph = plant(tmp_path, SOUND | beside)
    assert import_graph.circles(graph) == [] and import_graph.upward(graph) == []
    graph = plant(tmp_path, {path: source})
    if circle is not None:
        assert import_graph.circles(graph) == ([circle] if circle else [])
    assert [target for _, target in import_graph.upward(graph)] == up


def modules_by_name(source: str) -> Iterator[tuple[str | None, str, str | None]]:
    """(backend where it is written out, module, the name that is taken of it) of each `load(backend, "module")`."""
    tree = ast.parse(source)
    taken = {id(node.value): node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("load", "load_module"):
            literal = [one.value if isinstance(one, ast.Constant) else None for one in node.args]
            if len(literal) == 2 and isinstance(literal[1], str):
                yield literal[0], literal[1], taken.get(id(node))


def missing_of_a_backend(source: str) -> list[str]:
    """What a source asks a backend for by name and neither has; what one alone has is asked of that one."""
    wrong = []
    for backend, module, name in modules_by_name(source):
        stems = [
            ROOT / f"{side}_impl" / module.replace(".", "/") for side in ([backend] if backend else ["torch", "jax"])
        ]
        files = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
        if not files or (name and not all(name in file.read_text("utf-8") for file in files)):
            wrong.append(f"{module}{f'.{name}' if name else ''}")
    return wrong


def test_what_is_asked_of_a_backend_by_name_is_there() -> None:
    sources = {path: path.read_text("utf-8") for path in python_files()}
    assert sum(len([*modules_by_name(source)]) for source in sources.values()) > 30
    wrong = {
        str(path.relative_to(ROOT)): missing for path in sources if (missing := missing_of_a_backend(sources[path]))
    }
    assert not wrong, wrong


def test_a_name_that_no_backend_has_is_found() -> None:
    assert missing_of_a_backend("backends.load(backend, 'checkpoint').read_native(path)") == ["checkpoint.read_native"]
    assert missing_of_a_backend("load_module('jax', 'ops.devices')") == ["ops.devices"]
    assert missing_of_a_backend("load_module(backend, 'ops.devices').default_device()") == []


def test_the_picture_is_that_of_the_sources() -> None:
    drawn = import_graph.picture(import_graph.import_graph())
    kept = (ROOT / "docs/design/architecture.svg").read_text("utf-8")
    command = "python -m parity.suite.support.import_graph --output docs/design/architecture.svg"
    assert drawn == kept, f"imports have changed; draw them anew: {command}"


#: Of what both spec and the backends may not import.
HIGHER = {"parity.proof", "tools.cli.main"}


@pytest.mark.parametrize(
    "directory, banned, allowed",
    [
        ("spec", {"torch", "triton", "jax", "flax", "optax", "torch_impl", "jax_impl", "tools"} | HIGHER, {"numpy"}),
        ("torch_impl/ops/scan", {"jax", "flax", "jax_impl.model"} | HIGHER, {"spec.data", "torch"}),
        ("jax_impl/ops/scan", {"torch", "triton", "torch_impl.model"} | HIGHER, {"spec.data", "jax"}),
        ("parity/proof/bounds", {"tools.convert", "parity.suite.soak", "parity.tests.conftest"}, {"torch_impl", "jax"}),
        ("tools/cli", {"parity.suite.soak", "parity.tests.conftest"}, {"parity.proof.bounds", "torch", "jax_impl"}),
        ("parity/suite/runs", {"parity.tests.conftest"}, {"tools.convert", "parity.proof.bounds", "torch"}),
    ],
)
def test_ruff_forbids_what_points_up(directory: str, banned: set[str], allowed: set[str]) -> None:
    beside = Path(sys.executable).parent / "ruff"
    ruff = str(beside) if beside.is_file() else shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    order = [*sorted(banned), *sorted(allowed)]
    source = "\n".join(f"def f{i}():\n    import {name}" for i, name in enumerate(order))
    command = [ruff, "check", "--no-cache", "--select=TID251", "--output-format=concise"]
    command += [f"--stdin-filename={directory}/x.py", "-"]
    done = subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if "TID251" in line}
    assert {order[line // 2 - 1] for line in lines} == banned, done.stdout + done.stderr


def python_files() -> list[Path]:
    files = [path for package in sorted(OWN) for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 300
    return files


def test_a_folder_holds_few_files() -> None:
    """What is one more file is one more folder, or part of another file."""
    folders = [path.parent for path in python_files() if path.name != "__init__.py"]
    full = {str(f.relative_to(ROOT)): folders.count(f) for f in folders if folders.count(f) > MOST_FILES}
    assert not full, full


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files()
        if (source := path.read_text("utf-8").strip()) and not ast.get_docstring(ast.parse(source))
    ]
    assert not silent, silent


def imports_in_strings(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of our own in the programs that a source holds as strings; name may be empty."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value):
            continue
        try:
            program = ast.parse(node.value)
        except SyntaxError:
            continue  # a sentence, or a program with places to fill in
        for found in ast.walk(program):
            if isinstance(found, ast.Import):
                yield from ((alias.name, "") for alias in found.names if alias.name.partition(".")[0] in OWN)
            elif isinstance(found, ast.ImportFrom) and (found.module or "").partition(".")[0] in OWN:
                yield from ((found.module or "", alias.name) for alias in found.names if alias.name != "*")


def missing_names(source: str) -> list[str]:
    """What these programs import and no module has: a run of the test alone would tell, and some take minutes."""

    def is_there(module: str, name: str) -> bool:
        files = [ROOT / f"{module.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
        texts = [path.read_text("utf-8") for path in files if path.is_file()]
        place = ROOT / module.replace(".", "/")
        inside = (place / f"{name}.py").is_file() or (place / name).is_dir()
        return bool(texts) and (not name or inside or any(re.search(rf"\b{name}\b", text) for text in texts))

    return [f"{module} {name}" for module, name in imports_in_strings(source) if not is_there(module, name)]


def test_programs_in_strings_import_what_is_there() -> None:
    planted = ("test_imports.py", "test_mutants.py", "test_generic_mutants.py")
    found = {
        path.name: missing
        for path in sorted((ROOT / "parity").rglob("*.py"))
        if path.name not in planted and "recorded" not in path.parts and (missing := missing_names(path.read_text()))
    }
    assert not found, found


@pytest.mark.parametrize(
    "program", ["from tools.nowhere import main", "import spec.nowhere", "from spec.data import gone"]
)
def test_a_program_that_imports_what_is_gone_is_found(program: str) -> None:
    assert missing_names(f"PROGRAM = {program!r}") and not missing_names("PROGRAM = 'from spec.data import Batch'")
