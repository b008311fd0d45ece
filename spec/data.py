"""Token files, and which tokens each optimizer step sees.

Batch k is a pure function of (seed, k): no generator state, no stored shuffle, one integer as the cursor. What is drawn
is drawn from Philox, a counter-based generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    An epoch e cuts the token file into windows of seq_len, starting at an offset of its own in [0, seq_len).
    Sample s, counted over the whole run, is window pi_e(s mod n) of epoch e = s div n, n windows an epoch,
    where pi_e is a permutation of [0, n) keyed by (seed, e).
    Step k of batch size B holds samples k B ... k B + B - 1; ranks cut it contiguously.

A run that streams reads the text in order instead, B places at a time:

    An epoch e cuts the token file, from an offset o_e in [0, seq_len) keyed by (seed, e), into B lanes of
    S = (tokens - seq_len) div (B seq_len) consecutive windows.
    Row r of step k is window j = k mod S of lane r in epoch e = k div S: it starts at o_e + (r S + j) seq_len.
    The state is cleared where a lane starts (j = 0) and after each end of text, across the borders of windows too.
    Lanes as in `batchify` of PyTorch's word_language_model example; states that go on without a gradient are truncated
    backpropagation through time: Williams and Peng 1990.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spec.checkpoint.files import read_file, require_file
from spec.config import ModelConfig, TrainingConfig
from spec.init import stream
from spec.inputs import IGNORED_LABEL, check_call, check_label_values, check_labels, check_token_values
from spec.mixers import family
from spec.validation import require_integer, require_known

DATA_FORMAT_VERSION = 1
_ROUNDS = 6


@dataclass(frozen=True)
class BatchShard:
    """Which contiguous part of every global batch one process has; row counts differ by one at most, columns too.

    Args:
        row, rows: number of the share, and of all, that cut the batch between rows.
        column, columns: number of the share, and of all, that cut each row in time.
    """

    row: int = 0
    rows: int = 1
    column: int = 0
    columns: int = 1

    def of_all_rows(self) -> BatchShard:
        """The same stretch of time of every row."""
        return BatchShard(0, 1, self.column, self.columns)

    def of_rows(self, count: int) -> slice:
        """The rows of this share among `count`."""
        return slice(count * self.row // self.rows, count * (self.row + 1) // self.rows)

    def of_columns(self, count: int) -> slice:
        """The positions in time of this share among `count`."""
        return slice(count * self.column // self.columns, count * (self.column + 1) // self.columns)


WHOLE = BatchShard()


@dataclass(frozen=True)
class Batch:
    """One step's input: `labels[b, t]` follows `tokens[b, t]`; `resets[b, t]` clears the state before token t."""

    tokens: np.ndarray
    labels: np.ndarray
    resets: np.ndarray
    side: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the model's mixer reads besides, by name, [b, t, ...] each: see spec/mixers/base.py."""

    def part(self, shard: BatchShard) -> Batch:
        """What one process has of the batch."""
        cut = shard.of_rows(self.tokens.shape[0]), shard.of_columns(self.tokens.shape[1])
        side = {name: array[cut] for name, array in self.side.items()}
        return Batch(self.tokens[cut], self.labels[cut], self.resets[cut], side)


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
        """Bits a byte of text from nats a token, over the validation part: nats * tokens / bytes / ln 2.

        Source: Gao et al. 2020, "The Pile", which compares models of different tokenizers by it.
        """
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
        raise ValueError(
            f"{directory} holds no prepared data (no meta.json in it); name what `liquidnet prepare` wrote"
        )
    try:
        meta = json.loads(read_file(directory / "meta.json"))
        if meta["format_version"] != DATA_FORMAT_VERSION:
            raise ValueError(f"data format version {meta['format_version']}, this version reads {DATA_FORMAT_VERSION}")
        content = read_file(directory / "tokenizer.json")
        tokenizer, digests = content.decode(), {"tokenizer.json": (content, meta["tokenizer_sha256"])}
        require_known("token dtype", meta["dtype"], ("uint16", "uint32"))
        require_integer("meta.json: vocab_size", meta["vocab_size"], 1)
        require_integer("meta.json: end_of_text_id", meta["end_of_text_id"], 0, meta["vocab_size"] - 1)
        require_integer("meta.json: val bytes", meta["val"]["bytes"], 1, 2**63 - 1)
        parts = {}
        for part in ("train", "val"):
            require_integer(f"meta.json: {part} tokens", meta[part]["tokens"], 1, 2**63 - 1)
            parts[part] = _open_tokens(directory / f"{part}.bin", meta["dtype"], meta[part]["tokens"])
            digests[f"{part}.bin"] = (parts[part], meta[part]["sha256"])
        for name, (content, digest) in digests.items():
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"{name} does not match its checksum in meta.json")
        for name, tokens in parts.items():
            if tokens.max() >= meta["vocab_size"]:
                raise ValueError(f"{name}.bin holds token id {tokens.max()}, outside the vocabulary")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = error if type(error) in (ValueError, UnicodeDecodeError) else f"meta.json: {error!r}"
        raise ValueError(f"{directory} is not whole: {reason}; run `liquidnet prepare` again") from error
    return Dataset(parts["train"], parts["val"], meta, tokenizer)


def _open_tokens(path: Path, dtype: str, count: int) -> np.ndarray:
    require_file(path)
    size, expected = path.stat().st_size, count * np.dtype(dtype).itemsize
    if size != expected:
        wrong = "is empty or cut short" if size < expected else "is longer than it was"
        raise ValueError(f"{path.name} {wrong}: {size} bytes, meta.json says {expected}")
    return np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Image of `index` under a permutation of [0, size) chosen by `keys`.

    A Feistel network (Luby and Rackoff 1988) over the next even power of two, walked until it lands inside: O(1)
    memory a sample. Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 4.

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
    """A 64-bit finaliser: every input bit reaches every output bit.

    Source: `mix64` of SplitMix, Steele, Lea and Flood 2014, with the constants of David Stafford's Mix13.
    """
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


def next_batch(data: Dataset, samples_consumed: int, training: TrainingConfig, shard: BatchShard = WHOLE) -> Batch:
    """What one process has of a run's next batch: `stream_batch` where the run streams, else `training_batch`."""
    make = stream_batch if training.stream else training_batch
    return make(data, samples_consumed, training.batch_size, training.seq_len, training.seed, shard)


def with_side_inputs(
    batch: Batch, config: ModelConfig, training: TrainingConfig, samples_consumed: int, shard: BatchShard = WHOLE
) -> Batch:
    """The share of the batch that follows `samples_consumed` samples, with what the model's mixer reads besides."""
    rows = np.arange(samples_consumed, samples_consumed + training.batch_size)[shard.of_rows(training.batch_size)]
    of_rows = [family(config).training_side_inputs(config, training.seed, int(row), training.seq_len) for row in rows]
    columns = shard.of_columns(training.seq_len)
    names = of_rows[0] if of_rows else {}
    return replace(batch, side={name: np.stack([of_row[name][columns] for of_row in of_rows]) for name in names})


def check_batch(batch: Batch, config: ModelConfig) -> None:
    """What both trainers ask of a batch before a device sees it: there the host would not be told of another token.

    Raises:
        ValueError: a shape or dtype that does not fit, or the first token or label outside the vocabulary, its row and
            its position.
    """
    check_call(batch.tokens, config.n_layers, 0, resets=batch.resets)
    check_labels(batch.labels, batch.tokens.shape)
    check_token_values(batch.tokens, config.vocab_size)
    check_label_values(batch.labels, config.vocab_size)


def training_batch(
    data: Dataset, samples_consumed: int, batch_size: int, seq_len: int, seed: int, shard: BatchShard = WHOLE
) -> Batch:
    """The global batch that follows `samples_consumed` samples, or a share of it: windows in an order of their own.

    Raises:
        ValueError: the data is shorter than a window.
    """
    samples = np.arange(samples_consumed, samples_consumed + batch_size)[shard.of_rows(batch_size)]
    batch = _cut(data, data.train, window_starts(samples, data.train, seq_len, seed), seq_len)
    return batch.part(shard.of_all_rows())


def stream_batch(
    data: Dataset, samples_consumed: int, batch_size: int, seq_len: int, seed: int, shard: BatchShard = WHOLE
) -> Batch:
    """The global batch that follows `samples_consumed` samples, or a share of it: each row reads on in its lane.

    Raises:
        ValueError: the data is too short for a window a lane, or the samples are not whole batches of this size.
    """
    windows = (len(data.train) - seq_len) // (batch_size * seq_len)
    if windows < 1:
        raise ValueError(
            f"a stream of {batch_size} rows of {seq_len} tokens needs at least {(batch_size + 1) * seq_len} training "
            f"tokens, the data has {len(data.train)}; lower --batch-size, shorten --seq-len or prepare more text"
        )
    if samples_consumed % batch_size:
        raise ValueError(
            f"a stream of {batch_size} rows cannot go on after {samples_consumed} samples, which are not whole batches "
            "of it; keep the --batch-size that it was started with"
        )
    epoch, window = divmod(samples_consumed // batch_size, windows)
    offset = stream(seed, f"lanes, epoch {epoch}").integers(seq_len)
    lanes = np.arange(batch_size)[shard.of_rows(batch_size)]
    starts = offset + (lanes * windows + window) * seq_len
    batch = _cut(data, data.train, starts, seq_len)
    batch.resets[:, 0] = window == 0 or data.train[starts - 1] == data.end_of_text_id
    return batch.part(shard.of_all_rows())


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


def validation_stream(data: Dataset, tokens_at_a_time: int, most_tokens: int) -> Iterator[Batch]:
    """The validation part as one sequence in pieces [1, tokens_at_a_time]; its first `most_tokens` labels count.

    The last piece is filled up with ignored labels, so that all have one shape; the state after it means nothing.

    Raises:
        ValueError: fewer than two tokens.
    """
    count = min(len(data.val) - 1, most_tokens)
    if count < 1:
        raise ValueError(f"a stream needs 2 validation tokens, the data has {len(data.val)}; prepare more text")
    for low in range(0, count, tokens_at_a_time):
        text = data.val[low : min(low + tokens_at_a_time, count) + 1].astype(np.int32)
        fill = (0, tokens_at_a_time + 1 - len(text))
        tokens_bt = np.pad(text[:-1], fill)[None]
        labels_bt = np.pad(text[1:], fill, constant_values=IGNORED_LABEL)[None]
        batch = Batch(tokens_bt, labels_bt, document_resets(tokens_bt, data.end_of_text_id))
        batch.resets[:, 0] = low > 0 and data.val[low - 1] == data.end_of_text_id
        yield batch


def _cut(data: Dataset, tokens: np.ndarray, starts: np.ndarray, seq_len: int) -> Batch:
    text = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int32)
    tokens_bt, labels_bt = text[:, :-1], text[:, 1:]
    return Batch(tokens_bt.copy(), labels_bt.copy(), document_resets(tokens_bt, data.end_of_text_id))


def document_resets(tokens_bt: np.ndarray, end_of_text_id: int | None) -> np.ndarray:
    """True at each token that follows an end-of-text token in its row: a new document starts from a zero state."""
    resets = np.zeros(tokens_bt.shape, bool)
    if end_of_text_id is not None:
        resets[:, 1:] = tokens_bt[:, :-1] == end_of_text_id
    return resets
