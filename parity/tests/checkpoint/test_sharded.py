"""Checkpoints in shards: parts come together bit for bit or are refused; a new one is whole before an old one goes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from parity.proof import adapters
from parity.suite.robustness import corruption
from spec.checkpoint.checksums import checksums, sha256, verify
from spec.checkpoint.format import list_checkpoints, read_beside, read_checkpoint, write_checkpoint
from spec.checkpoint.sharded import is_shard, join_shards, one_shard
from spec.checkpoint.tensors import pack
from spec.config import TrainingConfig
from spec.data import WHOLE, Batch
from tools import convert
from tools.training.checkpoint_manager import make_checkpoint_manager
from tools.training.run_dir import RunDir

SHARD = "shard-0000{}-model-00001-of-00001.safetensors"


def shard(places: object, **arrays: np.ndarray) -> bytes:
    """A file of parts; `places` is the JSON of where they belong."""
    return pack(arrays, {"DCP_SHARDING_INFO": json.dumps(places)})


def cut(array: np.ndarray, rows: tuple[int, ...], columns: tuple[int, ...] = ()) -> dict[str, bytes]:
    """The array as `w` in one shard a part, cut before these rows and columns; the parts in a mixed order."""
    parts = []
    for low, high in zip((0, *rows), (*rows, array.shape[0]), strict=True):
        for left, right in zip((0, *columns), (*columns, array.shape[1]), strict=True):
            parts.append(shard({"w": {"saved_offsets": [low, left]}}, w=array[low:high, left:right]))
    return {SHARD.format(len(parts) - i): part for i, part in enumerate(parts)}


@pytest.mark.parametrize("rows, columns", [((), ()), ((3,), ()), ((1, 2, 6), ()), ((), (2,)), ((2, 5), (1, 3))])
def test_parts_come_together(rows, columns):
    array = np.random.default_rng(0).standard_normal((7, 4), np.float32)
    joined = join_shards(cut(array, rows, columns))
    assert list(joined) == ["w"] and joined["w"].tobytes() == array.tobytes()


def test_an_empty_part_and_a_number_are_parts_too():
    array = np.arange(6.0).reshape(3, 2)
    files = {
        SHARD.format(1): shard({"w": {"saved_offsets": [0, 0]}, "x": {"saved_offsets": []}}, w=array, x=np.array(3.0)),
        SHARD.format(2): shard({"w": {"saved_offsets": [3, 0]}}, w=array[:0]),
    }
    joined = join_shards(files)
    np.testing.assert_array_equal(joined["w"], array)
    assert joined["x"] == 3.0 and joined["x"].shape == ()


def at(*offsets: int) -> dict[str, dict[str, list[int]]]:
    return {"w": {"saved_offsets": [*offsets]}}


HALF = np.ones((2, 3), np.float32)
WRONG = {
    "overlap": ([(at(0, 0), HALF), (at(1, 0), HALF), (at(3, 0), HALF[:1]), (at(5, 0), HALF[:1])], "some numbers"),
    "twice": ([(at(0, 0), HALF), (at(0, 0), HALF)], "hold 12 numbers of tensor w, whose shape is"),
    "a gap": ([(at(0, 0), HALF), (at(3, 0), HALF)], "hold 12 numbers of tensor w, whose shape is"),
    "far away": ([(at(0, 0), HALF), (at(2**50, 0), HALF)], "hold 12 numbers of tensor w"),
    "the first is missing": ([(at(2, 0), HALF)], "hold 6 numbers of tensor w, whose shape is"),
    "two dtypes": ([(at(0, 0), HALF), (at(2, 0), HALF.astype(np.float64))], "in float32 and in float64"),
    "two dtypes of one width": (
        [(at(0, 0), HALF.astype(np.float16)), (at(2, 0), HALF.astype(ml_dtypes.bfloat16))],
        "in float16 and in bfloat16",
    ),
    "no place": ([({}, HALF)], "tensor w lacks its place"),
    "one offset": ([(at(0), HALF)], "needs 2 offsets, got .0."),
    "negative": ([(at(0, -1), HALF)], "place of w must be an integer"),
    "text": ([({"w": {"saved_offsets": "00"}}, HALF)], "needs 2 offsets, got '00'"),
    "no object": ([([], HALF)], "is no shard of a checkpoint"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_whole_is_refused(name):
    parts, message = WRONG[name]
    files = {SHARD.format(i): shard(places, w=array) for i, (places, array) in enumerate(parts, 1)}
    with pytest.raises(ValueError, match=message):
        join_shards(files)
    with pytest.raises(ValueError, match="is no shard of a checkpoint"):
        join_shards({SHARD.format(1): pack({"w": HALF})})


def sharded(directory, shards: int = 3):
    """The sample in a directory, its embedding cut between three shards."""
    write_checkpoint(directory, corruption.sample(), sharded=True)
    (single,) = (path for path in directory.iterdir() if is_shard(path.name))
    whole = join_shards({single.name: single.read_bytes()})
    single.unlink()
    for i in range(shards):
        mine = {name: x[len(x) * i // shards : len(x) * (i + 1) // shards] for name, x in whole.items()}
        places = {name: {"saved_offsets": [len(x) * i // shards] + [0] * (x.ndim - 1)} for name, x in whole.items()}
        (directory / SHARD.format(i + 1)).write_bytes(shard(places, **mine))
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "SHA256SUMS"}
    (directory / "SHA256SUMS").write_bytes(checksums({name: sha256(content) for name, content in files.items()}))
    return directory


def bits(arrays):
    """Comparable bit for bit."""
    return {path: (x.dtype, x.shape, x.tobytes()) for path, x in arrays.items()}


def test_convert_writes_in_parts_where_it_is_asked_to(tmp_path):
    for form in ("neutral", "dcp"):
        convert.write(tmp_path / form, corruption.sample(), form)
        assert any(is_shard(path.name) for path in (tmp_path / form).iterdir()) is (form == "dcp")


def test_a_sharded_checkpoint_is_read_as_it_was_written(tmp_path):
    whole, place = corruption.sample(), tmp_path / "run" / "checkpoints" / "step_00000007"
    sharded(place)
    assert len([path for path in place.iterdir() if is_shard(path.name)]) == 3
    read = read_checkpoint(tmp_path / "run")
    assert (read.config, read.state, read.tokenizer) == (whole.config, whole.state, whole.tokenizer)
    assert read.states.tobytes() == whole.states.tobytes()
    for kind in ("parameters", *whole.moments):
        found, expected = (x.parameters if kind == "parameters" else x.moments[kind] for x in (read, whole))
        assert bits(found) == bits(expected)


def test_each_reader_of_the_rest_verifies_its_share_of_the_shards(tmp_path):
    """Between them, every byte of every file; what a reader has not read it takes from SHA256SUMS."""
    directory = sharded(tmp_path / "c")
    for rank in range(2):
        read = read_beside(directory, rank, 2)
        assert read.state == corruption.sample().state and not read.parameters and not read.moments
        assert read.states.tobytes() == corruption.sample().states.tobytes()
    for number, reader in ((1, 0), (2, 1), (3, 0)):
        path = directory / SHARD.format(number)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{path.name} does not match SHA256SUMS"):
            read_beside(directory, reader, 2)
        read_beside(directory, 1 - reader, 2)
        path.unlink()
        for rank in range(2):
            with pytest.raises(ValueError, match=f"{path.name} is missing"):
                read_beside(directory, rank, 2)
        path.write_bytes(content)
    (directory / "state.json").write_bytes((directory / "state.json").read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"state\.json does not match SHA256SUMS"):
        read_beside(directory, 0, 2)


def test_every_listed_file_is_compared():
    files = {name: name.encode() for name in ("config.json", "state.json", "model.safetensors")}
    sums = {name: sha256(content) for name, content in files.items()}
    verify({**files, "SHA256SUMS": checksums(sums)})
    for name in files:
        with pytest.raises(ValueError, match=f"{name} does not match SHA256SUMS"):
            verify({**files, name: b"other", "SHA256SUMS": checksums(sums)})
    with pytest.raises(ValueError, match="more is not listed"):
        verify({**files, "SHA256SUMS": checksums(sums)}, {"more": sha256(b"")})
    with pytest.raises(ValueError, match="more does not match"):
        verify({**files, "SHA256SUMS": checksums({**sums, "more": sha256(b"")})}, {"more": sha256(b"x")})


class Parts:
    """An engine that writes the sample as a shard, when it is asked for the result, unless that `fails`."""

    class context:
        rank, size, shard, sharded = 0, 1, WHOLE, False
        any = total = staticmethod(lambda value: value)
        broadcast = staticmethod(lambda make: make())
        all_gather = staticmethod(lambda value: [value])
        raise_together = staticmethod(nullcontext)

    def __init__(self, run: RunDir):
        self.run, self.fails, self.ready, self.seen = run, False, False, []

    def dump_states(self):
        return corruption.sample().states

    def save_shards(self, directory):
        def result():
            self.seen = [path.name for path in list_checkpoints(self.run.path)]
            if self.fails:
                raise OSError("disk full")
            whole = corruption.sample()
            flat = {f"{kind}.{path}": x for kind, group in whole.moments.items() for path, x in group.items()}
            flat |= {f"parameters.{path}": x for path, x in whole.parameters.items()}
            for name, content in one_shard(flat).items():
                (directory / name).write_bytes(content)

        return SimpleNamespace(done=lambda: self.ready, result=result)


def test_a_sharded_checkpoint_appears_whole_and_then_an_old_one_goes(tmp_path):
    run, whole = RunDir(tmp_path), corruption.sample()
    engine = Parts(run)
    checkpoint_manager = make_checkpoint_manager("dcp", run, engine, keep=2)

    def save(step):
        checkpoint_manager.save(corruption.CONFIG, {**whole.state, "step": step, "best": None}, whole.tokenizer)

    def names():
        return [path.name for path in list_checkpoints(tmp_path)]

    for step in (1, 2):
        save(step)
        checkpoint_manager.finish()
    save(3)
    checkpoint_manager.poll()
    assert names() == ["step_00000001", "step_00000002"]
    engine.ready = True
    checkpoint_manager.poll()
    assert engine.seen == ["step_00000001", "step_00000002"] and names() == ["step_00000002", "step_00000003"]
    read = read_checkpoint(tmp_path)
    assert read.state["step"] == 3 and read.states.tobytes() == whole.states.tobytes()
    assert bits(read.parameters) == bits(whole.parameters)
    # The next one waits for it, and where that fails both are left.
    save(4)
    engine.fails = True
    with pytest.raises(OSError, match="disk full"):
        save(5)
    checkpoint_manager.finish()
    assert names() == ["step_00000002", "step_00000003"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")] == []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_writes_and_reads_its_shards(tmp_path):
    """One process: what is trained after the copy was made is not in it."""
    if adapters.missing("torch"):
        pytest.skip(adapters.missing("torch"))
    training = TrainingConfig(batch_size=2, seq_len=4)
    made, other = (
        adapters.load_module("torch", "training.engine").Engine(corruption.CONFIG, training) for _ in range(2)
    )
    tokens, labels = np.random.default_rng(0).integers(0, corruption.CONFIG.vocab_size, (2, 2, 4)).astype(np.int32)
    batch = Batch(tokens, labels, np.zeros((2, 4), bool))
    made.train_step(batch, 0.1)
    parameters, moments = made.dump()
    writing = made.save_shards(tmp_path)
    made.train_step(batch, 0.1)
    writing.result()
    joined = join_shards({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    other.load_shards(tmp_path, 1)
    for kind, group in {"parameters": parameters, **moments}.items():
        found = other.dump()[0] if kind == "parameters" else other.dump()[1][kind]
        for path, x in group.items():
            assert joined[f"{kind}.{path}"].tobytes() == x.tobytes() == found[path].tobytes(), path
    other.train_step(batch, 0.1)
    for path, x in made.dump()[0].items():
        assert other.dump()[0][path].tobytes() == x.tobytes(), path
