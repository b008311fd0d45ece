"""Two processes take the steps of one: DDP, FSDP, time cut in two; they agree, fail and change the scale together."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="only PyTorch trains in several processes")

from parity.proof.environment import ROOT
from parity.proof.problems.cases import perturbed_parameters
from spec import LiquidNetConfig
from spec.config import TrainingConfig
from spec.data import Batch, BatchShard
from spec.inputs import IGNORED_LABEL
from tools.training.evaluate import total_nats
from torch_impl.training.distributed import ParallelContext, to_local
from torch_impl.training.engine import Engine

pytestmark = pytest.mark.long

CONFIG = LiquidNetConfig(vocab_size=13, d_model=8, d_ff=12, n_layers=2, max_seq_len=8)
# Seven rows: one process has three, the other four. A large eps: with a small one AdamW enlarges rounding.
TRAINING = TrainingConfig(batch_size=7, seq_len=7, adam_eps=1e-2, weight_decay=0.5, grad_clip=0.5, stream=True)
RATES = (0.05, 0.1, 0.02)
SHARED = "a row each two"
LAYOUTS = {
    "ddp": ("ddp", 1, None),
    "fsdp": ("fsdp", 1, None),
    SHARED: ("ddp", 2, None),
    "ddp, 2 rows at a time": ("ddp", 1, 2),
    "fsdp, 2 rows at a time": ("fsdp", 1, 2),
}
HUGE, LAST_TO_FIT = 2.0**30, 2.0**10


def draw_batches() -> list[Batch]:
    """Labels in all rows but few in the first: a mean of means would be another number."""
    random, shape = np.random.default_rng(0), (len(RATES), TRAINING.batch_size, TRAINING.seq_len)
    tokens, labels = random.integers(0, CONFIG.vocab_size, size=(2, *shape)).astype(np.int32)
    labels[random.random(shape) < np.linspace(0.9, 0.0, TRAINING.batch_size)[:, None]] = IGNORED_LABEL
    return [Batch(*parts) for parts in zip(tokens, labels, random.random(shape) < 0.2, strict=True)]


def steps(context: ParallelContext, micro_batch: int | None):
    """What three steps and an evaluation tell and leave; and a third step again, after states were handed over."""
    first, again = (Engine(CONFIG, TRAINING, "sequential", micro_batch=micro_batch, context=context) for _ in range(2))
    first.load(perturbed_parameters(CONFIG, 1), {}, 0)
    batches, told = [batch.part(context.shard) for batch in draw_batches()], []
    for step, (batch, rate) in enumerate(zip(batches, RATES, strict=True)):
        if step == 2:
            parameters, moments = first.dump()
            again.load(parameters, moments, 2)
            again.load_states(first.dump_states())
        told.append(first.train_step(batch, rate))
    repeated = again.train_step(batches[2], RATES[2])
    nats = [total_nats(first, draw_batches(), carry=False)]
    if context.shard.rows == 1:
        nats.append(total_nats(first, draw_batches(), carry=True))
    parameters, moments = first.dump()
    left = {"states": first.dump_states(), **{f"{k}.{path}": x for k, g in moments.items() for path, x in g.items()}}
    return {"told": told, "repeated": repeated, "nats": nats, "left": {**parameters, **left}}


def scales(context: ParallelContext) -> list[tuple[float, float, float]]:
    """This process's float16 scale, loss and norm in three steps, from a scale at which every gradient overflows."""
    engine, found = Engine(CONFIG, replace(TRAINING, compute_dtype="float16"), "sequential", context=context), []
    engine.load(perturbed_parameters(CONFIG, 1), {}, 0)
    engine.load_extra_state({"grad_scaler": {**engine.scaler.state_dict(), "scale": HUGE}})
    unscale = engine.scaler.unscale_

    def overflow_here(optimizer):
        if context.rank == 1 and engine.scaler.get_scale() > LAST_TO_FIT:
            to_local(engine.model.final_norm.weight.grad).fill_(np.inf)
        unscale(optimizer)

    # With FSDP the gradients of one process may overflow alone: here they do, again and again.
    engine.scaler.unscale_ = overflow_here if context.sharded else unscale
    for batch in draw_batches():
        told = engine.train_step(batch.part(context.shard), 0.01)
        found.append((engine.scaler.get_scale(), *told))
    return found


def words(context: ParallelContext) -> dict[str, object]:
    """What each process comes to where they differ."""

    def fail():
        raise OSError("no room")

    found: dict[str, object] = {
        "agree": [context.any(context.rank == 0), context.any(context.rank == 1), context.any(False)],
        "total": context.total(context.rank + 1.5),
        "gather": context.all_gather(f"process {context.rank}"),
        "tell": context.broadcast(lambda: f"process {context.rank}"),
    }
    for name in ("one fails", "the first fails"):
        try:
            if name == "the first fails":
                context.broadcast(fail)
            else:
                with context.raise_together():
                    if context.rank == 1:
                        fail()
        except (OSError, ValueError, SystemExit) as error:
            found[name] = f"{type(error).__name__} {error}"
            if context.rank == 0:
                # The other one waits for this process to end, or for a last word.
                context.all_gather(None)
    with context.raise_together():
        found["then"] = "goes on"
    return found


def work(rank: int, place: Path) -> None:
    """One of the two processes: writes what it found."""
    import torch
    import torch.distributed as dist

    from torch_impl.training.distributed import exit_if_initialized, on_ranks

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=2)
    found = {}
    for name, (parallel, columns, micro_batch) in LAYOUTS.items():
        found[name] = steps(on_ranks([0, 1], parallel, columns), micro_batch)
    for parallel in ("ddp", "fsdp"):
        found[f"scales {parallel}"] = scales(on_ranks([0, 1], parallel))
    found["words"] = words(on_ranks([0, 1], "ddp"))
    (place / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.barrier()
    exit_if_initialized(0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What the two processes found, each."""
    place = tmp_path_factory.mktemp("pair")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(place)]
    options = {"env": environment, "cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, str(rank)], **options) for rank in range(2)]
    try:
        told = [one.communicate(timeout=60)[1] for one in both]
    except subprocess.TimeoutExpired:
        told = ["they wait for ever"] * 2
    finally:
        for one in both:
            one.kill()
            one.communicate()
    # Not an assertion: this is no test, and what a process died of must fail the tests below, not their fixture.
    read = [place / f"{rank}.pickle" for rank in range(2)]
    return [pickle.loads(path.read_bytes()) if path.is_file() else told[i] for i, path in enumerate(read)]


def of(pair, name):
    assert all(isinstance(one, dict) for one in pair), pair
    return [one[name] for one in pair]


@pytest.fixture(scope="module")
def alone():
    return steps(ParallelContext(), None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_take_the_steps_of_one(pair, alone, layout):
    """Loss and norm of each step, then parameters, moments and states: to 1e-5 of the largest entry.

    The norms are those before the clip, which the steps that follow would forgive: above it in every step.
    """
    norms = np.array(alone["told"])[:, 1]
    assert norms.shape == (len(RATES),) and (norms > TRAINING.grad_clip).all() and len(set(norms)) == len(RATES)
    for found in of(pair, layout):
        assert np.shape(found["told"]) == (len(RATES), 2)
        np.testing.assert_allclose(found["told"], alone["told"], rtol=1e-5)
        assert found["left"].keys() == alone["left"].keys()
        for path, expected in alone["left"].items():
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(found["left"][path], expected, rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_are_handed_over_to_their_rows(pair, layout):
    for found in of(pair, layout):
        np.testing.assert_allclose(found["repeated"], found["told"][2], rtol=1e-6)
        assert len(found["repeated"]) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_evaluate_as_one(pair, alone, layout):
    wanted = alone["nats"] if layout == SHARED else alone["nats"][:1]
    for found in of(pair, layout):
        for (nats, count), (expected, labels) in zip(found["nats"], wanted, strict=True):
            assert labels > 0
            assert nats == pytest.approx(expected, rel=1e-5) and count == labels


def test_more_micro_batches_than_a_process_has_rows_are_refused():
    """FSDP gathers for each of them: one process would wait for ever."""
    of_five = replace(TRAINING, batch_size=5)
    for rank in range(2):
        context = ParallelContext(rank, 2, BatchShard(rank, 2), sharded=True)
        with pytest.raises(ValueError, match=r"cannot cut the 2 rows of one process.*a multiple of 2"):
            Engine(CONFIG, of_five, "sequential", micro_batch=1, context=context)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_overflow_halves_the_scale_of_both(pair, parallel):
    first, second = of(pair, f"scales {parallel}")
    assert first == second and np.isfinite(first).all()
    assert first[0][0] == LAST_TO_FIT if parallel == "fsdp" else 1.0 < first[0][0] < HUGE


def test_they_agree(pair):
    first, second = of(pair, "words")
    fails = {name: [first.pop(name), second.pop(name)] for name in ("one fails", "the first fails")}
    assert (
        first
        == second
        == {
            "agree": [True, True, False],
            "total": 4.0,
            "gather": ["process 0", "process 1"],
            "tell": "process 0",
            "then": "goes on",
        }
    )
    assert fails["one fails"] == ["ValueError process 1 of 2: no room", "SystemExit 2"]
    assert fails["the first fails"] == ["OSError no room", "SystemExit 2"]


if __name__ == "__main__":
    work(int(sys.argv[2]), Path(sys.argv[1]))
