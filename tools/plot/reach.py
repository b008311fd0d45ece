"""How far back a token still matters: the gradient of the loss with respect to each past token, by its distance."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spec.checkpoint.format import Checkpoint
from spec.config import ModelConfig, require_integer
from spec.data import Dataset, document_resets
from spec.init import initial_parameters, stream
from spec.mixers import family
from spec.mixers.base import STANDARD_DEVIATION
from spec.reference.model import input_gradients
from tools.cli.progress import track
from tools.plot.compute_half_lives import half_lives
from tools.plot.figure import BLUE, GREY, ORANGE, in_tokens, matplotlib_defaults, new_figure, write_picture
from tools.plot.half_lives import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOWS, LONGEST = 32, 1024
BINS, LEAST_WINDOWS = 32, 4
DEEPEST = 1e8
"""Range of the axis at most: a model that forgets exponentially goes on falling without end."""


@matplotlib_defaults()
def plot_reach(checkpoint: Checkpoint, target: Path, data: Dataset, windows: int, seq_len: int | None = None) -> None:
    """Draw |dL/dx| against distance, median and quartiles, for initial weights and for those of the checkpoint.

    L is the loss at the last position of a window, x what each token before it puts in. Output projections begin as
    zero, so that no token but the last would matter at the start; what is drawn has them as every other matrix.

    Args:
        checkpoint: of any family; its seed gives the initial weights.
        target: the PNG or SVG.
        data: whose validation part is read.
        windows: to take the quartiles over.
        seq_len: tokens of a window; None is 1024, or as many as there are.

    Raises:
        ValueError: a number out of range, or a text shorter than a window.
    """
    require_integer("windows", windows, 1)
    most = len(data.val) - 1
    length = max(2, min(LONGEST, most)) if seq_len is None else seq_len
    require_integer("seq_len", length, 2)
    if length > most:
        needs = f"a window of {length} tokens and the next need {length + 1} validation tokens, the data has {most + 1}"
        raise ValueError(f"{needs}; shorten --seq-len or prepare more text")
    tokens_wt = spread(data.val, windows, length + 1)
    config, seed, step = checkpoint.config, checkpoint.state["seed"], checkpoint.state["step"]
    weights = drawn_parameters(config, seed), checkpoint.parameters
    rows = [(arrays, row) for arrays in weights for row in tokens_wt]
    norms = [reach(arrays, config, row, data.end_of_text_id) for arrays, row in track(rows, "measuring the reach")]
    start_wt, after_wt = np.split(np.stack(norms), 2)
    start = f"initial weights, seed {seed}, output matrices N(0, {STANDARD_DEVIATION}) in place of 0"
    _draw(config, {start: start_wt, f"after {step:,} steps": after_wt}, target)


def reach(parameters: Mapping[str, np.ndarray], config: ModelConfig, text: np.ndarray, end_of_text: int) -> np.ndarray:
    """|dL/dx| of each token, the last one first, where L is the loss of predicting the last token of the text.

    Args:
        parameters: every parameter by path.
        config: the model.
        text: token ids [t + 1].
        end_of_text: id after which a document begins; what was before it cannot matter, and is NaN.

    Returns:
        [t], nats for a unit of x.
    """
    tokens_1t = text[None, :-1]
    resets_1t = document_resets(tokens_1t, end_of_text)
    _, gradient_1td = input_gradients(parameters, config, tokens_1t, text[-1:], resets_1t)
    norm_t = np.linalg.norm(gradient_1td[0], axis=-1)
    norm_t[: np.flatnonzero(resets_1t[0]).max(initial=0)] = np.nan
    return norm_t[::-1]


def drawn_parameters(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Initial parameters whose output projections are N(0, 0.02), as every other matrix is, in place of zero."""
    parameters = initial_parameters(config, seed)
    for path, array in parameters.items():
        if path.endswith("output.weight") and not array.any():
            draw = stream(seed, f"reach, {path}").standard_normal(array.shape, np.float32)
            parameters[path] = STANDARD_DEVIATION * draw
    return parameters


def expected_shape(config: ModelConfig, distance_t: np.ndarray) -> np.ndarray:
    """Root mean square over channels of (1 - decay) decay^(distance - 1), the share of a token that the state keeps.

    With half-lives log-spaced over [1, 4096] that is a power law, 1 / distance, up to their end.
    """
    decay_d = 2.0 ** (-1.0 / half_lives(initial_parameters(config), config)[0])
    kept_td = (1.0 - decay_d) * decay_d ** (distance_t[:, None] - 1)
    return np.sqrt((kept_td * kept_td).mean(axis=-1))


def quartiles(norms_wt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances, and quartiles [3, distances] over windows and over the distances of each of some logarithmic bins.

    A bin that too few windows reach, their documents being shorter, is left out.
    """
    edges = np.unique(np.geomspace(1, norms_wt.shape[1] + 1, BINS + 1).astype(np.int64))
    least = min(LEAST_WINDOWS, len(norms_wt))
    distances, found = [], []
    for low, high in pairwise(edges):
        inside = norms_wt[:, low - 1 : high - 1]
        if np.isfinite(inside).any(axis=1).sum() >= least:
            distances.append(np.sqrt(low * (high - 1)))
            found.append(np.nanquantile(inside, (0.25, 0.5, 0.75), axis=None))
    return np.array(distances), np.array(found).reshape(-1, 3).T


def _draw(config: ModelConfig, curves: dict[str, np.ndarray], target: Path) -> None:
    figure = new_figure(8, 5)
    axes: Axes = figure.add_subplot()
    found = {label: quartiles(norms_wt) for label, norms_wt in curves.items()}
    for (label, (distance, (low, median, high))), colour in zip(found.items(), (GREY, BLUE), strict=True):
        axes.fill_between(distance, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(distance, median, "o-", color=colour, markersize=3, linewidth=1.6, label=label)
    distance, (_, median, _) = next(iter(found.values()))
    if family(config).moving_average and len(distance) > 1:
        shape = expected_shape(config, distance)
        # The last token matters besides by a way of its own, past all states.
        scale = np.exp(np.median(np.log(median[1:] / shape[1:])))
        label = r"expected of the initial half-lives: RMS of $(1 - \alpha)\,\alpha^{k - 1}$ at distance k, scaled"
        axes.plot(distance, scale * shape, "--", color=ORANGE, linewidth=1.2, label=label)
    window = f"training window, {config.max_seq_len:,} tokens"
    axes.axvline(config.max_seq_len, color="black", linestyle=":", linewidth=1.0, label=window)
    norms = np.concatenate([bands.ravel() for _, bands in found.values()])
    top = 2.0 * norms.max()
    axes.set(xscale="log", yscale="log", ylim=(max(norms[norms > 0].min() / 2.0, top / DEEPEST), top))
    axes.set_xlabel("distance (tokens back from the one that is predicted)")
    axes.set_ylabel("|∂loss / ∂embedding| (nats a unit)")
    windows = len(next(iter(curves.values())))
    axes.set_title(f"median and quartiles over {windows} windows of validation text", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0.85, edgecolor="none", fontsize=9)
    in_tokens(axes.xaxis)
    write_picture(figure, target)
