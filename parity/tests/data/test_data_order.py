"""Which tokens each step sees: a pure function of (seed, k), the same for any number of ranks; bad data is refused."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.data import (
    IGNORED_LABEL,
    BatchShard,
    document_resets,
    open_data,
    permute,
    training_batch,
    validation_batches,
    window_starts,
    windows_per_epoch,
)

VOCABULARY, END = 50, 49
SEQ_LEN, SEED = 8, 3


def write_data(directory, dtype="uint16", train=1003, val=77, **changes):
    """A DATA directory by hand, 3 bytes a training and 2 a validation token; `changes` replace entries of meta.json."""
    random = np.random.default_rng(0)
    directory.mkdir(exist_ok=True)
    tokenizer = b'{"kind": "made up"}'
    (directory / "tokenizer.json").write_bytes(tokenizer)
    meta = {"format_version": 1, "dtype": dtype, "vocab_size": VOCABULARY, "end_of_text_id": END}
    meta["tokenizer_sha256"] = hashlib.sha256(tokenizer).hexdigest()
    for part, count in (("train", train), ("val", val)):
        content = random.integers(0, VOCABULARY, count).astype(np.dtype(dtype).newbyteorder("<")).tobytes()
        (directory / f"{part}.bin").write_bytes(content)
        size = {"train": 3, "val": 2}[part] * count
        meta[part] = {"tokens": count, "bytes": size, "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "meta.json").write_text(json.dumps({**meta, **changes}))
    return directory


@pytest.fixture(params=["uint16", "uint32"])
def data(tmp_path, request):
    return open_data(write_data(tmp_path / "data", request.param))


@pytest.fixture
def plain(tmp_path):
    return open_data(write_data(tmp_path / "data"))


def batch(data, k, size=12, seed=SEED):
    return training_batch(data, k * size, size, SEQ_LEN, seed)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 1000, 1024, 1025, 4097])
def test_permute_is_a_permutation(size):
    for seed in range(5):
        keys = np.random.default_rng(seed).integers(2**64, size=6, dtype=np.uint64)
        image = permute(np.arange(size), size, keys)
        np.testing.assert_array_equal(np.sort(image), np.arange(size))
        # One index alone has the same image as among others: a sample can be found without its epoch.
        assert permute(np.array([size // 2]), size, keys)[0] == image[size // 2]
        if size >= 10:
            assert not np.array_equal(image, np.arange(size))


def test_permutations_look_random():
    """Of 24 orders of four elements each occurs; chance leaves one out with probability 24 (23/24)^500 < 1e-7."""
    draws = np.random.default_rng(0).integers(2**64, size=(500, 6), dtype=np.uint64)
    assert len({tuple(permute(np.arange(4), 4, keys)) for keys in draws}) == 24


@given(
    epoch=st.integers(0, 1000), seed=st.integers(0, 2**64 - 1), length=st.integers(16, 400), seq_len=st.integers(1, 8)
)
def test_an_epoch_visits_every_window_once(epoch, seed, length, seq_len):
    tokens = np.zeros(length, np.uint16)
    count = windows_per_epoch(tokens, seq_len)
    starts = np.sort(window_starts(np.arange(epoch * count, (epoch + 1) * count), tokens, seq_len, seed))
    assert (np.diff(starts) == seq_len).all()
    # The label of a window's last token lies inside the text; at most a window's worth of text is left out.
    assert 0 <= starts[0] < seq_len and starts[-1] + seq_len < length
    assert length - seq_len * count < 2 * seq_len


def test_epochs_differ_in_order_and_offset(plain):
    count = windows_per_epoch(plain.train, SEQ_LEN)
    epochs = window_starts(np.arange(20 * count), plain.train, SEQ_LEN, SEED).reshape(20, count)
    assert len({tuple(starts // SEQ_LEN) for starts in epochs}) == 20
    assert {*(epochs[:, 0] % SEQ_LEN)} <= {*range(SEQ_LEN)} and len({*(epochs[:, 0] % SEQ_LEN)}) > 1
    assert not np.array_equal(epochs[0], window_starts(np.arange(count), plain.train, SEQ_LEN, SEED + 1))


def test_a_batch_depends_on_seed_and_number_alone(data):
    """Not on what was drawn before it; and every label is the token that follows in the file."""
    late = batch(data, 40)
    for k in range(3):
        batch(data, k)
    again = batch(data, 40)
    for name in ("tokens", "labels", "resets"):
        np.testing.assert_array_equal(getattr(late, name), getattr(again, name))
    assert late.side == again.side == {}
    starts = window_starts(np.arange(40 * 12, 41 * 12), data.train, SEQ_LEN, SEED)
    for row, start in enumerate(starts):
        np.testing.assert_array_equal(late.tokens[row], data.train[start : start + SEQ_LEN])
        np.testing.assert_array_equal(late.labels[row], data.train[start + 1 : start + SEQ_LEN + 1])
    assert late.tokens.dtype == late.labels.dtype == np.int32
    assert not np.array_equal(late.tokens, batch(data, 41).tokens)
    assert not np.array_equal(late.tokens, batch(data, 40, seed=SEED + 1).tokens)


def test_the_batch_size_does_not_change_the_order(plain):
    """The cursor counts samples: the same samples in batches of any size, across the end of an epoch too."""
    count = windows_per_epoch(plain.train, SEQ_LEN)
    whole = training_batch(plain, count - 6, 12, SEQ_LEN, SEED)
    parts = [training_batch(plain, count - 6 + i, 3, SEQ_LEN, SEED) for i in range(0, 12, 3)]
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8])
def test_ranks_share_one_batch(plain, ranks):
    whole = batch(plain, 2)
    shards = [whole.part(BatchShard(rank, ranks)) for rank in range(ranks)]
    sizes = [len(shard.tokens) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for name in ("tokens", "labels", "resets"):
        joined = np.concatenate([getattr(shard, name) for shard in shards])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_a_reset_follows_each_end_of_text(plain):
    tokens = np.array([[END, 1, END, END, 2], [3, 4, 5, 6, END]])
    expected = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(document_resets(tokens, END), expected)
    found = batch(plain, 0, size=100)
    assert found.resets.any() and not found.resets[:, 0].any()
    np.testing.assert_array_equal(found.resets[:, 1:], found.tokens[:, :-1] == END)


@pytest.mark.parametrize("size", [1, 4, 9, 20])
def test_validation_covers_the_text_once(plain, size):
    batches = list(validation_batches(plain, SEQ_LEN, size, most_windows=10**6))
    assert {found.tokens.shape for found in batches} == {(min(size, 9), SEQ_LEN)}
    labels = np.concatenate([found.labels for found in batches])
    counted = labels[(labels != IGNORED_LABEL).all(axis=1)]
    assert len(counted) == (len(plain.val) - 1) // SEQ_LEN == 9
    np.testing.assert_array_equal(counted.ravel(), plain.val[1 : 1 + counted.size])
    assert (labels[len(counted) :] == IGNORED_LABEL).all()
    few = list(validation_batches(plain, SEQ_LEN, 4, most_windows=5))
    assert sum((found.labels != IGNORED_LABEL).all(axis=1).sum() for found in few) == 5


def test_bits_per_byte(plain):
    assert plain.nats_to_bits_per_byte(np.log(2.0)) == 0.5


def test_short_data_is_refused(tmp_path):
    data = open_data(write_data(tmp_path / "data", train=15, val=8))
    with pytest.raises(ValueError, match="sequence length 8 needs at least 16 training tokens, the data has 15"):
        batch(data, 0)
    with pytest.raises(ValueError, match="sequence length 8 needs more than 8 validation tokens, the data has 8"):
        next(validation_batches(data, 8, 4, 10))
    least = open_data(write_data(tmp_path / "least", train=16, val=9))
    assert batch(least, 0).tokens.shape == (12, 8)
    assert len(list(validation_batches(least, 8, 4, 10))) == 1


def test_a_token_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train.bin holds token id 49, outside the vocabulary"):
        open_data(write_data(tmp_path / "data", vocab_size=30, end_of_text_id=29))
    with pytest.raises(ValueError, match="end_of_text_id must be at most 49"):
        open_data(write_data(tmp_path / "data", end_of_text_id=VOCABULARY))


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json"])
def test_a_changed_file_is_refused(tmp_path, name):
    path = write_data(tmp_path / "data") / name
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"{name} does not match its checksum"):
        open_data(tmp_path / "data")


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "meta.json"])
def test_a_missing_file_is_refused(tmp_path, name):
    (write_data(tmp_path / "data") / name).unlink()
    with pytest.raises(ValueError, match="liquidnet prepare"):
        open_data(tmp_path / "data")


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 7, 8])
def test_a_file_cut_short_is_refused(tmp_path, name, kept):
    path = write_data(tmp_path / "data") / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{name} (is empty or cut short|does not match its checksum)"):
        open_data(tmp_path / "data")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_count_of_tokens_that_is_none_is_refused(tmp_path, part):
    """By its name, before the file is opened: as a number with a point it would fit the file's size."""
    path = write_data(tmp_path / "data") / "meta.json"
    meta = json.loads(path.read_text())
    for count in (float(meta[part]["tokens"]), 0, -1, True, str(meta[part]["tokens"])):
        path.write_text(json.dumps(meta | {part: meta[part] | {"tokens": count}}))
        with pytest.raises(ValueError, match=f"meta.json: {part} tokens"):
            open_data(tmp_path / "data")


def test_other_format_versions_are_refused(tmp_path):
    for version in (0, 2, None, "1"):
        with pytest.raises(
            ValueError, match=r"data format version .* this version reads 1; run `liquidnet prepare` again"
        ):
            open_data(write_data(tmp_path / "data", format_version=version))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format_version": 1}'])
def test_a_broken_meta_json_is_refused(tmp_path, text):
    (write_data(tmp_path / "data") / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="is not whole"):
        open_data(tmp_path / "data")


def test_a_foreign_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no prepared data"):
        open_data(tmp_path)
