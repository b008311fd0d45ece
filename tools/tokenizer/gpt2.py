"""GPT-2's byte-level BPE: its alphabet, and its vocabulary from two local files or from the hub with a checksum.

Radford et al. (2019), Language Models are Unsupervised Multitask Learners, section 2.2; the files, the end-of-text
marker and the alphabet are those of OpenAI's release, github.com/openai/gpt-2 `src/encoder.py`.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from spec.checkpoint.files import read_utf8
from tools.data.hub import HubFile, download

END_OF_TEXT = "<|endoftext|>"
REPOSITORY = "openai-community/gpt2"
REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
FILES = tuple(
    HubFile(REPOSITORY, REVISION, *described)
    for described in (
        ("vocab.json", 1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
        ("merges.txt", 456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    )
)
_OTHERWISE = "both files of --tokenizer-files vocab.json merges.txt"


def byte_level(model: models.Model, use_regex: bool) -> tokenizers.Tokenizer:
    """A tokenizer of this model over bytes; with use_regex no merge crosses a word's border."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


@cache
def byte_symbols() -> tuple[str, ...]:
    """The printable stand-in of every byte: itself where printable in Latin-1, else the next from U+0100.

    As `bytes_to_unicode` of OpenAI's `encoder.py` has them.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def byte_backend() -> tokenizers.Tokenizer:
    """The 256 bytes, each with its value as id, and end of text as 256."""
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    backend = byte_level(models.BPE(vocab=vocabulary, merges=[]), use_regex=False)
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def gpt2_backend(files: Sequence[Path] | None) -> tokenizers.Tokenizer:
    """Build GPT-2's tokenizer.

    Args:
        files: vocab.json and merges.txt (with or without its version line); None downloads OpenAI's.

    Raises:
        OSError: if a file cannot be read or downloaded.
        ValueError: if the files are damaged or do not belong together.
    """
    vocabulary_path, merges_path = files if files is not None else [download(file, _OTHERWISE) for file in FILES]
    vocabulary = _vocabulary(Path(vocabulary_path))
    merges = _merges(Path(merges_path), vocabulary, vocabulary_path)
    return byte_level(models.BPE(vocab=vocabulary, merges=merges), use_regex=True)


def _vocabulary(path: Path) -> dict[str, int]:
    content = read_utf8(path)
    try:
        vocabulary = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if not ids or any(type(index) is not int for index in ids) or sorted(ids) != [*range(len(ids))]:
        raise ValueError(f"{path}: not a vocabulary, an object whose values are the ids 0, 1, 2, ...")
    for token in (*byte_symbols(), END_OF_TEXT):
        if token not in vocabulary:
            raise ValueError(f"{path}: not GPT-2's vocabulary, for {token!r} is missing")
    return vocabulary


def _merges(path: Path, vocabulary: dict[str, int], vocabulary_path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise ValueError(f"{path}: line {number} is no merge of {vocabulary_path}: {line!r}")
        merges.append((left, right))
    return merges
