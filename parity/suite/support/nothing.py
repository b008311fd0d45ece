"""`all` and `zip` as tests have them: over nothing they fail, since a test that looks at nothing passes whatever is."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from typing import Any


def all_of(values: Iterable[object]) -> bool:
    """The builtin `all`; raises AssertionError where there is no value."""
    seen = False
    for value in values:
        seen = True
        if not value:
            return False
    assert seen, "all() of nothing: what the test looks at is not there"
    return True


def zipped(*values: Iterable[Any], strict: bool = False) -> Iterator[tuple[Any, ...]]:
    """The builtin `zip`; raises AssertionError where it has no pair."""
    seen = False
    for pair in builtins.zip(*values, strict=strict):
        seen = True
        yield pair
    assert seen, "zip() of nothing: what the test compares is not there"
