"""States after the beginnings of texts: a prompt that begins as an earlier one did is read from there on alone."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

#: Bytes that an entry takes besides its state, about.
_OVERHEAD = 256


class PrefixCache:
    """States [l, 1, n] by the tokens that led to them; the one that was not used for longest goes first.

    A state is kept where a piece of a prompt ended, which is a function of the prompt alone (`spec.sampling.
    piece_starts`): with the cache and without it a text is the same, to the bit. Of one thread.

    Args:
        capacity: bytes that are kept at most; 0 keeps nothing.
    """

    def __init__(self, capacity: int):
        self.capacity, self.bytes = capacity, 0
        self._states: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def find(self, tokens: Sequence[int], ends: Iterable[int]) -> tuple[int, np.ndarray | None]:
        """The longest of these beginnings that is known, and the state after it; 0 and None where none is.

        Args:
            tokens: of a text, from its first one.
            ends: ascending lengths of its beginnings.
        """
        best, state = 0, None
        for end, key in _keys(tokens, ends):
            if key in self._states:
                best, state = end, self._states[key]
                self._states.move_to_end(key)
        return best, state

    def keep(self, tokens: Sequence[int], states: np.ndarray) -> None:
        """Keep the state after a text's beginning."""
        size = states.nbytes + _OVERHEAD
        if size > self.capacity:
            return
        ((_, key),) = _keys(tokens, [len(tokens)])
        if key not in self._states:
            self.bytes += size
        self._states[key] = states
        self._states.move_to_end(key)
        while self.bytes > self.capacity:
            self.bytes -= self._states.popitem(last=False)[1].nbytes + _OVERHEAD


def _keys(tokens: Sequence[int], ends: Iterable[int]) -> Iterable[tuple[int, bytes]]:
    """Each length with a hash of so many tokens: SHA-256, since whoever could make two prompts meet would be answered
    from another one's state."""
    digest, start = hashlib.sha256(), 0
    for end in ends:
        digest.update(np.asarray(tokens[start:end], "<i8").tobytes())
        start = end
        yield end, digest.digest()
