"""Which module imports which, read from the sources: circles, arrows that point up, and the picture of the tree."""

from __future__ import annotations

import argparse
import ast
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[3]
#: From the bottom to the top. A module imports from its own layer and from those below; the longest prefix counts.
LAYERS = (
    ("spec",),
    ("torch_impl", "jax_impl"),
    ("parity", "parity.proof"),
    ("tools",),
    ("parity.suite",),
    ("parity.tests",),
)
#: `python -m torch_impl.train` is `liquidnet train torch`: what stands under its main guard is no import.
HAND_OVER = frozenset({"torch_impl.train", "jax_impl.train"})
_MAIN = "__name__ == '__main__'"

Graph = Mapping[str, AbstractSet[str]]


def import_graph(root: Path = ROOT) -> Graph:
    """The modules of the tree, each with the modules of the tree that it imports.

    Imports inside functions and under TYPE_CHECKING count, and so does `importlib.import_module` of a literal.

    Args:
        root: the directory of `spec/`, `torch_impl/` and the others.

    Raises:
        ValueError: there are none of them.
    """
    files = {
        _dotted(path.relative_to(root)): path
        for package in sorted({prefix.partition(".")[0] for layer in LAYERS for prefix in layer})
        for path in sorted((root / package).rglob("*.py"))
    }
    if not files:
        raise ValueError(f"no modules in {root}")
    return {name: frozenset(_modules(name, path.read_text("utf-8"), files)) - {name} for name, path in files.items()}


def _dotted(path: Path) -> str:
    return ".".join(path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts)


def _modules(name: str, source: str, known: Collection[str]) -> Iterator[str]:
    """The modules among `known` that a source imports."""
    for full in imported_names(name, source):
        # `from package import x`: the module `package.x` where there is one, else `package`.
        parent = full.rpartition(".")[0]
        if full in known:
            yield full
        elif parent in known:
            yield parent


def imported_names(name: str, source: str) -> Iterator[str]:
    """What a module imports, dotted: of `from a import b` it is `a.b`."""
    for statement in ast.parse(source).body:
        if name in HAND_OVER and isinstance(statement, ast.If) and ast.unparse(statement.test) == _MAIN:
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def layer(module: str) -> int:
    """The layer of a module, by the longest prefix that is named in LAYERS; 0 is the lowest.

    Raises:
        ValueError: it is in none.
    """
    for at in _prefixes(module):
        for number, prefixes in enumerate(LAYERS):
            if at in prefixes:
                return number
    raise ValueError(f"{module} is in no layer")


def _prefixes(module: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def upward(graph: Graph) -> list[tuple[str, str]]:
    """The imports that point up, and those between the twins, which know nothing of each other."""

    def wrong(source: str, target: str) -> bool:
        twins = {source.partition(".")[0], target.partition(".")[0]} == {"torch_impl", "jax_impl"}
        return twins or layer(target) > layer(source)

    return sorted((source, target) for source in graph for target in graph[source] if wrong(source, target))


def reached(start: str, arrows: Mapping[str, Iterable[str]]) -> set[str]:
    """The modules that the arrows lead to from one, itself only where they lead back."""
    seen, ahead = set(), [start]
    while ahead:
        for target in arrows[ahead.pop()]:
            if target not in seen:
                seen.add(target)
                ahead.append(target)
    return seen


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one module: those that reach each other."""
    below = {name: reached(name, graph) for name in graph}
    found = {tuple(sorted(other for other in below[name] if name in below[other])) for name in graph}
    return sorted(list(circle) for circle in found if len(circle) > 1)


def folder(module: str) -> str:
    """What a module is part of one level below its layer: a folder, or a file that lies there alone."""
    prefix = next(at for at in _prefixes(module) if any(at in prefixes for prefixes in LAYERS))
    return ".".join(module.split(".")[: prefix.count(".") + 2])


def folders(graph: Graph) -> Graph:
    """The folders of the tree, each with the others that its modules import from; one without any is out."""
    found: dict[str, set[str]] = defaultdict(set)
    for source, targets in graph.items():
        found[folder(source)].update({folder(target) for target in targets} - {folder(source)})
    used = {target for targets in found.values() for target in targets}
    return {name: frozenset(found[name]) for name in sorted(found) if found[name] or name in used}


def backward(graph: Graph) -> set[tuple[str, str]]:
    """The fewest imports without which the folders, too, have no circle: between two modules each, so no fault.

    A best order of each circle's folders, by dynamic programming over their subsets (Lawler, Management Science 1964).
    """
    imports = Counter((folder(source), folder(target)) for source in graph for target in graph[source])
    against: set[tuple[str, str]] = set()
    for circle in circles(folders(graph)):
        best: dict[frozenset[str], tuple[int, tuple[str, ...]]] = {frozenset(): (0, ())}
        for size in range(len(circle)):
            for above in [chosen for chosen in best if len(chosen) == size]:
                cost, order = best[above]
                for name in sorted({*circle} - above):
                    more = cost + sum(imports[name, other] for other in above), (*order, name)
                    key = above | {name}
                    best[key] = min(best.get(key, more), more)
        order = best[frozenset(circle)][1]
        against |= {(low, high) for i, high in enumerate(order) for low in order[i + 1 :] if imports[low, high]}
    return against


def reduced(arrows: Graph) -> dict[str, list[str]]:
    """The arrows without those whose target others lead to: what can be reached stays the same."""
    left = {source: sorted(targets) for source, targets in sorted(arrows.items())}
    for source in left:
        for target in sorted(left[source]):
            left[source].remove(target)
            if target not in reached(source, left):
                left[source].append(target)
    return left


#: The bands from the top: what is in each, side by side, its colour, and what is said of it.
_BANDS = (
    (("parity.suite",), "#f7efe2", "the long proofs: whole runs, crashes, damaged files, planted faults, the report"),
    (("tools",), "#e9f2e5", "for people: the commands"),
    (("parity.proof",), "#f7efe2", "every operation against the float64 reference"),
    (("torch_impl", "jax_impl"), "#e5eef8", "twins: neither knows the other"),
    (("spec",), "#f2e9f3", "what is true: NumPy, no framework"),
)
_WIDTH, _MARGIN, _GAP, _ROW, _BOX_HEIGHT, _LETTER = 1080, 16, 16, 54, 26, 6.6


def picture(graph: Graph) -> str:
    """The layers, without the tests, as bands, folders as boxes, imports as arrows: the same SVG from the same graph.

    An arrow is left out where others lead to the same folder. Where folders import each other, though no modules do,
    the fewer imports are dashed.
    """
    graph = {name: targets for name, targets in graph.items() if not _is_in(name, "parity.tests")}
    dashed = backward(graph)
    arrows = reduced({name: {t for t in to if (name, t) not in dashed} for name, to in folders(graph).items()})
    bands, place, top = [], {}, float(_MARGIN)
    for prefixes, colour, said in _BANDS:
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(prefixes) - 1)) / len(prefixes)
        all_rows = [_rows([name for name in arrows if _is_in(name, prefix)], arrows) for prefix in prefixes]
        height = 38 + _ROW * max(map(len, all_rows)) - (_ROW - _BOX_HEIGHT) + 12
        for column, (prefix, rows) in enumerate(zip(prefixes, all_rows, strict=True)):
            left = _MARGIN + column * (width + _GAP)
            bands.append((left, top, width, height, colour, f"{prefix.replace('.', '/')}/", said))
            for number, row in enumerate(rows):
                for i, name in enumerate(_ordered(row, arrows, place)):
                    # Rows are shifted in turns: an arrow that passes a row is seen beside its boxes.
                    x = left + (i + 0.5) * width / len(row) + (18 if number % 2 else -18)
                    place[name] = x, top + 38 + number * _ROW
        top += height + 30
    drawn = [_arrow(place[source], place[target]) for source in arrows for target in arrows[source]]
    drawn += [_arrow(place[source], place[target], dashed=True) for source, target in dashed]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top - 30 + _MARGIN:.0f}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="12">',
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#66707c"/></marker></defs>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *(_band(*band[:5]) for band in bands),
            *sorted(drawn),
            *(_title(*band[:2], *band[5:]) for band in bands),
            *(_box(name, graph, *place[name]) for name in sorted(place)),
            "</svg>\n",
        ]
    )


def _is_in(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _rows(names: list[str], arrows: Mapping[str, list[str]]) -> list[list[str]]:
    """The folders of a band by how many others lie below them in it, one under the other; the highest first."""

    def depth(name: str) -> int:
        return 1 + max((depth(target) for target in arrows[name] if target in names), default=-1)

    depths = {name: depth(name) for name in names}
    return [[name for name in names if depths[name] == level] for level in range(max(depths.values()), -1, -1)]


def _ordered(row: list[str], arrows: Mapping[str, list[str]], place: Mapping[str, tuple[float, float]]) -> list[str]:
    """A row with each folder below those that import it."""

    def across(name: str) -> float:
        above = [place[source][0] for source in place if name in arrows[source]]
        return sum(above) / len(above) if above else _WIDTH / 2

    return sorted(row, key=lambda name: (across(name), name))


def _band(left: float, top: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" fill="{colour}"/>'


def _title(left: float, top: float, title: str, said: str) -> str:
    return (
        f'<text x="{left + 12:.0f}" y="{top + 22:.0f}"><tspan font-weight="bold" font-size="15">{title}</tspan>'
        f'<tspan dx="12" fill="#555555">{escape(said)}</tspan></text>'
    )


def _box(name: str, graph: Graph, x: float, y: float) -> str:
    last = name.rpartition(".")[2]
    if any(name in prefixes for prefixes in LAYERS):
        label = "__init__.py"
    else:
        label = f"{last}/" if any(module.startswith(f"{name}.") for module in graph) else f"{last}.py"
    width = len(label) * _LETTER + 14
    return (
        f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width:.0f}" height="{_BOX_HEIGHT}" rx="4" fill="#ffffff" '
        f'stroke="#8a94a0"/><text x="{x:.0f}" y="{y + _BOX_HEIGHT / 2 + 4:.0f}" text-anchor="middle">{label}</text>'
    )


def _arrow(source: tuple[float, float], target: tuple[float, float], dashed: bool = False) -> str:
    (x, y), (to_x, to_y) = source, target
    down = 1 if to_y > y else -1
    y, to_y = (y + _BOX_HEIGHT, to_y) if down > 0 else (y, to_y + _BOX_HEIGHT)
    # Beside the arrows that point down.
    x, to_x = (x, to_x) if down > 0 else (x + 12, to_x + 12)
    bend = (to_y - y) / 2
    style = ' stroke-dasharray="5 3"' if dashed else ""
    return (
        f'<path d="M{x:.0f},{y:.0f} C{x:.0f},{y + bend:.0f} {to_x:.0f},{to_y - bend:.0f} {to_x:.0f},{to_y:.0f}" '
        f'fill="none" stroke="#66707c" stroke-width="1.2"{style} marker-end="url(#head)"/>'
    )


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture; exits 1 where there is a circle or an arrow that points up."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="the SVG to write")
    output = parser.parse_args(arguments).output
    graph = import_graph()
    wrong = [f"a circle: {', '.join(circle)}" for circle in circles(graph)]
    wrong += [f"points up: {source} imports {target}" for source, target in upward(graph)]
    output.write_text(picture(graph), "utf-8")
    print(f"{output}: {len(graph)} modules, {len(wrong)} faults")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
