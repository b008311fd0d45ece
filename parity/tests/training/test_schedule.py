"""Warm-up, stable, decay: the rates against a plain formula; runs decayed from a checkpoint, or made longer."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.checkpoint.format import list_checkpoints, read_checkpoint, write_checkpoint
from spec.config import DECAY_SHAPES, TrainingConfig, training_from_json
from spec.schedule import learning_rate
from tools.cli import backends
from tools.cli.main import main

SIZES = ("--d-model", 8, "--d-ff", 12, "--n-layers", 1, "--batch-size", 2, "--seq-len", 16, "--eval-windows", 2)
STABLE = ("--schedule", "wsd", "--warmup-steps", 2, "--lr", 0.01, "--checkpoint-every", 2, "--keep", 9)


@st.composite
def schedules(draw: st.DrawFn) -> TrainingConfig:
    """Of warm-up, stable part and decay, each of which may be as short as it can."""
    warmup, stable, decay = draw(st.integers(0, 9)), draw(st.integers(0, 20)), draw(st.integers(1, 20))
    shape, floor = draw(st.sampled_from(DECAY_SHAPES)), draw(st.floats(0.0, 1.0))
    end: dict[str, Any] = {"schedule": "wsd", "decay_steps": decay, "decay_shape": shape, "final_lr_fraction": floor}
    return TrainingConfig(steps=warmup + stable + decay, warmup_steps=warmup, peak_lr=0.003, **end)


@given(schedules())
def test_the_rates_are_those_of_a_plain_formula(training):
    peak, warmup, decay = training.peak_lr, training.warmup_steps, training.decay_steps
    floor, stable = peak * training.final_lr_fraction, training.steps - warmup - decay
    rates = [learning_rate(step, training) for step in range(training.steps)]
    rising = peak * np.arange(1, warmup + 1) / (warmup + 1)
    if training.decay_shape == "linear":
        falling = np.linspace(peak, floor, decay + 1)[1:]
    else:
        falling = peak - (peak - floor) * (np.arange(1, decay + 1) / decay) ** 0.5
    np.testing.assert_allclose(rates, [*rising, *[peak] * stable, *falling], rtol=1e-12, atol=1e-17)
    assert rates[warmup : warmup + stable] == [peak] * stable
    assert rates[-1] == learning_rate(training.steps, training) == learning_rate(10**9, training) == floor
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True) and max(rates) <= peak
    assert rates[:warmup] == [learning_rate(step, replace(training, schedule="cosine")) for step in range(warmup)]


@given(schedules(), st.integers(0, 100))
def test_a_longer_schedule_has_the_same_rates_until_the_decay(training, more):
    longer = replace(training, steps=training.steps + more)
    assert longer.decay_start == training.decay_start + more
    for step in range(training.decay_start):
        assert learning_rate(step, longer) == learning_rate(step, training)


def test_a_decay_has_a_fifth_of_the_steps_unless_its_length_is_said():
    def decay(steps: int, **more: int) -> int:
        return steps - TrainingConfig(steps=steps, warmup_steps=0, schedule="wsd", **more).decay_start

    assert [decay(steps) for steps in (1, 4, 9, 10, 2000)] == [1, 1, 1, 2, 400]
    assert decay(2000, decay_steps=7) == 7 and decay(7, decay_steps=7) == 7


def test_the_two_shapes_at_their_corners():
    linear = TrainingConfig(steps=10, warmup_steps=0, peak_lr=1.0, final_lr_fraction=0.0, schedule="wsd", decay_steps=4)
    assert [learning_rate(step, linear) for step in range(4, 11)] == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    sqrt = replace(linear, decay_shape="sqrt", final_lr_fraction=0.5)
    assert learning_rate(6, sqrt) == 0.75 and learning_rate(5, sqrt) == 1.0 and learning_rate(9, sqrt) == 0.5


@given(schedules())
def test_a_schedule_survives_json(training):
    assert training_from_json(json.loads(json.dumps(asdict(training)))) == training


def test_a_schedule_that_is_too_short_for_its_parts_is_refused():
    parts: dict[str, Any] = {"warmup_steps": 6, "schedule": "wsd", "decay_steps": 5}
    assert TrainingConfig(steps=11, **parts).decay_start == 6
    with pytest.raises(ValueError, match="warmup_steps 6 and decay_steps 5 are more than the 10 steps of a wsd sched"):
        TrainingConfig(steps=10, **parts)
    with pytest.raises(ValueError, match="warmup_steps 9 and decay_steps 2 are more than the 10 steps"):
        TrainingConfig(steps=10, warmup_steps=9, schedule="wsd")
    # A cosine has no such parts.
    TrainingConfig(steps=10, warmup_steps=9, decay_steps=5)


def words(backend: str, data: Path, out: Path, *more: object) -> tuple[str, ...]:
    return "train", backend, "--data", str(data), "--out", str(out), *map(str, more)


def train(backend: str, data: Path, out: Path, *more: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words(backend, data, out, *more)])
    assert stop.value.code == 0


def last_bits(run: Path) -> dict[str, bytes]:
    """Weights, moments and, of a stream, states of the newest checkpoint."""
    return {path.name: path.read_bytes() for path in list_checkpoints(run)[-1].glob("*.safetensors")}


def rates(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["lr"] for line in lines if "loss" in line}


def digest(run: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=["torch", "jax", "torch stream"])
def stable(request, small_data, tmp_path_factory):
    """A run of six steps that would go on for ever, and what it was asked for."""
    backend, _, stream = request.param.partition(" ")
    if backend not in backends.installed():
        pytest.skip(f"needs {backend}")
    flags = (*SIZES, *STABLE, *(["--stream"] if stream else []))
    out = tmp_path_factory.mktemp("stable") / "run"
    train(backend, small_data, out, *flags, "--steps", 10**6, "--stop-at", 6)
    return backend, out, flags


def test_a_decayed_checkpoint_comes_to_the_bits_of_a_run_that_had_the_schedule_from_the_start(
    stable, small_data, tmp_path, capsys
):
    """Weights, moments, step, position in the data and state are all carried on; the stable run goes on as it was."""
    backend, out, flags = stable
    before, origin, decayed = digest(out), out / "checkpoints" / "step_00000004", tmp_path / "decayed"
    decay = ("--decay-steps", 3, "--decay-shape", "sqrt")
    train(backend, small_data, decayed, "--decay-from", origin, *decay, "--eval-windows", 2)
    said = capsys.readouterr().err
    assert "steps 4 to 7 of 7" in said and "rate jumps" not in said and "will not repeat" not in said
    train(backend, small_data, tmp_path / "whole", *flags, *decay, "--steps", 7)
    assert last_bits(decayed) == last_bits(tmp_path / "whole") and len(last_bits(decayed)) > 1
    found, expected = (read_checkpoint(run).state for run in (decayed, tmp_path / "whole"))
    for name in ("step", "samples_consumed", "tokens", "seed", "training", "data"):
        assert found[name] == expected[name], name
    assert rates(decayed) == {step: rate for step, rate in rates(tmp_path / "whole").items() if step > 4}
    assert rates(tmp_path / "whole")[4] == 0.01 and rates(decayed)[7] == 0.01 * 0.1
    assert [path.name[-1] for path in list_checkpoints(decayed)] == ["4", "7"]
    assert json.loads((decayed / "config.json").read_text())["decay_from"] == str(origin)
    assert digest(out) == before


def test_a_stable_run_goes_on_as_stable_and_can_be_made_longer(stable, small_data, tmp_path, capsys):
    """Its rates up to now are those of the longer schedule, and so are its bits."""
    backend, out, flags = stable
    run = Path(shutil.copytree(out, tmp_path / "run"))
    capsys.readouterr()
    train(backend, small_data, run, "--resume", "--steps", 2 * 10**6, "--stop-at", 8)
    assert "rate jumps" not in capsys.readouterr().err
    train(backend, small_data, tmp_path / "whole", *flags, "--steps", 2 * 10**6, "--stop-at", 8)
    assert last_bits(run) == last_bits(tmp_path / "whole")
    assert [rates(run)[step] for step in range(3, 9)] == [0.01] * 6


def test_a_decay_goes_on_after_a_kill(stable, small_data, tmp_path):
    """In the midst of it, and before its first checkpoint, told again where it came from or not."""
    backend, out, _ = stable
    begin = ("--decay-from", out, "--decay-steps", 3, "--eval-windows", 2, "--checkpoint-every", 1)
    train(backend, small_data, tmp_path / "whole", *begin)
    run = tmp_path / "run"
    train(backend, small_data, run, *begin, "--stop-at", 7)
    train(backend, small_data, run, "--resume", "--stop-at", 8)
    shutil.rmtree(run / "checkpoints")
    train(backend, small_data, run, "--resume", "--stop-at", 7)
    train(backend, small_data, run, *begin, "--resume")
    assert last_bits(run) == last_bits(tmp_path / "whole") and rates(run) == rates(tmp_path / "whole")
    assert read_checkpoint(run).state["best"] == read_checkpoint(tmp_path / "whole").state["best"]


@pytest.fixture(scope="module")
def backend():
    return backends.default()


@pytest.fixture(scope="module")
def short(backend, small_data, tmp_path_factory):
    """A run of eight steps, warm-up until the second, decay from the sixth on."""
    out = tmp_path_factory.mktemp("short") / "run"
    train(backend, small_data, out, *SIZES, *STABLE, "--steps", 8, "--decay-steps", 2, "--checkpoint-every", 1)
    return out


def test_a_decay_is_as_long_as_that_of_its_run_or_a_fifth(backend, small_data, short, tmp_path):
    for name, more, steps, decay in (("own", (), 6, 2), ("fifth", ("--decay-steps", 0), 5, 1)):
        train(backend, small_data, tmp_path / name, "--decay-from", short / "checkpoints" / "step_00000004", *more)
        stored = read_checkpoint(tmp_path / name).state["training"]
        assert (stored["steps"], stored["steps"] - TrainingConfig(**stored).decay_start) == (steps, decay)


def test_only_a_stable_part_is_decayed(refused, backend, small_data, short, tmp_path):
    def asked(origin: Path, *more: object) -> str:
        line = refused(*words(backend, small_data, tmp_path / "out", "--decay-from", origin, *more))
        assert not (tmp_path / "out").exists()
        return line

    steps = short / "checkpoints"
    assert "is at step 7, outside the stable part of its run, steps 2 to 6; name a ch" in asked(steps / "step_00000007")
    assert "is at step 1, outside the stable part of its run, steps 2 to 6; name a ch" in asked(steps / "step_00000001")
    assert f"{steps / 'step_00000008'} is at step 8, outside" in asked(short)
    assert "does not exist" in asked(tmp_path / "none")
    good = steps / "step_00000004"
    assert "decay_steps must be an integer of at least 0, got -1" in asked(good, "--decay-steps", -1)
    assert "this run has steps 6, not 9; leave --steps out" in asked(good, "--steps", 9)
    assert "this run has schedule wsd, not cosine; leave --schedule out" in asked(good, "--schedule", "cosine")
    assert "this run has seed 0, not 3; leave --seed out" in asked(good, "--seed", 3)
    assert "this run's model has d_model 8 (not 16); leave out the flags" in asked(good, "--d-model", 16)
    assert "--init-from and --decay-from both say where a run begins; give one" in asked(good, "--init-from", good)
    checkpoint = read_checkpoint(good)
    write_checkpoint(tmp_path / "weights", replace(checkpoint, moments={}))
    assert "no optimizer state or training settings; name a checkpoint" in asked(tmp_path / "weights")
    cosine = {**checkpoint.state, "training": {**checkpoint.state["training"], "schedule": "cosine"}}
    write_checkpoint(tmp_path / "cosine", replace(checkpoint, state=cosine))
    assert "is of a cosine schedule, which has no stable part; name one of a run that was" in asked(tmp_path / "cosine")
    state = {name: value for name, value in checkpoint.state.items() if name != "training"}
    write_checkpoint(tmp_path / "untold", replace(checkpoint, state=state))
    assert "no optimizer state or training settings; name a checkpoint" in asked(tmp_path / "untold")


def test_a_decayed_run_stays_what_it_is(refused, backend, small_data, short, tmp_path, capsys):
    run, steps = tmp_path / "run", tmp_path / "steps"
    shutil.copytree(short / "checkpoints", steps)
    train(backend, small_data, run, "--decay-from", steps / "step_00000004", "--stop-at", 5)
    resume = (*words(backend, small_data, run), "--resume")
    other = steps / "step_00000005"
    capsys.readouterr()
    assert f"was decayed from {steps / 'step_00000004'}, not from {other}; leave" in refused(
        *resume, "--decay-from", str(other)
    )
    assert "this run has decay_steps 2, not 3; leave --decay-steps out" in refused(*resume, "--decay-steps", "3")
    whole = words(backend, small_data, short, "--resume", "--decay-from", other)
    assert "this run was decayed from no checkpoint, not from" in refused(*whole)
    # Killed before its first checkpoint, and another one put where it came from.
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(steps / "step_00000004")
    other.rename(steps / "step_00000004")
    assert "is at step 5, and this run was decayed from step 4; put that checkpoint back" in refused(*resume)


def test_a_decayed_run_has_a_best_checkpoint_of_its_own(backend, small_data, short, tmp_path):
    """That of the stable run is not in it."""
    stable = read_checkpoint(short / "checkpoints" / "step_00000004")
    best = {"step": 2, "val_loss": 1e-3}
    write_checkpoint(tmp_path / "good", replace(stable, state={**stable.state, "best": best}))
    train(backend, small_data, tmp_path / "run", "--decay-from", tmp_path / "good", "--eval-windows", 2)
    assert read_checkpoint(tmp_path / "run").state["best"]["step"] == 6


def test_flags_of_a_decay_want_a_schedule_that_has_one(refused, backend, small_data, tmp_path):
    command = words(backend, small_data, tmp_path / "out", *SIZES)
    assert "--decay-steps 3 is of the wsd schedule; add --schedule wsd, or" in refused(*command, "--decay-steps", "3")
    assert "--decay-shape sqrt is of the wsd schedule" in refused(*command, "--decay-shape", "sqrt")
    assert "--schedule takes one of cosine, wsd, got 'wds'; did you mean 'wsd'?" in refused(
        *command, "--schedule", "wds"
    )
    assert "did you mean 'sqrt'?" in refused(*command, "--schedule", "wsd", "--decay-shape", "sqr")
    assert "warmup_steps 1 and decay_steps 10 are more than the 10 steps" in refused(
        *command, "--schedule", "wsd", "--decay-steps", "10", "--steps", "10"
    )


def test_a_rate_that_jumps_is_said(backend, small_data, short, tmp_path, capsys):
    """Not before the first decayed step, whatever the schedule becomes; after it, and in the midst of a cosine."""

    def said(run: Path, *more: object) -> str:
        capsys.readouterr()
        train(backend, small_data, run, "--resume", *more, "--eval-windows", 2)
        return capsys.readouterr().err

    for step, jumps in ((6, False), (7, True), (8, True)):
        run = tmp_path / str(step)
        shutil.copytree(short, run)
        for late in list_checkpoints(run)[step:]:
            shutil.rmtree(late)
        text = said(run, "--steps", 12)
        assert ("the learning rate jumps, since the schedule changed: steps 8 -> 12" in text) == jumps
        assert rates(run)[step + 1] == 0.01
    train(backend, small_data, tmp_path / "cosine", *SIZES, "--steps", 8, "--warmup-steps", 1, "--stop-at", 3)
    assert "jumps, since the schedule changed: schedule cosine -> wsd\n" in said(
        tmp_path / "cosine", "--schedule", "wsd", "--stop-at", 4
    )
    assert "rate jumps" not in said(tmp_path / "cosine", "--stop-at", 5)
