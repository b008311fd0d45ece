"""torch_impl and jax_impl are twins: the same files, names, order, parameters and docstrings; only bodies differ.

The files are found, not listed. The allowed differences are those of CONTRIBUTING.md: of names, PARAMETERS_OF_ONE and
CALL; of files, DIFFERENT; and a file that has no twin says why on line 1.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
SIDES = ("torch_impl", "jax_impl")


class Different(NamedTuple):
    """Of such a file either side may have public names of its own; what both have is the same but for `names`."""

    why: str
    names: frozenset[str] = frozenset()


DIFFERENT = {
    "checkpoint/native.py": Different(
        "each framework's own file format", frozenset({"to_numpy", "read_native", "write_native"})
    ),
    "checkpoint/sharded.py": Different(
        "DCP writes safetensors, Orbax its own files", frozenset({"AsyncSave.done", "read_shards"})
    ),
    "ops/cross_entropy/fused_linear.py": Different(
        "chunks of rows for a GPU or a CPU, tiles of rows and words for a TPU",
        frozenset({"fused_linear_cross_entropy"}),
    ),
    "ops/scan/__init__.py": Different("the tensors tell device and dtype", frozenset({"choose_method"})),
    "ops/scan/chunked.py": Different("an adjoint of its own, which shifts no array"),
    "ops/scan/sequential.py": Different("an adjoint of its own, which shifts no array"),
    "protocols.py": Different("a module of PyTorch tells its parameters itself"),
    "training/data.py": Different("one device, or a mesh of them", frozenset({"to_device"})),
    "training/distributed.py": Different("a process has one device, or several"),
    "training/engine.py": Different(
        "eager or one program", frozenset({"Engine.__init__", "Engine.profile", "Engine.sampler"})
    ),
    "training/muon.py": Different("PyTorch's optimizer holds its state, that of optax is handed around"),
    "training/optimizer.py": Different(
        "PyTorch's optimizer holds its state, that of optax is handed around",
        frozenset({"make_optimizer", "clip_by_global_norm", "named_moments", "dump_moments", "load_moments"}),
    ),
}

PARAMETERS_OF_ONE = frozenset({"self", "cls", "device"})
CALL = {"forward": "call", "__call__": "call"}
KINDS = ("property", "classmethod", "staticmethod")

TRUTH = r"spec/(?:[\w/]+\.py)?"
TRUTHS = rf"(?: Truth: (?P<truth>{TRUTH}(?:(?:, | and ){TRUTH})*)\.)"
TWIN = re.compile(rf'"""(?P<what>.+\.) Twin: (?P<twin>\w+)\.{TRUTHS}')
NO_TWIN = re.compile(rf'"""(?P<what>.+\.) No twin: (?P<why>[^.]{{4,}})\.{TRUTHS}?')
# What each side calls its framework.
FRAMEWORK = re.compile(r"PyTorch|JAX and Flax NNX|JAX|Flax|torch(_impl)?\b|jax(_impl)?\b")


def sources(side: str) -> dict[str, str]:
    """Every file of one side that says something."""
    found = {str(path.relative_to(ROOT / side)): path.read_text("utf-8") for path in (ROOT / side).rglob("*.py")}
    return {name: text for name, text in found.items() if text.strip()}


TORCH, JAX = map(sources, SIDES)
SHARED = sorted(TORCH.keys() & JAX.keys())
ALONE = [(side, name) for side, one, other in zip(SIDES, (TORCH, JAX), (JAX, TORCH), strict=True)
         for name in sorted(one.keys() - other.keys())]  # fmt: skip


def first_sentence(node: ast.AST) -> str | None:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    text = ast.get_docstring(node)
    return text and FRAMEWORK.sub("...", " ".join(re.split(r"(?<=\.)\s|\n\n", text, maxsplit=1)[0].split()))


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
    listed = [(arg.arg, literal(default)) for arg, default in builtins.zip(plain, defaults, strict=True)]
    if args.vararg:
        listed.append((f"*{args.vararg.arg}", ""))
    elif args.kwonlyargs:
        listed.append(("*", ""))
    listed += [
        (arg.arg, literal(default)) for arg, default in builtins.zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
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


class Difference(NamedTuple):
    """`side` has a name alone; where neither does, `what` of a name is not the same."""

    name: str
    what: str
    side: str | None = None


def differences(torch_source: str, jax_source: str) -> list[Difference]:
    """What tells one twin from the other, beyond the differences of names that are allowed everywhere."""
    torch_side, jax_side = (surface(ast.parse(source).body) for source in (torch_source, jax_source))
    found = [Difference(name, "only here", SIDES[0]) for name in torch_side if name not in jax_side]
    found += [Difference(name, "only here", SIDES[1]) for name in jax_side if name not in torch_side]
    common = [[name for name in one if name in torch_side.keys() & jax_side.keys()] for one in (torch_side, jax_side)]
    if common[0] != common[1]:
        found.append(Difference("order", f"{common[0]} in torch_impl, {common[1]} in jax_impl"))
    for name in common[0]:
        for what, one, other in zip(("kind", "parameters", "docstring"), torch_side[name], jax_side[name], strict=True):
            if one != other:
                found.append(Difference(name, f"{what} {one!r} in torch_impl, {other!r} in jax_impl"))
    return found


def refused(found: list[Difference], allowed: Different | None) -> list[str]:
    """The differences that are not allowed, and what is allowed and does not differ: a line each."""
    if allowed is None:
        return [f"{one.name}: {one.what} {one.side or ''}" for one in found]
    lines = [f"{one.name}: {one.what}" for one in found if one.side is None and one.name not in allowed.names]
    lines += [f"{name}: does not differ" for name in allowed.names - {one.name for one in found if one.side is None}]
    return lines + ([] if found else ["nothing differs: the file needs no exception"])


@pytest.mark.parametrize("name", SHARED)
def test_twins_have_the_same_surface(name: str) -> None:
    lines = refused(differences(TORCH[name], JAX[name]), DIFFERENT.get(name))
    assert not lines, f"{name}:\n" + "\n".join(lines)


def test_the_exceptions_are_files_of_both_sides() -> None:
    assert DIFFERENT.keys() <= set(SHARED)
    assert len(SHARED) > 20 and len(ALONE) > 20


def is_empty(source: str) -> bool:
    """Whether a file is a docstring and no more."""
    body = ast.parse(source).body
    return len(body) == 1 and isinstance(body[0], ast.Expr)


def require_truths(named: str | None, where: str) -> None:
    for truth in re.split(r", | and ", named or "spec/"):
        assert (ROOT / truth).exists(), f"{where}: no such truth {truth}"


@pytest.mark.parametrize("name", [name for name in SHARED if not is_empty(TORCH[name])])
def test_line_1_names_twin_and_truth(name: str) -> None:
    told = []
    for source, side, twin in zip((TORCH[name], JAX[name]), SIDES, reversed(SIDES), strict=True):
        line = source.partition("\n")[0]
        match = TWIN.match(line)
        assert match, f"{side}/{name}: line 1 should read 'What it is. Twin: {twin}. Truth: spec/....py.', got {line}"
        assert match["twin"] == twin
        require_truths(match["truth"], f"{side}/{name}")
        told.append(FRAMEWORK.sub("...", match["what"]))
    assert told[0] == told[1], f"{name}: two descriptions of one thing"


@pytest.mark.parametrize("side, name", ALONE)
def test_a_file_without_a_twin_says_why(side: str, name: str) -> None:
    line = (ROOT / side / name).read_text("utf-8").partition("\n")[0]
    match = NO_TWIN.match(line)
    assert match, f"{side}/{name}: line 1 should read 'What it is. No twin: why. Truth: spec/....py.', got {line}"
    require_truths(match["truth"], f"{side}/{name}")


@pytest.mark.parametrize(
    "line, matches",
    [
        ('"""The scan. No twin: Triton is for GPUs. Truth: spec/reference/scan.py."""', True),
        ('"""The scan. No twin: Numba."""', True),
        ('"""The scan. No twin."""', False),
        ('"""The scan. No twin: . Truth: spec/reference/scan.py."""', False),
        ('"""The scan. Twin: jax_impl. Truth: spec/reference/scan.py."""', False),
        ('"""The scan."""', False),
    ],
)
def test_a_reason_that_is_missing_is_found(line: str, matches: bool) -> None:
    assert bool(NO_TWIN.match(line)) == matches


def test_the_contributors_read_of_the_same_exceptions() -> None:
    """CONTRIBUTING.md names each file that may differ, with the reason that stands here, and no other."""
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == {name: one.why for name, one in DIFFERENT.items()}


PLAIN = '''
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
    """Scans in PyTorch."""

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
    ("Scans in PyTorch.", "Scans in JAX."),
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
    assert PLAIN.count(old) == 1
    assert differences(PLAIN, PLAIN.replace(old, new)) == []


@pytest.mark.parametrize("old, new", PLANTED)
def test_a_planted_difference_is_found(old: str, new: str) -> None:
    assert PLAIN.count(old) == 1
    assert differences(PLAIN, PLAIN.replace(old, new))


def test_a_changed_order_is_found() -> None:
    first, second = "def f(): ...\n", "def g(): ...\n"
    assert differences(first + second, first + second) == []
    assert differences(first + second, second + first)


def test_an_exception_covers_what_it_names_and_no_more() -> None:
    here, there = "def f(x): ...\ndef g(x): ...\n", "def f(y): ...\ndef g(x): ...\ndef h(): ...\n"
    found = differences(here, there)
    assert len(refused(found, None)) == 2
    assert refused(found, Different("why", frozenset({"f"}))) == []
    assert len(refused(found, Different("why"))) == 1
    assert refused(found, Different("why", frozenset({"f", "g"}))) == ["g: does not differ"]
    assert refused(differences(here, here), Different("why")) == ["nothing differs: the file needs no exception"]
