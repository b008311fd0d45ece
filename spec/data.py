"""Token files, and which tokens each optimizer step sees.

Batch k is a pure function of (seed, k): no generator state, no stored shuffle, one integer as the cursor.

    An epoch e cuts the token file into windows of seq_len, starting at an offset of its own in [0, seq_len).
    Sample s, counted over the whole run, is window pi_e(s mod n) of epoch e = s div n, n windows an epoch,
    where pi_e is a permutation of [0, n) keyed by (seed, e).
    Step k of batch size B holds samples k B ... k B + B - 1; ranks cut it contiguously.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spec.config import require_integer, require_known
from spec.init import stream

IGNORED_LABEL = -100
DATA_FORMAT_VERSION = 1
_ROUNDS = 6


@dataclass(frozen=True)
class Batch:
    """One step's input: `labels[b, t]` follows `tokens[b, t]`; `resets[b, t]` clears the state before token t."""

    tokens: np.ndarray
    labels: np.ndarray
    resets: np.ndarray

    def rows(self, rank: int, world_size: int) -> Batch:
        """The contiguous share of one rank; row counts differ by one at most."""
        low, high = (len(self.tokens) * r // world_size for r in (rank, rank + 1))
        return Batch(self.tokens[low:high], self.labels[low:high], self.resets[low:high])


@dataclass(frozen=True)
class Dataset:
    """An opened DATA directory: memory-mapped tokens, the meta data and the tokenizer's JSON."""

    train: np.ndarray
    val: np.ndarray
    meta: dict[str, Any]
    tokenizer: str

    @property
    def vocab_size(self) -> int:
        return self.meta["vocab_size"]

    @property
    def end_of_text_id(self) -> int:
        return self.meta["end_of_text_id"]

    def nats_to_bits_per_byte(self, nats: float) -> float:
        """Bits a byte of text from nats a token, over the validation part's tokens and bytes."""
        part = self.meta["val"]
        return nats * part["tokens"] / part["bytes"] / float(np.log(2.0))


def open_data(directory: Path) -> Dataset:
    """Open what `liquidnet prepare` wrote.

    Raises:
        ValueError: not a data directory, another format version, a file whose SHA-256 differs from meta.json, or a
            token id outside the vocabulary.
    """
    directory = Path(directory)
    if not (directory / "meta.json").is_file():
        raise ValueError(f"{directory} holds no prepared data (meta.json is missing); make it with `liquidnet prepare`")
    try:
        meta = json.loads((directory / "meta.json").read_text())
        if meta["format_version"] != DATA_FORMAT_VERSION:
            raise ValueError(
                f"{directory} has data format version {meta['format_version']}, this version reads "
                f"{DATA_FORMAT_VERSION}; run `liquidnet prepare` again"
            )
        tokenizer = (directory / "tokenizer.json").read_bytes()
        digests = {"tokenizer.json": (tokenizer, meta["tokenizer_sha256"])}
        parts = {}
        for part in ("train", "val"):
            parts[part] = _open_tokens(directory / f"{part}.bin", np.dtype(meta["dtype"]).newbyteorder("<"))
            digests[f"{part}.bin"] = (parts[part], meta[part]["sha256"])
        require_integer("meta.json: vocab_size", meta["vocab_size"], 1)
        require_integer("meta.json: end_of_text_id", meta["end_of_text_id"], 0, meta["vocab_size"] - 1)
        for name in ("bytes", "tokens"):
            require_integer(f"meta.json: val {name}", meta["val"][name], 1, 2**63 - 1)
        require_known("token dtype", meta["dtype"], ("uint16", "uint32"))
    except (KeyError, TypeError, json.JSONDecodeError, FileNotFoundError) as error:
        raise ValueError(f"{directory} is not whole ({error!r}); run `liquidnet prepare` again") from error
    for name, (content, digest) in digests.items():
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(
                f"{directory / name} does not match its checksum in meta.json; run `liquidnet prepare` again"
            )
    for name, tokens in parts.items():
        if tokens.max() >= meta["vocab_size"]:
            raise ValueError(f"{directory / name}.bin holds token id {tokens.max()}, outside the vocabulary")
    return Dataset(parts["train"], parts["val"], meta, tokenizer.decode())


def _open_tokens(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        return np.memmap(path, dtype=dtype, mode="r")
    except ValueError as error:
        raise ValueError(f"{path} is empty or cut short; run `liquidnet prepare` again") from error


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Image of `index` under a permutation of [0, size) chosen by `keys`.

    A Feistel network over the next even power of two, walked until it lands inside: O(1) memory a sample.
    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 4.

    Args:
        index: integers in [0, size).
        size: number of elements permuted.
        keys: uint64, one a round.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    value = np.asarray(index).astype(np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> half, value[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def mix(value: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser: every input bit reaches every output bit (Steele et al. 2014, SplitMix)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def windows_per_epoch(tokens: np.ndarray, seq_len: int) -> int:
    """Windows in every epoch, whatever its offset; raises ValueError where the data is shorter than one window."""
    if len(tokens) < 2 * seq_len:
        raise ValueError(
            f"sequence length {seq_len} needs at least {2 * seq_len} training tokens, the data has {len(tokens)}; "
            "shorten --seq-len or prepare more text"
        )
    return (len(tokens) - seq_len) // seq_len


def window_starts(samples: np.ndarray, tokens: np.ndarray, seq_len: int, seed: int) -> np.ndarray:
    """Where in the token file each sample of the run starts."""
    count = windows_per_epoch(tokens, seq_len)
    starts = np.empty(len(samples), np.int64)
    for epoch in np.unique(samples // count):
        draw = stream(seed, f"data order, epoch {epoch}")
        keys, offset = draw.integers(2**64, size=_ROUNDS, dtype=np.uint64), draw.integers(seq_len)
        chosen = samples // count == epoch
        starts[chosen] = offset + seq_len * permute(samples[chosen] % count, count, keys)
    return starts


def training_batch(data: Dataset, samples_consumed: int, batch_size: int, seq_len: int, seed: int) -> Batch:
    """The global batch that follows `samples_consumed` samples.

    Raises:
        ValueError: the data is shorter than a window.
    """
    samples = np.arange(samples_consumed, samples_consumed + batch_size)
    return _cut(data, data.train, window_starts(samples, data.train, seq_len, seed), seq_len)


def validation_batches(data: Dataset, seq_len: int, batch_size: int, most_windows: int) -> Iterator[Batch]:
    """The first `most_windows` non-overlapping windows of the validation part, in file order.

    The last batch is filled up with rows whose labels are all ignored, so that every batch has one shape.
    """
    starts = np.arange(0, len(data.val) - seq_len, seq_len)[:most_windows]
    if len(starts) == 0:
        raise ValueError(
            f"sequence length {seq_len} needs more than {seq_len} validation tokens, the data has {len(data.val)}; "
            "shorten --seq-len or prepare more text"
        )
    batch_size = min(batch_size, len(starts))
    for low in range(0, len(starts), batch_size):
        batch = _cut(data, data.val, np.resize(starts[low : low + batch_size], batch_size), seq_len)
        batch.labels[len(starts) - low :] = IGNORED_LABEL
        yield batch


def _cut(data: Dataset, tokens: np.ndarray, starts: np.ndarray, seq_len: int) -> Batch:
    text = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int32)
    tokens_bt, labels_bt = text[:, :-1], text[:, 1:]
    return Batch(tokens_bt.copy(), labels_bt.copy(), document_resets(tokens_bt, data.end_of_text_id))


def document_resets(tokens_bt: np.ndarray, end_of_text_id: int) -> np.ndarray:
    """True at each token that follows an end-of-text token in its row: a new document starts from a zero state."""
    resets = np.zeros(tokens_bt.shape, bool)
    resets[:, 1:] = tokens_bt[:, :-1] == end_of_text_id
    return resets
