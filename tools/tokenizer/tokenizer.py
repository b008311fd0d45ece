"""A tokenizer: text to ids, and ids to text, whole or one at a time."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tokenizers

from tools.cli.errors import first_line
from tools.tokenizer.gpt2 import byte_backend, byte_symbols
from tools.tokenizer.plain_text import encoding_backend, flat, reason, special_tokens, spelled_by_model
from tools.tokenizer.streaming import (
    ByteStream,
    StreamDecoder,
    WindowStream,
    byte_value,
    separate_invalid_bytes,
    unfinished_byte_tokens,
    unfinished_character,
)


class _Facts(NamedTuple):
    """What a tokenizer.json says.

    Args:
        special: what no text yields.
        names: of special tokens, the unknown one too; the library gives the normalized ones of some.
        literal: ids of tokens that stand for themselves, not for bytes.
        decoders: their types.
    """

    special: dict[str, int]
    names: dict[int, str]
    literal: frozenset[int]
    decoders: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizers.Tokenizer` that knows its end of text; a copy of it, or what comes out of a pickle, is the same."""

    backend: tokenizers.Tokenizer
    end_of_text_id: int

    def __post_init__(self) -> None:
        # Not "encode them specially" but "encode them like other text"; not stored in tokenizer.json.
        self.backend.encode_special_tokens = True

    def __reduce__(self) -> tuple[Callable[[str, int], "Tokenizer"], tuple[str, int]]:
        return _unpickled, (self.to_json(), self.end_of_text_id)

    @cached_property
    def vocab_size(self) -> int:
        """The number of rows an embedding needs: the largest id plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def dtype(self) -> np.dtype:
        """The little-endian type that token files of this vocabulary have."""
        return np.dtype("<u2" if self.vocab_size <= 65536 else "<u4")

    @cached_property
    def is_bytes(self) -> bool:
        """Whether every id below 256 is the byte of that value."""
        return self.to_json() == byte_backend().to_str()

    @cached_property
    def cuts_before_spaces(self) -> bool:
        """Whether a long document may be encoded in pieces that begin with the space or newline after a word."""
        parts = json.loads(self.to_json())
        splitter = parts["pre_tokenizer"] or {}
        gpt2_like = splitter.get("type") == "ByteLevel" and splitter["use_regex"] and not splitter["add_prefix_space"]
        plain = parts["normalizer"] is None and all(token["special"] for token in parts["added_tokens"])
        return self.is_bytes or (gpt2_like and plain)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """What no text yields: the end of text and every other special token, the unknown one aside."""
        return frozenset(self._facts.special.values())

    @cached_property
    def _facts(self) -> "_Facts":
        parts = json.loads(self.to_json())
        added = {token["content"]: token["id"] for token in parts["added_tokens"]}
        contents = {index: content for content, index in added.items()}
        end_of_text = contents.get(self.end_of_text_id) or self.backend.id_to_token(self.end_of_text_id) or ""
        special = special_tokens(parts, end_of_text)
        names = {token["id"]: token["content"] for token in parts["added_tokens"] if token["special"]}
        names |= {index: content for content, index in special.items()}
        # An added token stands for itself, where it is not the model that makes it of bytes.
        by_model = spelled_by_model(parts) - special.keys()
        literal = frozenset(index for content, index in added.items() if content not in by_model)
        return _Facts(special, names, literal, tuple(kind["type"] for kind in flat(parts["decoder"])))

    def token_string(self, token: int) -> str | None:
        """What the vocabulary calls an id; None for one that it leaves out."""
        return self._facts.names.get(token, self.backend.id_to_token(token))

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        return self._encoding_backend(continues=False)

    @cached_property
    def _continuing_encoder(self) -> tokenizers.Tokenizer:
        return self._encoding_backend(continues=True)

    def _encoding_backend(self, continues: bool) -> tokenizers.Tokenizer:
        symbols = byte_symbols() if "ByteLevel" in self._facts.decoders else None
        edited = encoding_backend(json.loads(self.to_json()), self._facts.special, symbols, continues)
        return self.backend if edited is None else edited

    @cached_property
    def _pieces(self) -> tuple[bytes, ...] | None:
        """The bytes of every id, where byte-level symbols are all that is decoded."""
        return self._bytes if self._facts.decoders == ("ByteLevel",) else None

    @cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        pieces = []
        for index in range(self.vocab_size):
            symbols = self.token_string(index) or ""
            known = index not in self._facts.literal and all(symbol in byte_of for symbol in symbols)
            pieces.append(bytes(byte_of[symbol] for symbol in symbols) if known else symbols.encode())
        return tuple(pieces)

    def encode(self, text: str, continues: bool = False) -> np.ndarray:
        """The ids of a text as int64, without those of special tokens: a literal <|endoftext|> is plain text.

        Args:
            text: to encode.
            continues: whether it goes on from other text, so that the tokenizer's prefix does not belong before it.

        Raises:
            ValueError: the tokenizer has no other tokens for it.
        """
        return self._encode([text], continues)[0].astype(np.int64)

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text in `dtype`, without end of text."""
        return self._encode(texts, continues=False)

    def _encode(self, texts: list[str], continues: bool) -> list[np.ndarray]:
        if self.is_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]
        remedy = "use characters of the training text, or a tokenizer with an unknown token"
        encoder = self._continuing_encoder if continues else self._encoder
        try:
            encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:  # `library_message` raises again what is not of the library
            message = library_message(error)
            for text in texts:
                text.encode()  # a lone surrogate is told as such
            raise ValueError(f"the tokenizer cannot encode this text: {reason(message)}; {remedy}") from error
        documents = [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]
        every = np.concatenate(documents) if documents else np.array([], self.dtype)
        slipped = every[np.isin(every, [*self.special_ids])]
        if slipped.size:
            token = self.token_string(int(slipped[0]))
            raise ValueError(f"the tokenizer cannot encode this text: it makes {token!r} of it; {remedy}")
        return documents

    def encode_after(self, context: Sequence[int], text: str) -> list[int]:
        """The ids of a text that goes on from other tokens, by which the decoded text grows by just this text.

        Where the encoding does not give that (WordPiece makes a new word of the second half of one), single tokens are
        put together; where they cannot be, the encoding stays.

        Args:
            context: the ids before, or the last of them.
            text: a short one.
        """
        encoded = self.encode(text, continues=bool(context)).tolist()
        before = self.decode(context)
        if not context or self.decode([*context, *encoded]) == before + text:
            return encoded
        ways: list[list[int] | None] = [[], *[None] * len(text)]
        pieces = self._pieces_in(text, context[-1])
        for end in range(1, len(text) + 1):
            found = [
                [*way, pieces[text[start:end]]]
                for start in range(end)
                if text[start:end] in pieces and (way := ways[start]) is not None
            ]
            ways[end] = min(found, key=len, default=None)
        exact = ways[-1]
        return exact if exact and self.decode([*context, *exact]) == before + text else encoded

    def _pieces_in(self, text: str, last: int) -> dict[str, int]:
        """The tokens by which a text that ends with the token `last` grows by a part of this one."""
        before, pieces = self.decode([last]), {}
        for token in range(self.vocab_size):
            grown = self.decode([last, token])
            piece = grown[len(before) :]
            if piece and piece in text and grown.startswith(before) and token not in self.special_ids:
                pieces.setdefault(piece, token)
        return pieces

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id lies outside the vocabulary.
        """
        tokens = [self._checked(token) for token in ids]
        if self._pieces is not None:
            return b"".join([self._pieces[token] for token in tokens]).decode("utf-8", errors="replace")
        named = [(token, text) for token in tokens if (text := self.token_string(token)) is not None]
        strings = [text for _, text in named]
        if "ByteLevel" in self._facts.decoders:
            symbols = byte_symbols()
            strings = [
                "".join(symbols[byte] for byte in text.encode()) if token in self._facts.literal else text
                for token, text in named
            ]
        if "ByteFallback" in self._facts.decoders:
            strings = separate_invalid_bytes(strings)
        decoder = self.backend.decoder
        try:
            return " ".join(strings) if decoder is None else decoder.decode(strings)
        except BaseException as error:  # `library_message` raises again what is not of the library
            raise ValueError(f"the tokenizer cannot decode these ids: {library_message(error)}") from error

    def token_bytes(self, token: int) -> bytes:
        """The bytes by which an id makes a text grow; of a special token, those of its name.

        Raises:
            ValueError: it lies outside the vocabulary.
        """
        name = self.token_string(self._checked(token)) or ""
        if token in self.special_ids:
            return name.encode()
        if "ByteLevel" in self._facts.decoders:
            return self._bytes[token]
        if "ByteFallback" in self._facts.decoders and (value := byte_value(name)) is not None:
            return bytes([value])
        # After another one: a decoder may drop the space before the first.
        return self.decode([token, token])[len(self.decode([token])) :].encode()

    def stream_decoder(self, context: Sequence[int] = ()) -> StreamDecoder:
        """A decoder that takes one id at a time.

        Args:
            context: the ids before, or the last of them, a hundred, say; their text is not given again.
        """
        if self._pieces is None:
            return WindowStream(self.decode, self._unfinished, context)
        return ByteStream(self._piece, context)

    def _unfinished(self, ids: Sequence[int]) -> int:
        """How many U+FFFD the text of ids ends with that the next ones may still make a character of."""
        if "ByteFallback" in self._facts.decoders:
            return unfinished_byte_tokens([self.token_string(token) or "" for token in ids[-3:]])
        if "ByteLevel" in self._facts.decoders:
            return unfinished_character(b"".join(self._bytes[token] for token in ids[-8:]))
        return 0

    def _piece(self, token: int) -> bytes:
        assert self._pieces is not None
        return self._pieces[self._checked(token)]

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self.backend.to_str()

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return int(token)


def _unpickled(content: str, end_of_text_id: int) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(content), end_of_text_id)


def library_message(error: BaseException) -> str:
    """What the library says: it raises nothing narrower than Exception, and a panic of its Rust code is none."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return first_line(error)
