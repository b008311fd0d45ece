"""The plots of the report, as SVG that stands in a page and asks for nothing from outside."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from parity.proof.problems.cases import DECAYS
from parity.suite.report.tables import Report, Units
from tools.plot.figure import BACKEND_COLOURS, matplotlib_defaults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, INK = "#8a94a0", "#26313d"
MARKS = "osD^v"
_HEAD = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>|\s+xmlns(:\w+)?=\"[^\"]*\"", re.DOTALL)


@matplotlib_defaults()
def errors_against_length(rows: list[Report]) -> str | None:
    """Worst float32 error of each scan at each length."""
    lengths = sorted({int(t) for row in rows for t in row["groups"].get("T", {})})
    figure, axes = _axes()
    for row in rows:
        found = {int(t): _finite(x) for t, x in row["groups"]["T"].items()}
        _plot_row(axes, rows, row, sorted(found), [found[t] for t in sorted(found)], "-")
    axes.set(xscale="log", xlabel="tokens, T", xticks=lengths, xticklabels=list(map(str, lengths)))
    axes.minorticks_off()
    return _finish(figure, axes, "T") if lengths else None


@matplotlib_defaults()
def errors_against_decay(rows: list[Report]) -> str | None:
    """Worst float32 error of each scan in each regime of decays."""
    kinds = [kind for kind in DECAYS if any(kind in row["groups"].get("decay", {}) for row in rows)]
    figure, axes = _axes()
    for row, offset in zip(rows, np.linspace(-0.2, 0.2, len(rows)), strict=True):
        found = row["groups"]["decay"]
        units = [_finite(found.get(kind, 0.0)) for kind in kinds]
        _plot_row(axes, rows, row, np.arange(len(kinds)) + offset, units, "")
    axes.set(xticks=range(len(kinds)), xticklabels=kinds, xlabel="decays")
    return _finish(figure, axes, "decay") if kinds else None


@matplotlib_defaults()
def drift(found: Report) -> str:
    """How far torch and JAX drift apart, and how far reorderings of torch do."""
    figure, axes = _axes()
    steps = np.arange(1, len(found["gap"]) + 1)
    axes.plot(
        steps, _positive(found["gap"]), "o", color=BACKEND_COLOURS["jax"], markersize=3, label="torch against JAX"
    )
    axes.plot(
        steps, _positive(found["spread"]), color=BACKEND_COLOURS["torch"], linewidth=1.2,
        label="torch's own orders, largest so far",
    )  # fmt: skip
    axes.axhline(found["limit"], color=INK, linestyle="--", linewidth=1.0, label="limit: 5 times the largest")
    axes.set(yscale="log", ylim=(1e-8, None), xlabel="optimizer step", ylabel="difference of the losses")
    return _finish(figure, axes, "race", limit=False)


@matplotlib_defaults()
def losses(found: Report) -> str:
    """The losses themselves."""
    figure, axes = _axes()
    for name, curve in found["curves"].items():
        backend = name.split(",")[0]
        dashes, width = ("--", 1.6) if backend == "jax" else ("-", 1.0)
        steps = np.arange(1, len(curve) + 1)
        axes.plot(steps, curve, dashes, color=BACKEND_COLOURS[backend], label=name, alpha=0.8, linewidth=width)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
    return _finish(figure, axes, "losses", limit=False)


@matplotlib_defaults()
def estimated(found: Report) -> str:
    """The error of each backend's loss, and the estimate of how large it may be."""
    figure, axes = _axes()
    steps = np.arange(1, len(found["bound"]) + 1)
    axes.plot(steps, found["bound"], color=INK, linestyle="--", linewidth=1.0, label="estimate of the bound")
    for name, error in found["errors"].items():
        axes.plot(steps, _positive(error), "o", color=BACKEND_COLOURS[name], markersize=3, label=name)
    axes.set(yscale="log", xlabel="optimizer step", ylabel="|loss - float64 reference|")
    return _finish(figure, axes, "estimated", limit=False)


def scans(result: Report) -> list[Report]:
    """The rows that the first two plots show."""
    return [row for row in result["rows"] if row["operation"] == "scan" and row["dtype"] == "float32" and row["groups"]]


def _positive(values: Sequence[float]) -> np.ndarray:
    """A logarithm has no place for the steps that agree to the last bit."""
    found = np.asarray(values, np.float64)
    return np.where(found > 0.0, found, np.nan)


def _finite(units: Units) -> float:
    return float(units) if np.isfinite(float(units)) else np.nan


def _plot_row(axes: Axes, rows: list[Report], row: Report, x: ArrayLike, units: ArrayLike, line: str) -> None:
    """A colour a backend, a mark a method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    marker = MARKS[methods.index(row["method"]) % len(MARKS)]
    style = {"markersize": 5, "linewidth": 1.0, "alpha": 0.85, "linestyle": line, "marker": marker}
    axes.plot(x, units, color=BACKEND_COLOURS[row["backend"]], label=row["implementation"], **style)


def _axes() -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained", facecolor="none")
    axes = FigureCanvasSVG(figure).figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)
    return figure, axes


def _finish(figure: Figure, axes: Axes, name: str, limit: bool = True) -> str:
    """The SVG element. Its identifiers are hashed with `name`, since several stand in one page."""
    import matplotlib

    if limit:
        axes.axhline(1.0, color=INK, linestyle="--", linewidth=1.0)
        axes.set(ylim=(0.0, max(1.08, axes.get_ylim()[1])), ylabel="worst error / bound")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8.5, loc="outside upper left", ncols=3)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True)
    svg = _HEAD.sub("", text.getvalue()).strip()
    return re.sub(r' id="(figure|axes|patch|line2d|text|legend|matplotlib\.axis|xtick|ytick)_\d+"', "", svg)
