"""What a run that streams reads: contiguous lanes, resets across the borders of windows, every token once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spec.config import TrainingConfig
from spec.data import (
    IGNORED_LABEL,
    Batch,
    BatchShard,
    Dataset,
    document_resets,
    next_batch,
    stream_batch,
    training_batch,
    validation_stream,
)

VOCABULARY, END = 13, 12
TRAINING = TrainingConfig(batch_size=3, seq_len=7, stream=True)
SEED = 5
PARTS = ("tokens", "labels", "resets")


def made_up_data(train: int = 700, val: int = 61) -> Dataset:
    draw = np.random.default_rng(0).integers
    parts = (draw(0, VOCABULARY, count).astype(np.uint16) for count in (train, val))
    return Dataset(*parts, {"vocab_size": VOCABULARY, "end_of_text_id": END}, "")


def counting_data(count: int) -> Dataset:
    """Text whose tokens are their own places in the file."""
    return replace(made_up_data(), train=np.arange(count, dtype=np.uint32), meta={"end_of_text_id": count})


def stream_steps(data: Dataset, steps: int) -> list[Batch]:
    return [next_batch(data, step * TRAINING.batch_size, TRAINING) for step in range(steps)]


SHAPES = [(1, 1, 2), (1, 7, 50), (4, 5, 25), (4, 5, 139), (3, 16, 500)]


@pytest.mark.parametrize("rows, seq_len, count", SHAPES)
def test_lanes_read_on(rows, seq_len, count):
    """Two epochs: window after window of each lane, lane after lane of the file, nothing twice, little left out."""
    data, windows = counting_data(count), (count - seq_len) // (rows * seq_len)
    for epoch in range(2):
        batches = [stream_batch(data, (epoch * windows + j) * rows, rows, seq_len, SEED) for j in range(windows)]
        assert all(batch.tokens.shape == (rows, seq_len) for batch in batches)
        read = np.concatenate([batch.tokens for batch in batches], axis=1).ravel()
        np.testing.assert_array_equal(read, read[0] + np.arange(rows * windows * seq_len))
        for batch in batches:
            np.testing.assert_array_equal(batch.labels, batch.tokens + 1)
            assert batch.tokens.dtype == batch.labels.dtype == np.int32
        assert 0 <= read[0] < seq_len and batches[-1].labels.max() < count
        assert count - len(read) < (rows + 1) * seq_len


def test_the_lanes_of_each_epoch_start_elsewhere():
    data = counting_data(139)
    windows = (139 - 5) // 20
    offsets = [stream_batch(data, 4 * windows * epoch, 4, 5, SEED).tokens[0, 0] for epoch in range(20)]
    others = [stream_batch(data, 4 * windows * epoch, 4, 5, SEED + 1).tokens[0, 0] for epoch in range(20)]
    # Chance leaves one of five out of twenty with probability below 5 (4/5)^20 < 0.06; the seed is fixed.
    assert {*offsets} == {*others} == {*range(5)} and offsets != others


def test_the_state_is_cleared_where_a_lane_starts_and_after_each_end_of_text():
    data = made_up_data()
    windows = (700 - 7) // 21
    before, borders = None, 0
    for step, batch in enumerate(stream_steps(data, 2 * windows + 1)):
        np.testing.assert_array_equal(batch.resets[:, 1:], document_resets(batch.tokens, END)[:, 1:])
        if step % windows == 0:
            assert batch.resets[:, 0].all()
        else:
            np.testing.assert_array_equal(batch.tokens[:, 0], before.labels[:, -1])
            np.testing.assert_array_equal(batch.resets[:, 0], before.tokens[:, -1] == END)
            borders += batch.resets[:, 0].sum()
        before = batch
    assert borders > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8])
def test_the_shares_of_a_batch_are_the_batch(rows, columns, stream):
    """Resets too, those at the border of two columns among them; some of eight have none of five rows."""
    data = made_up_data()
    for batch_size in (12, 5):
        training = replace(TRAINING, batch_size=batch_size, seq_len=16, stream=stream)
        for step in (0, 1):
            whole, samples = next_batch(data, step * batch_size, training), step * batch_size
            cut = [[BatchShard(r, rows, c, columns) for c in range(columns)] for r in range(rows)]
            parts = [[next_batch(data, samples, training, shard) for shard in line] for line in cut]
            for name in PARTS:
                joined = np.block([[getattr(part, name) for part in line] for line in parts])
                np.testing.assert_array_equal(joined, getattr(whole, name))
            assert whole.resets.any()


def test_a_share_of_the_rows_is_all_that_is_read():
    class Listener(np.ndarray):
        """Counts what is read of the file."""

        read = 0

        def __getitem__(self, index):
            found = np.asarray(self)[index]
            Listener.read += found.size
            return found

    data = made_up_data()
    data = replace(data, train=data.train.view(Listener))
    for stream, of_borders in ((False, 0), (True, 3)):
        Listener.read = 0
        next_batch(data, 12, replace(TRAINING, batch_size=12, stream=stream), BatchShard(1, 4))
        assert Listener.read == 3 * (TRAINING.seq_len + 1) + of_borders


def test_a_batch_is_a_function_of_the_cursor():
    data = made_up_data()
    batches = stream_steps(data, 70)
    for step in (69, 3, 34, 0):
        for name in PARTS:
            found = getattr(next_batch(data, step * TRAINING.batch_size, TRAINING), name)
            np.testing.assert_array_equal(found, getattr(batches[step], name))
    plain = next_batch(data, 30, replace(TRAINING, stream=False))
    for name in PARTS:
        np.testing.assert_array_equal(getattr(plain, name), getattr(training_batch(data, 30, 3, 7, 0), name))


def test_what_no_stream_can_be_made_of_is_refused():
    least = made_up_data(train=28)
    assert stream_batch(least, 0, 3, 7, SEED).tokens.shape == (3, 7)
    with pytest.raises(ValueError, match="3 rows of 7 tokens needs at least 28 training tokens, the data has 27"):
        stream_batch(made_up_data(train=27), 0, 3, 7, SEED)
    with pytest.raises(ValueError, match=r"a stream of 3 rows cannot go on after 7 samples.*keep the --batch-size"):
        stream_batch(least, 7, 3, 7, SEED)
    with pytest.raises(ValueError, match="2 validation tokens, the data has 1"):
        next(validation_stream(made_up_data(val=1), 4, 10))


@pytest.mark.parametrize("most", [1, 7, 59, 60, 10**9])
@pytest.mark.parametrize("size", [1, 7, 30, 60, 61, 100])
def test_a_validation_stream_counts_every_token_once(size, most):
    data, count = made_up_data(), min(most, 60)
    batches = list(validation_stream(data, size, most))
    assert {batch.tokens.shape for batch in batches} == {(1, size)} and len(batches) == -(-count // size)
    tokens, labels, resets = (np.concatenate([getattr(batch, name)[0] for batch in batches]) for name in PARTS)
    np.testing.assert_array_equal(tokens[:count], data.val[:count])
    np.testing.assert_array_equal(labels[:count], data.val[1 : count + 1])
    assert (labels[count:] == IGNORED_LABEL).all()
    np.testing.assert_array_equal(resets[:count], document_resets(data.val[None, :count], END)[0])
