"""How tight each bound is, tensor by tensor: recorded, so that a bound which grows too wide is seen.

In float32 and bfloat16 it is how much of the bound right code uses. In float64 code may be the reference to the last
bit on one processor and not on another, which fuses products into sums: there it is the width of the bound itself, the
median of all draws, since a single one in which everything cancels has a bound as wide as one likes.

    WRITE_TIGHTNESS=1 make test PYTEST_ARGS="-k 'test_within_its_bound or test_steps_within_the_rounding_bound'"

writes what the tests' own draws use into tightness.json, on a CPU. A bound that is SLACK times wider than it was then
fails the test that measures it: no other tensor, dtype or method can speak for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import pytest
from hypothesis import settings

from parity.proof import bounds

RECORDED = Path(__file__).with_name("tightness.json")
SLACK = 10.0
"""Another processor, another library or other draws may use less of a bound, but not so much less."""
PROPERTY = "tightness of "
"""Begins the name of the property of a test that travels with its report."""
WRITING = "WRITE_TIGHTNESS" in os.environ

Used = dict[str, float]
"""The largest error of each tensor in units of its bound; in float64 the bound in units of 2^-53 of the tensor."""


def read() -> dict[str, Used]:
    """What was recorded, by what was compared."""
    return json.loads(RECORDED.read_text("utf-8"))


def write(found: Mapping[str, Used]) -> None:
    """Put what was measured in the place of what was recorded of the same comparisons; a line a comparison."""
    every = {**(read() if RECORDED.is_file() else {}), **found}
    rounded = {label: {name: float(f"{x:.2g}") for name, x in every[label].items()} for label in sorted(every)}
    lines = ",\n".join(f"{json.dumps(label)}: {json.dumps(used)}" for label, used in rounded.items())
    RECORDED.write_text(f"{{\n{lines}\n}}\n", "utf-8")


def faults(label: str, found: Mapping[str, float], recorded: Mapping[str, Used]) -> list[str]:
    """What of the comparison `label` has too wide a bound, or no record; none where all is as it was."""
    before = recorded.get(label)
    if before is None:
        return [f"{label}: nothing is recorded; {__name__} says how it is"]
    if set(before) != set(found):
        return [f"{label}: recorded are {sorted(before)}, measured {sorted(found)}; record them anew"]
    if is_width(label):
        return [
            f"{label}, {name}: the bound is {found[name]:.2g} units of 2^-53 wide, and it was {was:.2g}"
            for name, was in before.items()
            if found[name] > was * SLACK
        ]
    return [
        f"{label}, {name}: {found[name]:.2g} of the bound is used, and it was {was:.2g}: the bound is wider than that"
        for name, was in before.items()
        if found[name] < was / SLACK
    ]


def is_width(label: str) -> bool:
    """Whether it is the width of the bounds that is recorded of a comparison."""
    return "float64" in label.split(", ")


def judge(request: pytest.FixtureRequest, label: str, kind: str = "") -> None:
    """Hold what the test's comparisons under `label` used against what was recorded.

    Args:
        request: of the test; told what was measured.
        label: as `assert_within` was given it.
        kind: of the problems, where a bound has a form for each.
    """
    if not settings().derandomize:  # other draws than those of the record
        return
    key = f"{label}, {kind}" if kind else label
    found = dict(bounds.BY_TENSOR[label])
    if is_width(key):
        found = {name: median(widths) for name, widths in bounds.WIDTHS[label].items()}
    request.node.user_properties.append((PROPERTY + key, found))
    assert WRITING or not (wrong := faults(key, found, read())), "\n".join(wrong)
