"""Hypothesis strategies over the cases of parity/proof/problems/cases.py."""

from __future__ import annotations

import sys

from hypothesis import strategies as st

from parity.proof.operations import OPERATIONS
from parity.proof.problems import cases
from spec.config import ModelConfig

seeds = st.integers(0, 2**32 - 1)


def scan_cases(
    shapes: tuple[tuple[int, int, int], ...] = cases.SHAPES,
    resets: tuple[str, ...] = cases.RESETS,
    padding: tuple[str, ...] = cases.PADDINGS,
) -> st.SearchStrategy[cases.ScanCase]:
    """Problems for a scan: every regime of decays and drives, masks of the kinds named."""
    kinds = (st.sampled_from(kinds) for kinds in (shapes, cases.DECAYS, cases.DRIVES, resets, padding))
    return st.builds(cases.ScanCase, *kinds, seeds)


def model_cases(
    lengths: tuple[int, ...] = cases.LENGTHS,
    resets: tuple[str, ...] = cases.RESETS,
    padding: tuple[str, ...] = cases.PADDINGS,
    ignored: tuple[str, ...] = cases.IGNORED,
    config: ModelConfig = cases.CONFIG,
) -> st.SearchStrategy[cases.ModelCase]:
    """Problems for a model, masks and ignored labels of the kinds named, from a zero or a random state."""
    kinds = (st.sampled_from(kinds) for kinds in (lengths, resets, padding, ignored))
    return st.builds(cases.ModelCase, *kinds, st.booleans(), seeds, config=st.just(config))


def layer_cases(
    values: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...] = ((1, 1), (2, 31)),
    configs: tuple[ModelConfig, ...] = (cases.ODD, cases.NANO),
    masked: bool = False,
    ignored: tuple[str, ...] = ("none",),
) -> st.SearchStrategy[cases.LayerCase]:
    """Problems for one layer, at small odd widths and at those of nano."""
    masks = (st.sampled_from(kinds if masked else ("none",)) for kinds in (cases.RESETS, cases.PADDINGS))
    drawn = (st.sampled_from(shapes), st.sampled_from(values), seeds, st.sampled_from(configs))
    return st.builds(cases.LayerCase, *drawn, *masks, st.sampled_from(ignored))


GATES = ("normal", "wide", "mixture", "small", "huge")
HIDDEN = ("normal", "mixture", "small", "absorbed", "huge")

CASES: dict[str, st.SearchStrategy] = {
    "scan": scan_cases((*cases.SHAPES, (2, cases.NANO.max_seq_len, cases.NANO.d_model))),
    "rms_norm": layer_cases(cases.VALUES),
    "swiglu": layer_cases(HIDDEN),
    "cross_entropy": layer_cases(HIDDEN, ignored=cases.IGNORED),
    "adamw": st.builds(
        cases.AdamWCase,
        st.sampled_from(tuple(cases.ADAMW)),
        st.sampled_from((1, 10)),
        seeds,
        st.sampled_from((cases.CONFIG, cases.NANO_BLOCK)),
    ),
}
"""Problems for each of parity.proof.operations.OPERATIONS; a family's operations say themselves what theirs are."""
CASES |= {name: one.problems(sys.modules[__name__]) for name, one in OPERATIONS.items() if name not in CASES}
