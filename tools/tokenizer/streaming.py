"""Text of ids that come one at a time, going on from those before: what is shown is the text of all of them."""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import Protocol

_WINDOW = 24
_LONGEST_CHARACTER = 4  # tokens of one byte that a UTF-8 character takes at most
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class StreamDecoder(Protocol):
    """Turns ids into text one at a time."""

    @property
    def is_unfinished(self) -> bool:
        """Whether the ids end in the middle of a character, which is not shown yet."""
        ...

    def push(self, token: int) -> str:
        """The text that this id completes, maybe none."""
        ...

    def flush(self) -> str:
        """What is left at the end: an unfinished character becomes U+FFFD."""
        ...


class ByteStream:
    """For byte-level vocabularies: never emits half of a character.

    Args:
        piece: the bytes of an id.
        context: the ids before, or the last of them; a character that they leave unfinished may be completed.
    """

    def __init__(self, piece: Callable[[int], bytes], context: Sequence[int] = ()) -> None:
        self._piece = piece
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in context:
            self._utf8.decode(piece(token))

    @property
    def is_unfinished(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def push(self, token: int) -> str:
        return self._utf8.decode(self._piece(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowStream:
    """For decoders whose text depends on the neighbours: emits by how much the text of the last ids has grown.

    Args:
        decode: the text of ids.
        unfinished: with how many U+FFFD it ends that stand for a character of which only the beginning has come.
        context: the ids before, or the last of them: a decoder may drop a space at the beginning of its text.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], unfinished: Callable[[list[int]], int], context: Sequence[int] = ()
    ) -> None:
        self._decode, self._unfinished = decode, unfinished
        self._ids = list(context)
        self._shown = len(self._finished(decode(self._ids)))

    @property
    def is_unfinished(self) -> bool:
        return self._unfinished(self._ids) > 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        return self._emit(text, self._finished(text))

    def flush(self) -> str:
        text = self._decode(self._ids)
        return self._emit(text, text)

    def _finished(self, text: str) -> str:
        return text[: len(text) - self._unfinished(self._ids)]

    def _emit(self, text: str, finished: str) -> str:
        new, self._shown = finished[self._shown :], max(self._shown, len(finished))
        if len(self._ids) > 2 * _WINDOW:
            ids = self._ids[-_WINDOW:]
            window = self._decode(ids)
            # Where a decoder strips a beginning of blanks alone, how much it strips depends on what comes.
            if window.strip() or len(self._ids) > 100 * _WINDOW:
                self._ids, self._shown = ids, len(window) - (len(text) - self._shown)
        return new


def separate_invalid_bytes(tokens: Sequence[str]) -> list[str]:
    """Tokens with an empty one wherever byte tokens, <0xE2>, cease or begin to be UTF-8.

    The library's ByteFallback replaces all of a run of bytes where one of them is wrong: a text would lose whole
    characters by the beginning of the next. With an empty token between them only the wrong ones are lost.
    """
    if not any(token.startswith("<0x") for token in tokens):
        return [*tokens]
    values = [byte_value(token) for token in tokens]
    separated: list[str] = []
    at, valid = 0, True
    while at < len(tokens):
        size = _character_size(values[at : at + _LONGEST_CHARACTER])
        if (size > 0) != valid and at and values[at - 1] is not None and values[at] is not None:
            separated.append("")
        valid = size > 0
        separated += tokens[at : at + max(size, 1)]
        at += max(size, 1)
    return separated


def _character_size(values: Sequence[int | None]) -> int:
    """How many bytes the character takes that begins here; 0 where none does, 1 for what is no byte."""
    if values[0] is None:
        return 1
    for size in range(1, len(values) + 1):
        numbers = [value for value in values[:size] if value is not None]
        if len(numbers) < size:
            return 0
        try:
            bytes(numbers).decode()
        except UnicodeDecodeError:
            continue
        return size
    return 0


def byte_value(token: str) -> int | None:
    """The byte that a token like <0xE2> stands for."""
    match = _BYTE.fullmatch(token)
    return int(match[1], 16) if match else None


def unfinished_character(content: bytes) -> int:
    """1 where bytes end with the beginning of a character, else 0."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    utf8.decode(content)
    return int(bool(utf8.getstate()[0]))


def unfinished_byte_tokens(tokens: Sequence[str]) -> int:
    """How many byte tokens at the end are the beginning of a character."""
    for start in range(len(tokens)):
        matches = [_BYTE.fullmatch(token) for token in tokens[start:]]
        content = bytes(int(match[1], 16) for match in matches if match)
        if all(matches) and _begins_character(content):
            return len(content)
    return 0


def _begins_character(content: bytes) -> bool:
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content) == ""
    except UnicodeDecodeError:
        return False
