"""What a case has in it that something may go wrong about: masks, sizes, extremes; what draws must contain."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.proof.problems.cases import AdamWCase, LayerCase, ModelCase, ScanCase

MASKS = frozenset(
    {
        "a reset at the first token",
        "a reset at the last token",
        "resets in a row",
        "a reset inside",
        "padding on the left",
        "padding on the right",
        "padding inside",
        "a reset under padding",
    }
)
"""What a recurrence meets in documents of any lengths."""
BLOCKS = frozenset({"several rows", "more tokens than a block of 32"})


def features(case: Any) -> frozenset[str]:
    """The names of everything that the case has."""
    if isinstance(case, AdamWCase):
        found = {f"kind {case.kind}", "several steps" if case.steps > 1 else "one step"}
    elif isinstance(case, ScanCase):
        arrays = case.arrays()
        found = _of_masks(arrays.resets, arrays.padding) | {f"decays {case.decays}", f"drives {case.drives}"}
        found |= _of_sizes(*case.shape)
    elif isinstance(case, ModelCase):
        arrays = case.arrays()
        found = _of_masks(arrays.resets, arrays.padding) | _of_sizes(case.batch, case.length, case.config.d_model)
        found |= {f"ignored {case.ignored}", "a fresh state" if case.fresh else "a state that goes on"}
    else:
        assert isinstance(case, LayerCase), case
        found = _of_masks(*case.masks()) | _of_sizes(*case.shape, case.config.d_model)
        found |= {f"ignored {case.ignored}", f"values {case.values}"}
    return frozenset(found)


def _of_sizes(b: int, t: int, d: int) -> set[str]:
    sizes = {
        "one token": t == 1,
        "several rows": b > 1,
        "an odd width": d % 2 == 1,
        "a width that blocks divide": d % 64 == 0,
        "more tokens than a block of 32": b * t > 32,
    }
    return {name for name, has in sizes.items() if has}


def _of_masks(resets: np.ndarray, padding: np.ndarray) -> set[str]:
    inside, alone = resets[:, 1:-1], padding[:, 1:-1] & ~padding[:, :-2] & ~padding[:, 2:]
    masks = {
        "no resets": not resets.any(),
        "no padding": not padding.any(),
        "a reset at the first token": resets[:, 0].any(),
        "a reset at the last token": resets[:, -1].any(),
        "a reset inside": (inside & ~padding[:, 1:-1]).any(),
        "resets in a row": (resets[:, 1:] & resets[:, :-1]).any(),
        "padding on the left": (padding[:, 0] & ~padding[:, -1]).any(),
        "padding on the right": (padding[:, -1] & ~padding[:, 0]).any(),
        "padding inside": alone.any(),
        "a reset under padding": (resets & padding).any(),
    }
    return {name for name, has in masks.items() if has}
