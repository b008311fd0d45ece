"""The picture of half-lives of each layer's channels, at the start and after training: by biases, and on text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spec.checkpoint.format import Checkpoint
from spec.data import Dataset, document_resets
from spec.init import initial_parameters
from spec.mixers import family
from tools.plot.compute_half_lives import half_lives, half_lives_on_text
from tools.plot.figure import BLUE, GREY, in_tokens, matplotlib_defaults, new_figure, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS, TOKENS = 4, 256
"""The text that is read: windows, and tokens of each."""
BINS_AN_OCTAVE = 2
HALF_WIDTH = 0.42


@matplotlib_defaults()
def plot_half_lives(checkpoint: Checkpoint, target: Path, data: Dataset | None = None) -> None:
    """Draw a histogram of half-lives a layer, initial weights to the left and those of the checkpoint to the right.

    Args:
        checkpoint: of a family that has half-lives; its seed gives the initial weights.
        target: the PNG or SVG.
        data: whose validation part a second panel is measured on.
    """
    config, seed, step = checkpoint.config, checkpoint.state["seed"], checkpoint.state["step"]
    weights = initial_parameters(config, seed), checkpoint.parameters
    panels = {f"by the {family(config).half_lives_of} alone": [half_lives(arrays, config) for arrays in weights]}
    if data is not None:
        tokens_bt = spread(data.val, ROWS, min(TOKENS, len(data.val)))
        resets_bt = document_resets(tokens_bt, data.end_of_text_id)
        title = f"on text: ln 2 over the mean decay rate at {tokens_bt.size:,} tokens of validation text"
        panels[title] = [half_lives_on_text(arrays, config, tokens_bt, resets_bt) for arrays in weights]
    figure = new_figure(8, 1.2 + 3.2 * len(panels))
    all_axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    edges = _edges(np.concatenate([half_lives_ln for pair in panels.values() for half_lives_ln in pair]))
    for axes, (title, pair) in zip(all_axes, panels.items(), strict=True):
        _split_histograms(axes, edges, *pair)
        axes.axhline(config.max_seq_len, color="black", linestyle=":", linewidth=1.0)
        axes.set(yscale="log", ylabel="half-life (tokens)", ylim=(edges[0], max(edges[-1], 1.5 * config.max_seq_len)))
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="y", alpha=0.25)
        in_tokens(axes.yaxis)
    all_axes[-1].set(xlabel="layer (width of a bar: channels)", xlim=(-0.6, config.n_layers - 0.4))
    all_axes[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _legend(figure, f"initial weights, seed {seed}", f"after {step:,} steps", config.max_seq_len)
    write_picture(figure, target)


def spread(tokens: np.ndarray, rows: int, length: int) -> np.ndarray:
    """At most so many windows [b, t] of the tokens, their starts evenly spaced from the first to the last."""
    starts = np.unique(np.linspace(0, len(tokens) - length, rows).astype(np.int64))
    return tokens[starts[:, None] + np.arange(length)].astype(np.int64)


def _edges(values: np.ndarray) -> np.ndarray:
    octaves = np.log2(values[np.isfinite(values)])
    low, high = np.floor(octaves.min()), np.ceil(octaves.max() + 1e-9)
    return 2.0 ** np.linspace(low, high, max(1, round(BINS_AN_OCTAVE * (high - low))) + 1)


def _split_histograms(axes: Axes, edges: np.ndarray, start_ln: np.ndarray, after_ln: np.ndarray) -> None:
    counts = [[np.histogram(values_n, edges)[0] for values_n in values_ln] for values_ln in (start_ln, after_ln)]
    scale = HALF_WIDTH / max(np.max(counts), 1)
    for direction, colour, values_ln, counted in zip((-1, 1), (GREY, BLUE), (start_ln, after_ln), counts, strict=True):
        for layer, (values_n, count) in enumerate(zip(values_ln, counted, strict=True)):
            outline = layer + direction * scale * np.repeat(count, 2)
            axes.fill_betweenx(np.repeat(edges, 2)[1:-1], layer, outline, color=colour, linewidth=0)
            middle = [np.nanmedian(values_n)] * 2
            axes.plot([layer, layer + direction * HALF_WIDTH], middle, color="black", linewidth=1.6)


def _legend(figure: Figure, start: str, after: str, window: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=GREY, label=f"left: {start}"),
        Patch(color=BLUE, label=f"right: {after}"),
        Line2D([], [], color="black", linewidth=1.6, label="median"),
        Line2D([], [], color="black", linestyle=":", linewidth=1.0, label=f"training window, {window:,} tokens"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
