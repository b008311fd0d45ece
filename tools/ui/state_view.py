"""A heat map of a layer's state: a column a token, a row a channel, ordered by half-life. Labels stay text."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np

#: Rows of the picture at most: of wider states every k-th channel is shown.
ROWS = 256
TICKS = tuple(10.0**power for power in range(-3, 7))
NEGATIVE, POSITIVE = (26, 115, 232), (217, 72, 15)
_SIGNS = {"\n": "↵", " ": "·", "\t": "→", "\r": "↵"}


def heat_map(recent_states: Sequence[tuple[str, np.ndarray]], half_lives_ln: np.ndarray, layer: int) -> str:
    """HTML of the states after each token.

    Args:
        recent_states: tokens, and the states [l, n] after each.
        half_lives_ln: of each channel, in tokens, [l, n]; NaN where a layer has fewer.
        layer: from 0.
    """
    order = np.argsort(half_lives_ln[layer], kind="stable")  # NaN comes last
    order = order[: np.count_nonzero(~np.isnan(half_lives_ln[layer]))][::-1]
    if len(order) > ROWS:
        order = order[np.linspace(0, len(order) - 1, ROWS).round().astype(int)]
    states_nt = np.stack([states_ln[layer, order] for _, states_ln in recent_states], axis=1)
    largest = max(float(np.abs(states_nt).max()), 1e-9)
    ticks = "".join(
        f'<span style="top:{at:.1f}%">{tick:,.9g}</span>' for tick, at in _ticks(half_lives_ln[layer, order])
    )
    labels = [_label(text) for text, _ in recent_states]
    wide = "words" if max(map(len, labels)) > 1 else "letters"
    names = "".join(f"<span>{html.escape(label)}</span>" for label in labels)
    alt = f"state of layer {layer + 1} after each of {len(recent_states)} tokens"
    picture = f'<img alt="{alt}" src="{_png(states_nt / largest)}">'
    return (
        f'<div class="states {wide}" style="--columns:{len(recent_states)}">'
        f'<div class="lives" aria-label="half-life in tokens">{ticks}</div>'
        f'<div class="window"><div class="columns">{picture}<div class="tokens">{names}</div></div></div></div>'
        f'<div class="scale"><span>-{largest:.2g}</span><i></i><span>{largest:.2g}</span></div>'
    )


def _ticks(half_lives_n: np.ndarray) -> list[tuple[float, float]]:
    """Half-lives to be named, and where each lies from the top, in per cent; the rows are ordered longest first."""
    shown = [tick for tick in TICKS if 0.8 * half_lives_n[-1] <= tick <= half_lives_n[0]]
    return [(tick, 100.0 * float((half_lives_n > tick).mean())) for tick in shown]


def _label(text: str) -> str:
    shown = "".join(_SIGNS.get(letter, letter) for letter in text)
    return shown if len(shown) == 1 else shown.removeprefix("·") or "·"


def _png(values_nt: np.ndarray) -> str:
    """A picture of values in [-1, 1]: the hue is the sign, the opacity the size, so that 0 is the page's ground."""
    from PIL import Image

    levels = np.round(values_nt * 127.0).astype(np.int16)
    picture = Image.fromarray((levels + 127).astype(np.uint8), "P")
    palette = []
    for level in range(-127, 129):
        palette += [*(NEGATIVE if level < 0 else POSITIVE), min(round(255 * abs(level) / 127), 255)]
    picture.putpalette(palette, "RGBA")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
