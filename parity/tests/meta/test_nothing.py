"""In the tests themselves `all` and `zip` fail over nothing: a test that looks at nothing cannot pass."""

import pytest


def test_all_fails_over_nothing():
    assert all([1, 2]) and not all([1, 0]) and all(x > 1 for x in (2, 3))
    for nothing in ([], (x for x in ()), {}):
        with pytest.raises(AssertionError, match="is not there"):
            all(nothing)


def test_zip_fails_over_nothing_and_is_else_the_builtin():
    assert list(zip("ab", (1, 2), strict=True)) == [("a", 1), ("b", 2)] and dict(zip("ab", "c", strict=False)) == {
        "a": "c"
    }
    with pytest.raises(ValueError, match="shorter"):
        list(zip("ab", "c", strict=True))
    for strict in (False, True):
        with pytest.raises(AssertionError, match="is not there"):
            list(zip([], [], strict=strict))
