"""Mutation operators on Python's syntax tree: every small change that they make to a source file.

Neither mutmut nor cosmic-ray fits: both run one command for every mutant, in the tree itself or after a rewriting of
whole modules (which Numba and Triton then compile), and neither samples evenly. The operators are the literature's:

    AOR  arithmetic operator replacement, AOD arithmetic operator deletion, ASR assignment operator replacement,
    ROR  relational, LCR logical connector replacement, COI, COD conditional operator insertion and deletion,
    CRP  constant replacement, BCR break-continue replacement, SIR slice index replacement
         (Offutt et al., TOSEM 5(2), 1996; for Python: Derezinska and Halas, Analysis of Mutation Operators for the
         Python Language, 2014)
    SDL  statement deletion (Deng, Offutt and Li, ICST 2013)
    IPEX integration parameter exchange (Delamaro, Maldonado and Mathur, Interface Mutation, TSE 27(3), 2001)
    VDL  variable deletion, here of a keyword argument (Delamaro, Offutt and Ammann, ICST 2014)
    MER  method expression replacement (Stryker's "Method Expression": min for max, any for all)
"""

from __future__ import annotations

import ast
import builtins
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

OPERATORS = {
    "AOR": "arithmetic operator replaced",
    "AOD": "arithmetic operator deleted",
    "ASR": "assignment operator replaced",
    "ROR": "relational operator replaced",
    "LCR": "logical connector replaced",
    "COI": "condition negated",
    "COD": "negation deleted",
    "CRP": "constant replaced",
    "SIR": "slice index replaced",
    "BCR": "break and continue exchanged",
    "SDL": "statement deleted",
    "IPEX": "arguments exchanged",
    "VDL": "keyword argument deleted",
    "MER": "function replaced by its opposite",
}
ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&"),
}  # fmt: skip
# A boundary and a negation each; the other replacements are caught with them (Kaminski, Ammann and Offutt, 2011).
RELATIONAL = {
    ast.Lt: ("<", ("<=", ">=")), ast.LtE: ("<=", ("<", ">")), ast.Gt: (">", (">=", "<=")), ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)), ast.NotEq: ("!=", ("==",)), ast.Is: ("is", ("is not",)), ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)), ast.NotIn: ("not in", ("in",)),
}  # fmt: skip
_PAIRS = (
    ("min", "max"), ("any", "all"), ("floor", "ceil"), ("argmin", "argmax"), ("minimum", "maximum"), ("sin", "cos"),
    ("zeros", "ones"), ("zeros_like", "ones_like"), ("mean", "sum"), ("logical_and", "logical_or"),
    ("startswith", "endswith"), ("lstrip", "rstrip"), ("removeprefix", "removesuffix"), ("partition", "rpartition"),
)  # fmt: skip
OPPOSITES = {**dict(_PAIRS), **{other: one for one, other in _PAIRS}, "sorted": "list", "reversed": "list"}
# Exchanged, their arguments give the same, or an error in the first call.
SYMMETRIC = {"min", "max", "minimum", "maximum", "gcd", "add", "multiply", "isinstance", "issubclass", "hasattr"}
# Without them the result is the same, or a picture or a table only looks otherwise.
IDLE_KEYWORDS = {"copy", "flush", "stacklevel", "encoding", "strict", "color", "linewidth", "markersize", "style"}
NOT_BEHAVIOUR = {"__repr__", "__str__"}
NOT_RUN = {"TYPE_CHECKING", "__name__ == '__main__'"}
MESSAGES = {"print", "warn"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPOUND = (ast.If, ast.While, ast.For, ast.With, ast.Try, ast.TryStar, ast.Match)


@dataclass(frozen=True)
class Mutation:
    """One change of one place of a file.

    Args:
        operator: a name of `OPERATORS`.
        file: from the root of the repository.
        function: qualified name of what it is in; empty at the level of the module.
        start, end: bytes of the file that are replaced.
        text: by this.
        first, last: lines of the statement, counted from 1; of a compound one, of its header.
        old, new: the statement before and after, white space as one blank each.
    """

    operator: str
    file: str
    function: str
    start: int
    end: int
    text: str
    first: int
    last: int
    old: str
    new: str

    def apply(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    @property
    def place(self) -> tuple[str, int, int]:
        """Mutants of one place are alternatives."""
        return self.file, self.start, self.end


def mutations(file: str, source: bytes) -> list[Mutation]:
    """All changes of a file, in the order of their places; some few leave no program, see `is_program`."""
    finder = _Finder(file, source)
    finder.body(ast.parse(source).body, "")
    return sorted(dict.fromkeys(finder.found), key=lambda one: (one.start, one.end, one.operator, one.text))


def is_program(one: Mutation, source: bytes) -> bool:
    """Whether the file with the change is still a program, and another one: brackets may stand around an operand."""
    changed = one.apply(source)
    try:
        tree = ast.parse(changed)
        # What is no error to the parser may be one to the compiler: a `break` outside a loop.
        compile(tree, one.file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return ast.dump(tree) != ast.dump(ast.parse(source))


class _Finder:
    """Walks over what is executed, and collects the changes of each statement."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source, self.found = file, source, list[Mutation]()
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.scope, self.span = "", (0, 0)

    def body(self, statements: Sequence[ast.stmt], scope: str) -> None:
        for statement in statements:
            self._statement(statement, scope)

    def _statement(self, node: ast.stmt, scope: str) -> None:
        self.scope, self.span = scope, (self._start(node), self._end(node))
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            if node.name in NOT_BEHAVIOUR:
                return
            self.span = (self._start(node), self._start(node.body[0]))
            if isinstance(node, FUNCTIONS):
                for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                    self._expression(default)
            self.body(node.body, f"{scope}.{node.name}".lstrip("."))
        elif isinstance(node, ast.If) and ast.unparse(node.test) in NOT_RUN:
            self.body(node.orelse, scope)
        elif isinstance(node, COMPOUND):
            self._compound(node, scope)
        else:
            self._simple(node)

    def _compound(self, node: ast.stmt, scope: str) -> None:
        first = node.cases[0].pattern if isinstance(node, ast.Match) else getattr(node, "body")[0]  # noqa: B009
        self.span = (self._start(node), self._start(first))
        if isinstance(node, ast.If | ast.While):
            self._condition(node.test)
        for _, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.expr):
                    self._expression(child)
                elif isinstance(child, ast.withitem):
                    self._expression(child.context_expr)
        for name in ("body", "orelse", "finalbody"):
            self.body(getattr(node, name, []), scope)
        for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
            self.body(part.body, scope)

    def _simple(self, node: ast.stmt) -> None:
        """A statement without others in it. Neither an assertion nor a message is behaviour."""
        if isinstance(node, ast.Raise):
            self._add("SDL", node, "pass")
        elif isinstance(node, ast.Break | ast.Continue):
            self._add("BCR", node, "continue" if isinstance(node, ast.Break) else "break")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._add("SDL", node, "pass")
            if _name(node.value.func) not in MESSAGES:
                self._expression(node.value)
        elif isinstance(node, ast.AugAssign):
            self._add("SDL", node, "pass")
            old, new = ARITHMETIC.get(type(node.op), ("", ""))
            if old:
                self._between("ASR", node.target, node.value, f"{old}=", f"{new}=")
            self._expression(node.value)
        elif isinstance(node, ast.Assign):
            if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
                self._add("SDL", node, "pass")
            if not any(_name(target) == "__all__" for target in node.targets):
                for child in (*node.targets, node.value):
                    self._expression(child)
        elif isinstance(node, ast.AnnAssign | ast.Return | ast.Expr) and node.value is not None:
            self._expression(node.value)

    def _expression(self, node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr):
            return
        getattr(self, f"visit_{type(node).__name__.lower()}", lambda node: None)(node)
        for child in ast.iter_child_nodes(node):
            self._expression(child)

    def _condition(self, test: ast.expr) -> None:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return  # COD, in `visit_unaryop`
        self._add("COI", test, f"not ({self._text(test)})")

    def visit_ifexp(self, node: ast.IfExp) -> None:
        self._condition(node.test)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)

    def visit_binop(self, node: ast.BinOp) -> None:
        # A path or a text with another operator ends in a TypeError, which any test notices.
        texts = any(isinstance(x, ast.JoinedStr) or _is_text(x) for x in (node.left, node.right))
        if type(node.op) in ARITHMETIC and not texts:
            self._between("AOR", node.left, node.right, *ARITHMETIC[type(node.op)])

    def visit_unaryop(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.op, ast.UAdd):
            operator = "COD" if isinstance(node.op, ast.Not) else "AOD"
            self._add(operator, node, f"({self._text(node.operand)})")

    def visit_boolop(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in pairwise(node.values):
            self._between("LCR", left, right, old, new)

    def visit_compare(self, node: ast.Compare) -> None:
        for (left, right), op in zip(pairwise((node.left, *node.comparators)), node.ops, strict=True):
            old, others = RELATIONAL[type(op)]
            for new in others:
                self._between("ROR", left, right, old, new)

    def visit_constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add("CRP", node, str(not value))
        elif isinstance(value, int | float):
            for other in dict.fromkeys((value + 1, value - 1, value * 2)):
                if other != value:
                    self._add("CRP", node, repr(other) if other >= 0 else f"({other!r})")

    def visit_slice(self, node: ast.Slice) -> None:
        if node.lower is not None:
            self._add("SIR", node.lower, f"({self._text(node.lower)}) + 1")
        elif node.upper is not None:
            start = self._start(node)
            self._replace("SIR", start, start, "1")
        if node.upper is not None:
            self._add("SIR", node.upper, f"({self._text(node.upper)}) - 1")

    def visit_name(self, node: ast.Name) -> None:
        if node.id in OPPOSITES and hasattr(builtins, node.id) and hasattr(builtins, OPPOSITES[node.id]):
            self._add("MER", node, OPPOSITES[node.id])

    def visit_attribute(self, node: ast.Attribute) -> None:
        if node.attr in OPPOSITES:
            end = self._end(node)
            self._replace("MER", end - len(node.attr.encode()), end, OPPOSITES[node.attr])

    def visit_call(self, node: ast.Call) -> None:
        first, second = (*node.args, None, None)[:2]
        if (
            first is not None
            and second is not None
            and not isinstance(first, ast.Starred)
            and not isinstance(second, ast.Starred)
            and _name(node.func) not in SYMMETRIC
        ):
            between = self.source[self._end(first) : self._start(second)].decode()
            text = f"{self._text(second)}{between}{self._text(first)}"
            self._replace("IPEX", self._start(first), self._end(second), text)
        # In the order of the text: a `*` may stand after a keyword.
        parts = sorted((*node.args, *node.keywords), key=self._start)
        for at, part in enumerate(parts):
            if isinstance(part, ast.keyword) and part.arg is not None and part.arg not in IDLE_KEYWORDS:
                if at > 0:
                    before = self._end(parts[at - 1])
                    comma = self.source.rfind(b",", before, self._start(part))
                    self._replace("VDL", comma if comma >= 0 else before, self._end(part), "")
                else:
                    end = self._start(parts[1]) if len(parts) > 1 else self._end(part)
                    self._replace("VDL", self._start(part), end, "")

    def _between(self, operator: str, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace an operator that stands somewhere between two operands, beside brackets or line ends."""
        start, end = self._end(left), self._start(right)
        words = r"\s+".join(map(re.escape, old.split()))
        matches = list(re.finditer(rb"(?<![\w])%b(?![\w])" % words.encode(), self.source[start:end]))
        # More than one is one in a comment too.
        if len(matches) == 1:
            self._replace(operator, start + matches[0].start(), start + matches[0].end(), new)

    def _add(self, operator: str, node: ast.AST, text: str) -> None:
        self._replace(operator, self._start(node), self._end(node), text)

    def _replace(self, operator: str, start: int, end: int, text: str) -> None:
        first, last = self.span
        old = self.source[first:last].decode()
        new = (self.source[first:start] + text.encode() + self.source[end:last]).decode()
        line, until = (bisect_left(self.starts, at + 1) for at in (first, max(first, last - 1)))
        # A header ends where its body begins, some lines after it where comments stand between.
        while until > line and not self.source[self.starts[until - 1] : last].strip():
            until -= 1
        before, after = (" ".join(part.split()) for part in (old, new))
        self.found.append(Mutation(operator, self.file, self.scope, start, end, text, line, until, before, after))

    def _start(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def _end(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        return self.source[self._start(node) : self._end(node)].decode()


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
