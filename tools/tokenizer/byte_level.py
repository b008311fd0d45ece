"""Byte-level BPE as GPT-2 has it: text as UTF-8 bytes, each byte written as a printable character."""

from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"


def byte_level(model: models.Model, use_regex: bool) -> tokenizers.Tokenizer:
    """A tokenizer of this model over bytes; with use_regex no merge crosses a word's border."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_backend() -> tokenizers.Tokenizer:
    """The 256 bytes, each with its value as id, and end of text as 256."""
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    backend = byte_level(models.BPE(vocab=vocabulary, merges=[]), use_regex=False)
    backend.add_special_tokens([END_OF_TEXT])
    return backend


@cache
def byte_symbols() -> tuple[str, ...]:
    """GPT-2's printable stand-in of every byte: itself where printable in Latin-1, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def read_utf8(path: Path) -> str:
    """The text of a small file; ValueError where it is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def first_line(error: Exception) -> str:
    """An error's message without the lines after the first."""
    return next(iter(str(error).splitlines()), type(error).__name__)
