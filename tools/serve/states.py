"""States that clients keep on the server: a text's whole memory under a name, of one size whatever its length."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from tools.generation.request import SessionState
from tools.serve.errors import ApiError, bad_request

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, eq=False)
class StoredState:
    """A state and what is told of it.

    Args:
        id: its name.
        state: it.
        created: seconds since 1970.
        size: bytes of its file.
        model: whose it is.
    """

    id: str
    state: SessionState
    created: int
    size: int
    model: str

    def as_json(self) -> dict[str, object]:
        """What a client is told."""
        told = {"id": self.id, "object": "state", "created": self.created, "model": self.model}
        return {**told, "tokens": self.state.tokens, "bytes": self.size}


class StateStore:
    """In memory, and on the event loop's thread alone.

    Args:
        most: that are kept at once.
        model: name of the model.
        pack: a state as the content of a file.
        parse: the reverse; raises ValueError for what is none, or of other weights.
    """

    def __init__(
        self, most: int, model: str, pack: Callable[[SessionState], bytes], parse: Callable[[bytes], SessionState]
    ):
        self._most, self._model, self._pack, self._parse = most, model, pack, parse
        self._states: dict[str, StoredState] = {}
        self._reserved = 0

    def all(self) -> list[StoredState]:
        """The oldest first."""
        return list(self._states.values())

    def get(self, name: str) -> StoredState:
        """Raises ApiError 404 where there is none of this name."""
        if name not in self._states:
            raise ApiError(404, f"there is no state {name[:80]!r} on this server", "state", "state_not_found")
        return self._states[name]

    def content(self, name: str) -> bytes:
        """The file of a state; raises ApiError 404."""
        return self._pack(self.get(name).state)

    def parse(self, content: bytes) -> SessionState:
        """A state from the content of a file; raises ApiError 400 for what is none of this model."""
        try:
            return self._parse(content)
        except ValueError as error:
            raise bad_request(f"the body is no state of this model: {error}", code="invalid_state") from None

    def reserve(self) -> None:
        """Keep a place for a state that is being made; raises ApiError 429 where there is none."""
        if len(self._states) + self._reserved >= self._most:
            message = f"{self._most} states are kept already; delete one first"
            raise ApiError(429, message, code="too_many_states", headers={"Retry-After": "10"})
        self._reserved += 1

    def release(self) -> None:
        """Give up a place that was kept."""
        self._reserved -= 1

    def add(self, state: SessionState) -> StoredState:
        """Put a state in a place that was kept for it, under a name that nobody guesses."""
        self.release()
        return self._store(f"state-{secrets.token_hex(12)}", state)

    def put(self, name: str, state: SessionState) -> StoredState:
        """Keep a state under a client's name for it, in the place of one that has it.

        Raises:
            ApiError: 400 for a name that may not be, 429 where there is no place.
        """
        if not _NAME.fullmatch(name):
            raise bad_request("id: must be 1 to 64 letters, digits, - and _", "id")
        if name not in self._states:
            self.reserve()
            self.release()
        return self._store(name, state)

    def _store(self, name: str, state: SessionState) -> StoredState:
        stored = StoredState(name, state, int(time.time()), len(self._pack(state)), self._model)
        self._states[name] = stored
        return stored

    def delete(self, name: str) -> None:
        """Forget one; raises ApiError 404."""
        self.get(name)
        del self._states[name]
