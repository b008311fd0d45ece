"""Strings that end a text: what is shown before one may begin, and where the text goes back to when one has come."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from tools.generation.request import TokenLogprobs

Snapshot = TypeVar("Snapshot")


class StopStringFilter(Generic[Snapshot]):
    """Holds back what of a turn could be the beginning of a stop string, and ends the turn where one is complete.

    Args:
        stop: the strings.
        snapshot: of the session before the first token that is drawn, the furthest it goes back to.
    """

    def __init__(self, stop: Sequence[str], snapshot: Snapshot):
        self._stop, self.stopped = [text for text in stop if text], False
        # The session after so many characters, back to the last of them that is shown.
        self._snapshots = deque([(0, snapshot)])
        # The text since the oldest snapshot, and how many characters of it have been shown.
        self._text, self._seen = "", 0

    def push(self, piece: str, snapshot: Snapshot | None) -> str:
        """Take the text of a token, and the session after it, if one may go back to that; what may be shown now."""
        began = self._snapshots[0][0]
        self._text += piece
        if snapshot is not None:
            self._snapshots.append((began + len(self._text), snapshot))
        found = [at for text in self._stop if (at := self._text.find(text, self._seen)) >= 0]
        self.stopped = bool(found)
        seen = min(found) if found else len(self._text) - self._possible_stop(self._text[self._seen :])
        visible = self._text[self._seen : seen]
        while len(self._snapshots) > 1 and self._snapshots[1][0] <= began + seen:
            self._snapshots.popleft()
        passed = self._snapshots[0][0] - began
        self._text, self._seen = self._text[passed:], seen - passed
        return visible

    def _possible_stop(self, text: str) -> int:
        """How many characters at the end could begin a stop string."""
        sizes = range(min(len(text), max(map(len, self._stop), default=0)), 0, -1)
        return next((size for size in sizes if any(string.startswith(text[-size:]) for string in self._stop)), 0)

    def rest(self) -> str:
        """All that was held back."""
        return self._text[self._seen :]

    def before_stop(self) -> tuple[Snapshot, str]:
        """The last snapshot before the stop string, and the text between the two."""
        return self._snapshots[0][1], self._text[: self._seen]


class HeldTokens:
    """Tokens that are told of once their text is shown."""

    def __init__(self) -> None:
        # Each with the length of the text through it; how much of the text has been shown.
        self._held: deque[tuple[int, TokenLogprobs]] = deque()
        self._length = self._shown = 0

    def push(self, token: TokenLogprobs, piece: str) -> None:
        """A token, and the text that it completes."""
        self._length += len(piece)
        self._held.append((self._length, token))

    def take(self, shown: str) -> tuple[TokenLogprobs, ...]:
        """So much more is shown: the tokens that end in it."""
        self._shown += len(shown)
        taken = []
        while self._held and self._held[0][0] <= self._shown:
            taken.append(self._held.popleft()[1])
        return tuple(taken)

    def rest(self) -> tuple[TokenLogprobs, ...]:
        """All that were held back."""
        return tuple(token for _, token in self._held)
