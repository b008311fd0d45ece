"""Tokenizers: bytes, GPT-2's, a byte-level BPE trained here, and any tokenizer.json of the `tokenizers` library.

The marker <|endoftext|> separates documents in the files given to `prepare`. Everywhere else, in prompts and inside a
document, it is plain text: encoding never yields the end-of-text id, so no prompt can end a document by spelling it.
Decoding writes the marker where the id stands.
"""

import codecs
import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from spec.checkpoint.files import read_utf8
from tools.cli.errors import first_line
from tools.tokenizer.gpt2 import END_OF_TEXT, byte_level, byte_symbols, gpt2_backend

_OTHER_END_OF_TEXT = ("<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_BYTE_VOCABULARY = 257


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizers.Tokenizer` that knows its end of text."""

    backend: tokenizers.Tokenizer
    end_of_text_id: int

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
        return self.to_json() == _byte_backend().to_str()

    @cached_property
    def cuts_before_spaces(self) -> bool:
        """Whether a long document may be encoded in pieces that begin with the space or newline after a word."""
        parts = json.loads(self.to_json())
        splitter = parts["pre_tokenizer"] or {}
        gpt2_like = splitter.get("type") == "ByteLevel" and splitter["use_regex"] and not splitter["add_prefix_space"]
        plain = parts["normalizer"] is None and all(token["special"] for token in parts["added_tokens"])
        return self.is_bytes or (gpt2_like and plain)

    @cached_property
    def _pieces(self) -> tuple[bytes, ...] | None:
        """The bytes of every id, for byte-level vocabularies."""
        if (json.loads(self.to_json())["decoder"] or {}).get("type") != "ByteLevel":
            return None
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        pieces = []
        for index in range(self.vocab_size):
            symbols = self.backend.id_to_token(index) or ""
            known = all(symbol in byte_of for symbol in symbols)
            pieces.append(bytes(byte_of[symbol] for symbol in symbols) if known else symbols.encode())
        return tuple(pieces)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text as int64, without end of text; a literal <|endoftext|> is plain text."""
        return self.encode_documents([text])[0].astype(np.int64)

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text in `dtype`, without end of text."""
        if self.is_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]
        try:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            remedy = "use characters of the training text, or a tokenizer with an unknown token"
            raise ValueError(f"the tokenizer cannot encode this text: {first_line(error)}; {remedy}") from error
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id lies outside the vocabulary.
        """
        tokens = [self._checked(token) for token in ids]
        if self._pieces is not None:
            return b"".join([self._pieces[token] for token in tokens]).decode("utf-8", errors="replace")
        return self.backend.decode(tokens, skip_special_tokens=False)

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder that takes one id at a time."""
        return _WindowStream(self) if self._pieces is None else _ByteStream(self)

    def to_json(self) -> str:
        """The content of tokenizer.json."""
        return self.backend.to_str()

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return int(token)


class _ByteStream:
    """For byte-level vocabularies: never emits half of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this id completes, maybe none."""
        assert self._tokenizer._pieces is not None
        return self._utf8.decode(self._tokenizer._pieces[self._tokenizer._checked(token)])

    def flush(self) -> str:
        """What is left at the end: an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)


class _WindowStream:
    """For decoders whose text depends on the neighbours: decodes a short window twice and emits the difference."""

    _LONGEST_CHARACTER = 4  # tokens of one byte that a UTF-8 character takes at most

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._text()
        unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._pending) < self._LONGEST_CHARACTER
        return "" if unfinished else self._emit(text)

    def flush(self) -> str:
        return self._emit(self._text()) if self._pending else ""

    def _text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]

    def _emit(self, text: str) -> str:
        self._context, self._pending = self._pending, []
        return text


#: Turns ids into text one at a time.
StreamDecoder: TypeAlias = _ByteStream | _WindowStream


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer.json.

    Args:
        path: the file; its truncation and padding are switched off, for they would cut documents.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a tokenizer.json, or has no end-of-text token.
    """
    return parse_tokenizer(read_utf8(Path(path)), str(path))


def parse_tokenizer(content: str, name: str = "tokenizer.json") -> Tokenizer:
    """Make a tokenizer of the content of a tokenizer.json.

    Args:
        content: the JSON.
        name: what error messages call it.

    Raises:
        ValueError: if it is not a tokenizer.json, or has no end-of-text token.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{name}: not a tokenizer.json of the tokenizers library ({first_line(error)})") from error
    backend.no_truncation()
    backend.no_padding()
    for token in (END_OF_TEXT, *_OTHER_END_OF_TEXT):
        if backend.token_to_id(token) is not None:
            return _wrap(backend, token)
    raise ValueError(f"{name}: no end-of-text token; add {END_OF_TEXT} to it as a special token")


def check_tokenizer_name(name: str, files: Sequence[Path] | None = None) -> None:
    """Refuse a tokenizer's name before any work is done.

    Args:
        name: `byte`, `gpt2`, `bpe:SIZE` or the path of a tokenizer.json.
        files: local vocabulary and merges, for gpt2 alone.

    Raises:
        ValueError: if the name is unknown, the size too small, or files are given without gpt2.
    """
    if files is not None and name != "gpt2":
        raise ValueError(f"--tokenizer-files belongs to --tokenizer gpt2, not to {name}")
    if name.startswith("bpe:"):
        _bpe_size(name)
    elif name not in ("byte", "gpt2") and not name.endswith(".json") and not Path(name).is_file():
        near = difflib.get_close_matches(name.lower(), ("byte", "bytes", "gpt2", "bpe:4096"), n=1, cutoff=0.5)
        hint = f"did you mean {near[0].replace('bytes', 'byte')}? " if near else ""
        hint = "give its size, bpe:8000, for example; " if name.lower() == "bpe" else hint
        raise ValueError(f"unknown tokenizer {name!r}: {hint}choose byte, gpt2, bpe:SIZE or a tokenizer.json")


def build_tokenizer(name: str, texts: Iterable[str] = (), files: Sequence[Path] | None = None) -> Tokenizer:
    """Build the tokenizer that a name on the command line stands for.

    Args:
        name: `byte`, `gpt2`, `bpe:SIZE` or the path of a tokenizer.json.
        texts: the training text, read by bpe:SIZE alone.
        files: local vocabulary and merges of GPT-2; without them they come from the hub.

    Raises:
        OSError: if a file cannot be read or downloaded.
        ValueError: if the name or a file is wrong.
    """
    check_tokenizer_name(name, files)
    if name == "byte":
        return _wrap(_byte_backend(), END_OF_TEXT)
    if name == "gpt2":
        return _wrap(gpt2_backend(files), END_OF_TEXT)
    if name.startswith("bpe:"):
        return _wrap(_train_bpe(_bpe_size(name), texts), END_OF_TEXT)
    return load_tokenizer(name)


def _wrap(backend: tokenizers.Tokenizer, end_of_text: str) -> Tokenizer:
    backend.add_special_tokens([end_of_text])
    # Not "encode them specially" but "encode them like other text"; not stored in tokenizer.json.
    backend.encode_special_tokens = True
    end_of_text_id = backend.token_to_id(end_of_text)
    assert end_of_text_id is not None
    return Tokenizer(backend, end_of_text_id)


def _byte_backend() -> tokenizers.Tokenizer:
    """The 256 bytes, each with its value as id, and end of text as 256."""
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    backend = byte_level(models.BPE(vocab=vocabulary, merges=[]), use_regex=False)
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def _bpe_size(name: str) -> int:
    size = name.removeprefix("bpe:")
    if not size.isascii() or not size.isdigit() or not _BYTE_VOCABULARY <= int(size[:20]) < 2**31:
        raise ValueError(f"{name}: SIZE must be a whole number of at least {_BYTE_VOCABULARY}, such as bpe:4096")
    return int(size)


def _train_bpe(size: int, texts: Iterable[str]) -> tokenizers.Tokenizer:
    backend = byte_level(models.BPE(), use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,  # end of text is added after training, so that it has the last id, as in GPT-2
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend
