"""torch_impl and jax_impl are twins: the same files, names, order, parameters and docstrings; only bodies differ.

The allowed differences are listed in CONTRIBUTING.md; `PARAMETERS_OF_ONE` and `CALL` are the two that concern names.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# These are compared name by name.
STRICT = ["layers.py", "mixer.py", "dynamics.py", "trajectory.py", "liquid_ssm.py", "model.py", "loss.py"]
# These have a twin and say so on line 1; what they hold is the framework's own.
NAMED = [
    "optimizer.py",
    "data.py",
    "checkpoint.py",
    "train.py",
    "generate.py",
    "scan/__init__.py",
    "scan/sequential.py",
    "scan/chunked.py",
]
# Of these what both have is compared: a process of torch has one device, one of JAX has several.
LEADING = {
    "parallel.py": [
        "ParallelContext",
        "ParallelContext.is_peer_loss",
        "ParallelContext.total",
        "ParallelContext.gather",
        "initialize",
        "is_initialized",
        "exit_if_initialized",
    ],
    "scan/context_parallel.py": ["Scan", "Adjoint", "time_sharded", "sharing"],
}

PARAMETERS_OF_ONE = frozenset({"self", "cls", "device"})
CALL = {"forward": "call", "__call__": "call"}
KINDS = ("property", "classmethod", "staticmethod")

TRUTH = r"spec/(?:[\w/]+\.py)?"
LINE_1 = re.compile(rf'"""(?P<what>.+\.) Twin: (?P<twin>\S+\.py)\. Truth: (?P<truth>{TRUTH}(?:(?:, | and ){TRUTH})*)\.')


def shared_files() -> list[str]:
    """Every file that stands on both sides and says something."""
    sides = [
        {str(path.relative_to(ROOT / side)) for path in (ROOT / side).rglob("*.py") if path.stat().st_size}
        for side in ("torch_impl", "jax_impl")
    ]
    return sorted(sides[0] & sides[1])


def first_sentence(node: ast.AST) -> str | None:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    text = ast.get_docstring(node)
    return text and " ".join(re.split(r"(?<=\.)\s|\n\n", text, maxsplit=1)[0].split())


def literal(default: ast.expr | None) -> str:
    """A default as text. Which framework a name comes from (torch.float32, jnp.float32) is no difference."""
    if default is None:
        return ""
    return "=" + (default.attr if isinstance(default, ast.Attribute) else ast.unparse(default))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names and defaults in order, `*` and `**` marked, without the parameters that one side may have."""
    args = function.args
    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    listed = [(arg.arg, literal(default)) for arg, default in zip(plain, defaults, strict=True)]
    if args.vararg:
        listed.append((f"*{args.vararg.arg}", ""))
    elif args.kwonlyargs:
        listed.append(("*", ""))
    listed += [(arg.arg, literal(default)) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        listed.append((f"**{args.kwarg.arg}", ""))
    kept = [name + default for name, default in listed if name not in PARAMETERS_OF_ONE]
    return kept[:-1] if kept[-1:] == ["*"] else kept


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, those under `try` and `if` (an optional entry) among them."""
    for node in body:
        optional = isinstance(node, ast.If) and "__name__" not in ast.unparse(node.test)
        if optional or isinstance(node, ast.Try):
            yield from statements(node.body + node.orelse)
        else:
            yield node


def assigned(node: ast.stmt) -> list[str]:
    """Names that a statement binds; `METHODS["chunked"] = ...` binds none."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def surface(body: list[ast.stmt], prefix: str = "") -> dict[str, tuple[str, object, object]]:
    """Public names in order, each with its kind, its parameters and the first sentence of its docstring."""
    found: dict[str, tuple[str, object, object]] = {}
    for node in statements(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = CALL.get(node.name, node.name) if prefix else node.name
            if not name.startswith("_") or (prefix and name == "__init__"):
                decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                kind = " ".join(["function", *(kind for kind in KINDS if kind in decorators)])
                found[prefix + name] = (kind, parameters(node), first_sentence(node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found[prefix + node.name] = ("class", None, first_sentence(node))
            found |= surface(node.body, f"{prefix}{node.name}.")
        else:
            found |= {prefix + name: ("value", None, None) for name in assigned(node) if not name.startswith("_")}
    return found


def differences(torch_source: str, jax_source: str) -> list[str]:
    """What tells one twin from the other, beyond what is allowed."""
    torch_side, jax_side = (surface(ast.parse(source).body) for source in (torch_source, jax_source))
    found = [f"{name}: only in torch_impl" for name in torch_side if name not in jax_side]
    found += [f"{name}: only in jax_impl" for name in jax_side if name not in torch_side]
    if not found and list(torch_side) != list(jax_side):
        found.append(f"order: {list(torch_side)} in torch_impl, {list(jax_side)} in jax_impl")
    for name in torch_side.keys() & jax_side.keys():
        for what, one, other in zip(("kind", "parameters", "docstring"), torch_side[name], jax_side[name], strict=True):
            if one != other:
                found.append(f"{name}: {what} {one!r} in torch_impl, {other!r} in jax_impl")
    return sorted(found)


def read_both(name: str) -> tuple[str, str]:
    paths = [ROOT / side / name for side in ("torch_impl", "jax_impl")]
    missing = [str(path.relative_to(ROOT)) for path in paths if not path.exists()]
    assert not missing, f"no twin: {missing}"
    torch_source, jax_source = (path.read_text("utf-8") for path in paths)
    return torch_source, jax_source


@pytest.mark.parametrize("name", STRICT)
def test_twins_have_the_same_surface(name: str) -> None:
    torch_source, jax_source = read_both(name)
    compared = surface(ast.parse(torch_source).body)
    assert any(kind.startswith(("function", "class")) for kind, _, _ in compared.values()), (
        f"{name}: nothing to compare"
    )
    found = differences(torch_source, jax_source)
    assert not found, f"{name}:\n" + "\n".join(found)


@pytest.mark.parametrize("name", LEADING)
def test_what_both_have_of_these_twins_is_the_same(name: str) -> None:
    found = [one for one in differences(*read_both(name)) if ": only in " not in one]
    assert not found, f"{name}:\n" + "\n".join(found)
    torch_side, jax_side = ([*surface(ast.parse(source).body)] for source in read_both(name))
    common = [one for one in torch_side if one in jax_side]
    assert [one for one in jax_side if one in torch_side] == common == LEADING[name]


@pytest.mark.parametrize("name", sorted({*STRICT, *NAMED, *shared_files()}))
def test_line_1_names_twin_and_truth(name: str) -> None:
    lines = [source.partition("\n")[0] for source in read_both(name)]
    matches = [LINE_1.match(line) for line in lines]
    for match, line, twin in zip(matches, lines, ("jax_impl", "torch_impl"), strict=True):
        assert match, f"{name}: line 1 should read 'What it is. Twin: {twin}/{name}. Truth: spec/....py.', got {line}"
        assert match["twin"] == f"{twin}/{name}"
        for truth in re.split(r", | and ", match["truth"]):
            assert (ROOT / truth).exists(), f"{name}: no such truth {truth}"
    if name not in NAMED and name != "__init__.py":
        assert len({match["what"] for match in matches if match}) == 1, f"{name}: two descriptions of one thing"


TWIN = '''
LIMIT = 3

class Mixer(nn.Module):
    """Mixes. More of it."""

    def __init__(self, width, *, rank=2, dtype=torch.float32, device=None):
        super().__init__()

    def forward(self, x_btd, state_bd=None):
        """Absorbs tokens."""

    @property
    def width(self): ...

def scan(decay_btd, drive_btd, state_bd=None):
    """Scans."""

def _helper(): ...
'''
ALLOWED = [
    ("def forward(", "def __call__("),
    (", device=None", ""),
    ("        super().__init__()\n", "        pass\n"),
    ("torch.float32", "jnp.float32"),
    ("nn.Module", "nnx.Module"),
    ("def _helper(): ...\n", ""),
    ("More of it.", "More of something else."),
]
PLANTED = [
    ("LIMIT = 3\n", ""),
    ("class Mixer(", "class Blender("),
    ("Mixes.", "Stirs."),
    ("width, *, rank", "size, *, rank"),
    ("rank=2", "rank=4"),
    ("*, rank=2", "rank=2"),
    ("state_bd=None):\n        ", "state_bd):\n        "),
    ("def forward(", "def absorb("),
    ("    @property\n", ""),
    ("drive_btd, state_bd", "state_bd, drive_btd"),
    ("def _helper(", "def helper("),
    ("LIMIT = 3\n", "LIMIT = 3\nOTHER = 4\n"),
]


@pytest.mark.parametrize("old, new", ALLOWED)
def test_an_allowed_difference_passes(old: str, new: str) -> None:
    assert TWIN.count(old) == 1
    assert differences(TWIN, TWIN.replace(old, new)) == []


@pytest.mark.parametrize("old, new", PLANTED)
def test_a_planted_difference_is_found(old: str, new: str) -> None:
    assert TWIN.count(old) == 1
    assert differences(TWIN, TWIN.replace(old, new))


def test_a_changed_order_is_found() -> None:
    first, second = "def f(): ...\n", "def g(): ...\n"
    assert differences(first + second, first + second) == []
    assert differences(first + second, second + first)
