"""A run that is given every number computes what the reference does with those numbers, in both backends."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from parity.suite.support.flags import run
from spec.checkpoint.format import read_checkpoint
from spec.config import TrainingConfig
from spec.data import next_batch, open_data
from spec.init import initial_parameters
from spec.mixers import families
from spec.optimizer import MOMENTS, decayed_paths
from spec.presets import PRESETS
from spec.reference.model import loss_and_gradients
from spec.reference.optimizers import adamw_step, clip_by_global_norm
from spec.schedule import learning_rate
from tools.cli import backends
from tools.cli.main import parse
from tools.training.mixer_flags import MixerFlag, mixer_flags
from tools.training.train import Train

#: None of them nano's; each so large that the numbers would be others without it.
ASKED = TrainingConfig(
    steps=9, batch_size=4, seq_len=6, peak_lr=0.04, warmup_steps=3, weight_decay=40.0, grad_clip=0.05, seed=5,
    beta1=0.9, beta2=0.95,
)  # fmt: skip
STEPS = 2
MIXER_FLAGS = mixer_flags(families(), {*Train.__dict__} - {entry.name for entry in fields(Train) if entry.metadata})


@pytest.fixture(scope="module", params=backends.BACKENDS)
def made(request, small_data, tmp_path_factory) -> tuple[Any, Path]:
    """A run of two steps: its engine, and its directory."""
    if request.param not in backends.installed():
        pytest.skip(f"needs {request.param}")
    out = tmp_path_factory.mktemp("numbers") / "run"
    engines = backends.load(request.param, "training.engine")
    made: list[Any] = []

    class Kept(engines.Engine):
        def __init__(self, *given: Any):
            super().__init__(*given)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "Engine", Kept)
        patch.setattr("tools.training.trainer.plot_loss", lambda *_: None)
        patch.setattr("tools.training.train.trusted_method", lambda backend, method, *_: method)
        flags = {"--d-model": 8, "--d-ff": 12, "--n-layers": 1, "--steps": 9, "--stop-at": STEPS, "--batch-size": 4,
                 "--micro-batch-size": 3, "--seq-len": 6, "--lr": 0.04, "--warmup-steps": 3, "--weight-decay": 40.0,
                 "--grad-clip": 0.05, "--seed": 5, "--method": "sequential", "--remat": True, "--preset": "tiny",
                 "--data": small_data, "--out": out}  # fmt: skip
        run("train", {"backend": (request.param,), **{flag: (str(value),) for flag, value in flags.items()}})
    return made[0], out


def test_the_steps_are_the_references(made, small_data):
    """Moments to what float32 products allow; a number that was not heeded would be off by a tenth at the least."""
    config = replace(PRESETS["tiny"], vocab_size=257, d_model=8, d_ff=12, n_layers=1, max_seq_len=6)
    data, found = open_data(small_data), read_checkpoint(made[1])
    parameters: Any = {path: x.astype(np.float64) for path, x in initial_parameters(config, ASKED.seed).items()}
    zero = {path: np.zeros_like(x) for path, x in parameters.items()}
    first, second, decayed, norms = zero, zero, decayed_paths(config), []
    for step in range(STEPS):
        batch = next_batch(data, step * ASKED.batch_size, ASKED)
        _, gradients, _ = loss_and_gradients(parameters, config, batch.tokens, batch.labels, resets=batch.resets)
        clipped, norm = clip_by_global_norm(gradients, ASKED.grad_clip)
        norms.append(norm)
        rate = learning_rate(step, ASKED)
        parameters, first, second = adamw_step(parameters, clipped, first, second, step + 1, rate, ASKED, decayed)
    assert found.config == config and min(norms) > 2 * ASKED.grad_clip
    for truth, name in zip((first, second), MOMENTS, strict=True):
        for path, expected in truth.items():
            within = 1e-3 * np.abs(expected).max()
            np.testing.assert_allclose(found.moments[name][path], expected, rtol=1e-3, atol=within)
    for path, expected in parameters.items():
        # Where a gradient is next to nothing, its sign is rounding's, and AdamW takes a step all the same.
        off = np.abs(found.parameters[path] - expected)
        assert np.median(off) < 1e-5 and (off > 1e-3).mean() < 0.02, path


def test_how_it_computes_is_what_was_asked_for(made):
    engine, _ = made
    model = engine.model
    assert (model.remat, model.blocks[0].mixer.method, engine.method) == (True, "sequential", "sequential")
    assert (engine.micro_batch, model.compute_dtype, engine.training) == (3, "float32", ASKED)


def other_values(flag: MixerFlag, usual: Any) -> Iterator[Any]:
    """Values that a field may have instead of its preset's, as plain as its type."""
    for hint in (flag.hint, *get_args(flag.hint)):
        if get_origin(hint) is Literal:
            yield from (value for value in get_args(hint) if value != usual)
    if isinstance(usual, bool):
        yield not usual
    elif isinstance(usual, int):
        yield from (usual // 2, usual + 2, usual + 1, 8)
    elif isinstance(usual, float):
        yield from (usual / 2 or 0.5, usual + 0.25)
    elif isinstance(usual, tuple):
        yield tuple(re.sub(r"\d+", lambda found: str(int(found[0]) // 2), str(each)) for each in usual)
        yield usual[::-1]
        yield usual[1:]


def test_a_mixers_flag_is_in_the_model_of_each_family_that_has_it():
    """The rows of these flags are made of the families' fields, so that a new family has its own."""
    rows = [(flag, owner) for flag in MIXER_FLAGS.values() for owner in flag.owners]
    assert rows
    for flag, owner in rows:
        name, (usual, _) = next(iter(owner.presets.items()))
        changed = next(changes(usual, flag, [one for one in MIXER_FLAGS.values() if owner in one.owners]))
        typed = [[one.flag, *(value if isinstance(value, tuple) else (value,))] for one, value in changed]
        words = [str(word) for after in typed for word in after]
        command = parse(("train", backends.BACKENDS[0], "--data", "d", "--out", "o", "--preset", name, *words))
        assert isinstance(command, Train)
        expected = replace(usual, **{one.field: value for one, value in changed})
        assert command._resized(usual) == expected != usual, words


def changes(usual: Any, flag: MixerFlag, every: list[MixerFlag]) -> Iterator[list[tuple[MixerFlag, Any]]]:
    """Other values that a flag's field may have, with those of other flags that it may have them with alone."""
    others = [one for one in every if one is not flag]
    for besides in ([], *([one] for one in others), *map(list, itertools.permutations(others, 2))):
        chosen = [flag, *besides]
        for values in itertools.product(*(other_values(one, getattr(usual, one.field)) for one in chosen)):
            with contextlib.suppress(ValueError):
                if any(value == getattr(usual, one.field) for one, value in zip(chosen, values, strict=True)):
                    continue
                replace(usual, **{one.field: value for one, value in zip(chosen, values, strict=True)})
                yield list(zip(chosen, values, strict=True))
