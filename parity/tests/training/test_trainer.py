"""The training loop with an engine that only listens: cursor, rates, counts, what is saved, kept and gone on from."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from spec import LiquidNetConfig
from spec.checkpoint.format import Checkpoint, from_files, list_checkpoints, read_checkpoint, to_files
from spec.checkpoint.tensors import unpack
from spec.config import TrainingConfig
from spec.data import WHOLE, Batch, BatchShard, check_batch, open_data, training_batch
from spec.init import initial_parameters
from spec.inputs import IGNORED_LABEL
from spec.optimizer import MOMENTS
from spec.schedule import learning_rate
from tools.training.checkpoint_manager import CheckpointManager
from tools.training.evaluate import mean_loss, total_nats
from tools.training.run_dir import ExecutionConfig, RunDir, Settings, data_identity
from tools.training.trainer import Trainer

CONFIG = LiquidNetConfig(vocab_size=13, d_model=8, d_ff=12, n_layers=1, max_seq_len=8)


def checkpoint_with_moments() -> Checkpoint:
    draw = np.random.default_rng(0).standard_normal
    params = initial_parameters(CONFIG)
    moments = {name: {path: draw(x.shape, np.float32) for path, x in params.items()} for name in MOMENTS}
    return Checkpoint(CONFIG, params, moments)


def test_each_of_the_moments_keeps_its_name():
    checkpoint = checkpoint_with_moments()
    files = to_files(checkpoint)
    stored, read = unpack(files["optimizer.safetensors"]), from_files(files, "here")
    for name in MOMENTS:
        for path, expected in checkpoint.moments[name].items():
            np.testing.assert_array_equal(stored[f"{name}.{path}"], expected)
            np.testing.assert_array_equal(read.moments[name][path], expected)


class Alone:
    """The world of one process, without a backend."""

    rank, size, shard, sharded, local_row_shards = 0, 1, WHOLE, False, 1

    def any(self, flag):
        return flag

    def raise_together(self):
        return nullcontext()

    def total(self, number):
        return number


class Loss:
    """An engine that trains nothing, and keeps what it was asked."""

    name = method = "none"
    context = Alone()

    def __init__(self, losses=()):
        self.batches, self.rates, self.loaded, self.losses = [], [], [], list(losses)

    def train_step(self, batch, lr):
        self.batches.append(batch)
        self.rates.append(lr)
        return 1.0, 2.0

    def evaluate(self, batch, states=None):
        return self.losses.pop(0) if self.losses else 9.0, None

    def load(self, parameters, moments, step):
        self.loaded.append((parameters, moments, step))

    def dump(self):
        checkpoint = checkpoint_with_moments()
        return checkpoint.parameters, checkpoint.moments

    def dump_states(self):
        return None

    def load_states(self, states):
        assert states is None

    def extra_state(self):
        return {}

    def load_extra_state(self, state):
        pass

    def sampler(self):
        return lambda tokens, states: (np.eye(257)[[256] * len(tokens)] * 100.0, None)

    def environment(self):
        return {}

    def layout(self):
        return "1 process"

    def profile(self, directory):
        return nullcontext()


STEPS, ROWS, LENGTH = 8, 3, 16


@pytest.fixture
def segment(small_data, tmp_path):
    """Trains one leg of a run of eight steps with an engine that only listens; returns it and the metrics' lines."""
    data, run = open_data(small_data), RunDir(tmp_path / "run")
    (tmp_path / "run").mkdir()
    training = TrainingConfig(steps=STEPS, batch_size=ROWS, seq_len=LENGTH, warmup_steps=2, seed=5)
    execution = ExecutionConfig(checkpoint_every=2, keep=1, eval_every=2, eval_windows=1)
    settings = Settings(CONFIG, training, execution, data_identity(data))

    def train(stop_at=None, losses=(), initial=None):
        engine = Loss(losses)
        segment = {"stop_at": stop_at, "profile": False, "micro_batch_size": None, "checkpoint_format": "neutral"}
        flags = SimpleNamespace(backend="none", resume=False, **segment)
        assert Trainer(flags, data, run, settings, engine).train(initial) == 0
        return engine, [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]

    train.data, train.run, train.training = data, run, training
    return train


def test_each_evaluation_goes_on_from_another_piece_of_the_validation_text(segment):
    """The engine ends its text at once, so that a sample is its prompt: 32 bytes, the same in every run."""
    samples = [line["sample"] for line in segment()[1] if "sample" in line]
    starts = [997 * step % (len(segment.data.val) - 32) for step in (2, 4, 6, 8)]
    assert samples == [bytes(segment.data.val[start : start + 32].astype(np.uint8)).decode() for start in starts]
    assert len({*samples}) == 4


def test_the_trainer_gives_each_step_its_batch_its_rate_and_its_counts(segment):
    """Stopped after every other step and resumed: all as if it had run through."""
    engines, lines = [], []
    for stop_at in (2, 4, None):
        engine, lines = segment(stop_at)
        engines.append(engine)
    batches = [batch for engine in engines for batch in engine.batches]
    rates = [rate for engine in engines for rate in engine.rates]
    assert len(batches) == STEPS
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        expected = training_batch(segment.data, step * ROWS, ROWS, LENGTH, segment.training.seed)
        for name, array in asdict(expected).items():
            np.testing.assert_array_equal(getattr(batch, name), array)
        assert rate == learning_rate(step, segment.training)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["tokens"] for line in steps] == [ROWS * LENGTH * step for step in range(1, STEPS + 1)]
    assert [line["lr"] for line in steps] == rates
    state = read_checkpoint(segment.run.path).state
    counts = [state[name] for name in ("step", "samples_consumed", "tokens", "seed")]
    assert counts == [STEPS, STEPS * ROWS, STEPS * ROWS * LENGTH, segment.training.seed]


def test_the_trainer_resumes_with_weights_moments_and_step(segment):
    segment(2)
    stored = read_checkpoint(segment.run.path)
    engine, _ = segment()
    ((parameters, moments, step),) = engine.loaded
    assert step == 2
    for found, expected in ((parameters, stored.parameters), *((moments[m], stored.moments[m]) for m in MOMENTS)):
        assert all(np.array_equal(found[path], x) for path, x in expected.items()) and len(found) == len(expected)


def test_the_trainer_starts_from_weights_alone(segment):
    """--init-from: no moments and no step, whatever the checkpoint holds."""
    initial = replace(checkpoint_with_moments(), state={"step": 7, "samples_consumed": 21, "tokens": 9, "seed": 5})
    engine, lines = segment(2, initial=initial)
    ((parameters, moments, step),) = engine.loaded
    assert parameters is initial.parameters and not moments and step == 0
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


def test_the_trainer_keeps_the_best_checkpoint_over_a_resume(segment):
    """Best at step 2, worse at 4, 6 and 8: kept beside the newest, and known after each resume."""
    segment(4, losses=(1.0, 2.0))
    engine, _ = segment(losses=(3.0, 4.0))
    assert not engine.losses
    assert [path.name for path in list_checkpoints(segment.run.path)] == ["step_00000002", "step_00000008"]
    assert read_checkpoint(segment.run.path).state["best"] == {"step": 2, "val_loss": 1.0}


def test_the_trainer_stops_where_its_directory_is_another_one(segment, monkeypatch):
    """At the end of the step in which it was taken away, and not only at the next checkpoint; at the end of the run."""
    path, train_step, finish = segment.run.path, Loss.train_step, CheckpointManager.finish
    engines = []

    def lose():
        path.rename(path.with_name("moved"))
        path.mkdir()
        (path / ".lock").touch()

    def lost_in_step_3(engine, batch, lr):
        engines.append(engine)
        if len(engine.batches) == 2:
            lose()
        return train_step(engine, batch, lr)

    def lost_at_the_end(manager):
        finish(manager)
        lose()

    for owner, name, lost, last in (
        (Loss, "train_step", lost_in_step_3, 2),
        (CheckpointManager, "finish", lost_at_the_end, 8),
    ):
        with monkeypatch.context() as patch, segment.run.locked():
            patch.setattr(owner, name, lost)
            with pytest.raises(ValueError, match="was moved or removed while this run was in it"):
                segment()
        assert [file.name for file in path.iterdir()] == [".lock"]
        moved = path.with_name("moved")
        assert read_checkpoint(moved).state["step"] == last
        shutil.rmtree(moved)
    assert len(engines[-1].batches) == 3


def test_the_trainer_says_in_which_step_and_batch_a_token_is_none(segment, monkeypatch):
    """The engine names row and position; where that was is the trainer's to say."""

    def train_step(engine, batch, lr):
        engine.batches.append(batch)
        batch.labels[2, 1] = 70000 if len(engine.batches) == 2 else batch.labels[2, 1]
        check_batch(batch, replace(CONFIG, vocab_size=257))
        return 1.0, 2.0

    monkeypatch.setattr(Loss, "train_step", train_step)
    with pytest.raises(ValueError, match=r"^step 2, samples 3 to 5: labels must be .*got 70000 in row 2, position 1;"):
        segment()
    batch = Batch(np.zeros((1, 4), int), np.full((1, 4), -1), np.zeros((1, 4), bool))
    monkeypatch.setattr(Loss, "evaluate", lambda engine, batch, states=None: check_batch(batch, CONFIG))
    with pytest.raises(ValueError, match=r"^validation batch 1: labels must be .*got -1 in row 0, position 0;"):
        mean_loss(Loss(), [batch])


def test_the_trainer_weighs_a_validation_batch_by_its_labels():
    labels = [np.array([[1, 2, 3, IGNORED_LABEL]]), np.array([[IGNORED_LABEL, 1, IGNORED_LABEL, IGNORED_LABEL]])]
    batches = [Batch(np.zeros_like(x), x, np.zeros(x.shape, bool)) for x in labels]
    assert mean_loss(Loss((1.0, 5.0)), batches) == 2.0


def shared(shard: BatchShard, others: tuple[float, ...] = (0.0, 0.0)) -> Loss:
    """An engine of a process with this share; the rest of them count `others`, nats and labels."""
    engine, rest = Loss((1.0, 5.0)), list(others)
    engine.context = Alone()
    engine.context.shard, engine.context.total = shard, lambda number: number + rest.pop(0)
    return engine


def test_a_validation_stream_counts_once_however_many_read_it():
    """Every one of three processes reads all of a single row: three times the nats, three times the labels."""
    batches = [Batch(np.zeros((1, 4), int), np.array([[1, 2, 3, IGNORED_LABEL]]), np.zeros((1, 4), bool))] * 2
    assert total_nats(shared(BatchShard(1, 3), (36.0, 12)), batches, carry=True) == (18.0, 6)
    # Two that share it in time read a half each.
    assert total_nats(shared(BatchShard(0, 1, 1, 2), (4.0, 4)), batches, carry=True) == (10.0, 6)


def test_a_process_without_a_validation_row_counts_none():
    batch = Batch(np.zeros((2, 4), int), np.ones((2, 4), int), np.zeros((2, 4), bool))
    assert total_nats(shared(BatchShard(0, 3), (8.0, 8)), [batch]) == (8.0, 8)
    assert total_nats(shared(BatchShard(1, 3), (4.0, 4)), [batch]) == (8.0, 8)
