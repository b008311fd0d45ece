"""Tokenizers: bytes, GPT-2's, a byte-level BPE trained here, and any tokenizer.json of the `tokenizers` library.

The marker <|endoftext|> separates documents in the files given to `prepare`. Everywhere else, in prompts and inside a
document, it is plain text: encoding never yields the end-of-text id, so no prompt can end a document by spelling it.
Decoding writes the marker where the id stands.
"""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from spec.checkpoint.files import read_utf8
from tools.tokenizer.gpt2 import END_OF_TEXT, byte_backend, byte_level, gpt2_backend
from tools.tokenizer.streaming import StreamDecoder
from tools.tokenizer.tokenizer import Tokenizer, library_message

_OTHER_END_OF_TEXT = ("<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_BYTE_VOCABULARY = 257
_DAMAGED = "it is damaged, take another"

__all__ = [
    "END_OF_TEXT",
    "StreamDecoder",
    "Tokenizer",
    "build_tokenizer",
    "check_tokenizer_name",
    "load_tokenizer",
    "parse_tokenizer",
]


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
    _require_known_merges(content, name)
    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except BaseException as error:  # `library_message` raises again what is not of the library
        message = library_message(error)
        raise ValueError(f"{name}: not a tokenizer.json of the tokenizers library ({message})") from error
    _require_own_ids(backend, name)
    backend.no_truncation()
    backend.no_padding()
    for token in (END_OF_TEXT, *_OTHER_END_OF_TEXT):
        if backend.token_to_id(token) is not None:
            return _wrap(backend, token)
    raise ValueError(f"{name}: no end-of-text token; add {END_OF_TEXT} to it as a special token")


def _require_known_merges(content: str, name: str) -> None:
    """Raises ValueError for a merge that leads to no token: the library panics at one that is longer than all tokens.

    What else is wrong, it says itself.
    """
    try:
        model = json.loads(content)["model"]
        vocabulary, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
        # The first line of a merges.txt is passed over there, too.
        listed = [merge for merge in model["merges"] if not (isinstance(merge, str) and merge.startswith("#version"))]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in listed]
        wrong = [
            (left, right)
            for left, right in merges
            if not right.startswith(prefix) or left + right[len(prefix) :] not in vocabulary
        ]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return
    if wrong:
        left, right = wrong[0]
        raise ValueError(f"{name}: no token is what its merge of {left!r} and {right!r} leads to; {_DAMAGED}")


def _require_own_ids(backend: tokenizers.Tokenizer, name: str) -> None:
    """Raises ValueError for an id that two tokens have, or that is too large.

    Of two with one id the library would write only one to the tokenizer.json of a run; and it makes a list of all ids,
    which would end the process.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values(), default=0)
    if largest > 4 * len(vocabulary) + 65536:
        raise ValueError(f"{name}: one of its {len(vocabulary):,} tokens has the id {largest:,}; {_DAMAGED}")
    of_id: dict[int, str] = {}
    for token, index in sorted(vocabulary.items()):
        if of_id.setdefault(index, token) != token:
            raise ValueError(f"{name}: {of_id[index]!r} and {token!r} have the same id, {index:,}; {_DAMAGED}")


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
        return _wrap(byte_backend(), END_OF_TEXT)
    if name == "gpt2":
        return _wrap(gpt2_backend(files), END_OF_TEXT)
    if name.startswith("bpe:"):
        return _wrap(_train_bpe(_bpe_size(name), texts), END_OF_TEXT)
    return load_tokenizer(name)


def _wrap(backend: tokenizers.Tokenizer, end_of_text: str) -> Tokenizer:
    backend.add_special_tokens([end_of_text])
    end_of_text_id = backend.token_to_id(end_of_text)
    assert end_of_text_id is not None
    return Tokenizer(backend, end_of_text_id)


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
