"""What all pictures share: colours, axes in tokens, and files, PNG or SVG, of the same bytes for the same numbers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from spec.checkpoint.files import new_file

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Neither a date nor a version: a picture that is drawn again from the same numbers does not differ.
METADATA: dict[str, dict[str, None]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
DOTS_AN_INCH = 130

# Distinct to the colour-blind too: Okabe and Ito (2008), Color Universal Design.
GREY, BLUE, ORANGE = "#8c8c8c", "#0072b2", "#d55e00"
BACKEND_COLOURS = {"torch": "#ee4c2c", "jax": "#1a73e8"}


@contextmanager
def matplotlib_defaults() -> Iterator[None]:
    """Draw as matplotlib itself would: without the backend of a notebook, a style or a file of settings of the user's.

    What it says by the way (where it keeps its list of fonts, which line of a file it does not know) is left unsaid.

    Raises:
        ValueError: matplotlib cannot be imported here.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        matplotlib = _imported()
        # The backend stays what it is: a figure of ours has a canvas of its own.
        with matplotlib.rc_context({k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}):
            yield
    finally:
        log.setLevel(level)


def _imported() -> ModuleType:
    """matplotlib, which on import takes the backend that MPLBACKEND names, or none, and reads a file of settings."""
    own = {"MPLBACKEND": "agg"}
    if (found := find_spec("matplotlib")) and found.origin:
        own["MATPLOTLIBRC"] = str(Path(found.origin).parent / "mpl-data" / "matplotlibrc")
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        return import_module("matplotlib")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever it makes of a file, of no place for one, of no home
        raise ValueError(f"matplotlib cannot be imported here ({type(error).__name__}: {error})") from error
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def require_picture(target: Path) -> None:
    """Raises ValueError where the suffix names neither of the two formats."""
    if target.suffix.lower() not in METADATA:
        raise ValueError(f"--out {target} must end in .png or .svg, the two formats that are written")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure(figsize=(width, height), layout="constrained")).figure


def write_picture(figure: Figure, target: Path) -> None:
    """Write the figure as the suffix of `target` says; the letters of an SVG stay letters."""
    import matplotlib

    require_picture(target)
    suffix = target.suffix.lower()
    letters: dict[RcKeyType, str] = {"svg.fonttype": "none", "svg.hashsalt": "liquidnet"}
    with matplotlib.rc_context(letters), new_file(target) as temporary:
        figure.savefig(temporary, dpi=DOTS_AN_INCH, format=suffix[1:], metadata=METADATA[suffix])


def in_tokens(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers of tokens: 0.1, 1, 10, 1000."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
