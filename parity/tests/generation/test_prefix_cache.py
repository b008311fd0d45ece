"""The prefix cache: the longest beginning that is known, the least recently used forgotten first, bytes counted."""

from __future__ import annotations

import numpy as np

from tools.generation.prefix_cache import PrefixCache

STATE = np.zeros((2, 1, 8), np.float32)
ENTRY = STATE.nbytes + 256


def state(value):
    return STATE + value


def found(cache, tokens, ends):
    end, states = cache.find(tokens, ends)
    return end, None if states is None else states[0, 0, 0]


def test_the_longest_known_beginning_is_found():
    cache = PrefixCache(100 * ENTRY)
    cache.keep([1, 2], state(2))
    cache.keep([1, 2, 3, 4], state(4))
    cache.keep([9, 3, 4], state(9))
    assert found(cache, [1, 2, 3, 4, 5], [2, 4]) == (4, 4.0)
    assert found(cache, [1, 2, 3, 5, 5], [2, 4]) == (2, 2.0)
    assert found(cache, [1, 2, 3, 4, 5], [2]) == (2, 2.0)
    assert found(cache, [1, 2, 3, 4, 5], [3]) == (0, None)
    assert found(cache, [2, 2, 3, 4, 5], [2, 4]) == (0, None), "all that came before counts"
    assert found(cache, [1, 3, 3, 4], [2, 4]) == (0, None), "and not the last tokens alone"
    assert found(cache, [9, 3, 4], [1, 3]) == (3, 9.0), "whatever other lengths are looked at"


def test_what_was_not_used_for_longest_makes_room():
    cache = PrefixCache(3 * ENTRY)
    for token in (1, 2, 3):
        cache.keep([token], state(token))
    assert len(cache) == 3 and cache.bytes == 3 * ENTRY
    assert found(cache, [1], [1]) == (1, 1.0)
    cache.keep([4], state(4))
    assert [found(cache, [token], [1])[0] for token in (1, 2, 3, 4)] == [1, 0, 1, 1]
    cache.keep([1], state(7))
    assert len(cache) == 3 and cache.bytes == 3 * ENTRY and found(cache, [1], [1]) == (1, 7.0)


def test_a_state_that_is_larger_than_all_is_not_kept():
    cache = PrefixCache(ENTRY - 1)
    cache.keep([1], STATE)
    assert len(cache) == cache.bytes == 0
    nothing = PrefixCache(0)
    nothing.keep([1], STATE)
    assert found(nothing, [1], [1]) == (0, None)
