"""The picture of a state on the page of `liquidnet ui`: its pixels, its labels, and that nothing in it is markup."""

from __future__ import annotations

import base64
import io
import re

import numpy as np

from tools.ui.state_view import ROWS, heat_map
from tools.ui.theme import status_line


def picture_of(page: str) -> np.ndarray:
    """Its pixels, RGBA."""
    from PIL import Image

    data = page.split("base64,")[1].split('"')[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")).astype(int)


def test_the_picture_is_what_it_says():
    """Rows by half-life, the longest on top; hue the sign, opacity the size; labels escaped."""
    half_lives = np.array([[1.0, 1000.0, 30.0]])
    recent_states = [
        ("<b>", np.array([[0.5, -1.0, 0.0]], np.float32)),
        ("\n", np.array([[0.0, 1.0, 0.25]], np.float32)),
    ]
    page = heat_map(recent_states, half_lives, 0)
    assert "<b>" not in page and "&lt;b&gt;" in page and "↵" in page
    pixels = picture_of(page)
    assert pixels.shape == (3, 2, 4)
    assert pixels[0, 0, 2] > pixels[0, 0, 0] and pixels[0, 1, 0] > pixels[0, 1, 2]  # blue for -1, red for 1
    np.testing.assert_allclose(pixels[..., 3], [[255, 255], [0, 64], [128, 0]], atol=2)
    ticks = re.findall(r'top:([\d.]+)%">([\d,]+)<', page)
    assert ticks == [("66.7", "1"), ("66.7", "10"), ("33.3", "100"), ("0.0", "1,000")]


def test_of_a_wide_state_some_channels_are_shown():
    """Evenly, the fastest and the slowest among them; words stand upright, letters do not."""
    half_lives = np.geomspace(1.0, 4096.0, 1000)[None]
    page = heat_map([(" word", np.zeros((1, 1000), np.float32))] * 3, half_lives, 0)
    pixels = picture_of(page)
    assert pixels.shape == (ROWS, 3, 4) and (pixels[..., 3] == 0).all()
    assert 'class="states words"' in page and "<span>word</span>" in page
    assert [tick for _, tick in re.findall(r'top:([\d.]+)%">([\d,]+)<', page)] == ["1", "10", "100", "1,000"]


def test_nothing_of_a_message_is_markup():
    assert status_line("<script>", refused=True) == '<p class="told refused" role="alert">&lt;script&gt;</p>'
