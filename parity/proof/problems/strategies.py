"""Hypothesis strategies over the cases of parity/proof/problems/cases.py."""

from __future__ import annotations

import sys

from hypothesis import strategies as st

from parity.proof.operations import OPERATIONS
from parity.proof.problems.cases import (
    ADAMW,
    CONFIG,
    DECAYS,
    DRIVES,
    IGNORED,
    LENGTHS,
    NANO,
    NANO_BLOCK,
    PADDINGS,
    RESETS,
    SHAPES,
    VALUES,
    AdamWCase,
    LayerCase,
    ModelCase,
    ScanCase,
)
from spec.config import ModelConfig

seeds = st.integers(0, 2**32 - 1)


def scan_cases(
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
    resets: tuple[str, ...] = RESETS,
    padding: tuple[str, ...] = PADDINGS,
) -> st.SearchStrategy[ScanCase]:
    """Problems for a scan: every regime of decays and drives, masks of the kinds named."""
    kinds = (st.sampled_from(kinds) for kinds in (shapes, DECAYS, DRIVES, resets, padding))
    return st.builds(ScanCase, *kinds, seeds)


def model_cases(
    lengths: tuple[int, ...] = LENGTHS,
    resets: tuple[str, ...] = RESETS,
    padding: tuple[str, ...] = PADDINGS,
    ignored: tuple[str, ...] = IGNORED,
    config: ModelConfig = CONFIG,
) -> st.SearchStrategy[ModelCase]:
    """Problems for a model, masks and ignored labels of the kinds named, from a zero or a random state."""
    kinds = (st.sampled_from(kinds) for kinds in (lengths, resets, padding, ignored))
    return st.builds(ModelCase, *kinds, st.booleans(), seeds, config=st.just(config))


def layer_cases(
    values: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...] = ((1, 1), (2, 31)),
    configs: tuple[ModelConfig, ...] = (CONFIG, NANO),
    masked: bool = False,
    ignored: tuple[str, ...] = ("none",),
) -> st.SearchStrategy[LayerCase]:
    """Problems for one layer, at small widths and at those of nano."""
    masks = (st.sampled_from(kinds if masked else ("none",)) for kinds in (RESETS, PADDINGS))
    drawn = (st.sampled_from(shapes), st.sampled_from(values), seeds, st.sampled_from(configs))
    return st.builds(LayerCase, *drawn, *masks, st.sampled_from(ignored))


GATES = ("normal", "wide", "mixture", "small")
HIDDEN = ("normal", "mixture", "small", "absorbed")

CASES: dict[str, st.SearchStrategy] = {
    "scan": scan_cases((*SHAPES, (2, NANO.max_seq_len, NANO.d_model))),
    "rms_norm": layer_cases(VALUES),
    "swiglu": layer_cases(HIDDEN),
    "cross_entropy": layer_cases(HIDDEN, ignored=IGNORED),
    "adamw": st.builds(
        AdamWCase, st.sampled_from(tuple(ADAMW)), st.sampled_from((1, 10)), seeds, st.sampled_from((CONFIG, NANO_BLOCK))
    ),
}
"""Problems for each of parity.proof.operations.OPERATIONS; a family's operations say themselves what theirs are."""
CASES |= {name: one.problems(sys.modules[__name__]) for name, one in OPERATIONS.items() if name not in CASES}
