"""Configurations: the same JSON both ways; every bad value is refused by its name; the nearest name is suggested."""

import dataclasses
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec import PRESETS, LiquidNetConfig, TrainingConfig
from spec.config import (
    COMPUTE_DTYPES,
    DECAY_SHAPES,
    NEWTON_SCHULZ_DTYPES,
    OPTIMIZERS,
    config_to_json,
    nearest,
    training_from_json,
)
from spec.mixers import config_from_json
from spec.optimizer import decayed_paths
from spec.parameters import num_parameters, parameter_table
from spec.presets import RECIPES, preset

sizes = st.integers(1, 10**6)
positive = st.floats(1e-12, 1.0)


@given(st.builds(LiquidNetConfig, sizes, sizes, sizes, sizes, sizes, st.floats(0.0, 1.0), positive))
def test_a_model_survives_json(config):
    text = json.dumps(config_to_json(config))
    assert json.loads(text)["family"] == "liquidnet"
    assert config_from_json(json.loads(text)) == config


@given(
    st.builds(
        TrainingConfig,
        steps=sizes,
        batch_size=sizes,
        seq_len=sizes,
        peak_lr=positive,
        warmup_steps=st.integers(0, 10**6),
        final_lr_fraction=st.floats(0.0, 1.0),
        beta1=st.floats(0.0, 0.999),
        beta2=st.floats(0.0, 0.999),
        adam_eps=positive,
        weight_decay=st.floats(0.0, 10.0),
        grad_clip=st.floats(0.0, 10.0),
        seed=st.integers(0, 2**64 - 1),
        compute_dtype=st.sampled_from(COMPUTE_DTYPES),
        stream=st.booleans(),
        # A decay that fits its schedule is drawn in parity/tests/training/test_schedule.py.
        decay_steps=st.integers(0, 10**6),
        decay_shape=st.sampled_from(DECAY_SHAPES),
        optimizer=st.sampled_from(OPTIMIZERS),
        momentum=st.floats(0.0, 0.999),
        newton_schulz_dtype=st.sampled_from(NEWTON_SCHULZ_DTYPES),
    )
)
def test_a_training_survives_json(training):
    assert training_from_json(json.loads(json.dumps(dataclasses.asdict(training)))) == training


NOT_INTEGERS = (0, -1, 1.0, True, "8", None)
NOT_NUMBERS = (-1e-9, math.nan, math.inf, -math.inf, True, "1", None)
BAD = [
    *((LiquidNetConfig, name, value) for name in ("vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len")
      for value in NOT_INTEGERS),
    *((LiquidNetConfig, "delta_min", value) for value in (*NOT_NUMBERS, 1.1)),
    *((LiquidNetConfig, "norm_eps", value) for value in (*NOT_NUMBERS, 0.0, 1.1)),
    *((TrainingConfig, name, value) for name in ("steps", "batch_size", "seq_len") for value in NOT_INTEGERS),
    *((TrainingConfig, name, value) for name in ("warmup_steps", "seed", "decay_steps") for value in NOT_INTEGERS[1:]),
    *((TrainingConfig, name, value) for name in ("final_lr_fraction", "weight_decay", "grad_clip")
      for value in NOT_NUMBERS),
    *((TrainingConfig, name, value) for name in ("beta1", "beta2") for value in (*NOT_NUMBERS, 1.0)),
    *((TrainingConfig, name, value) for name in ("peak_lr", "adam_eps") for value in (*NOT_NUMBERS, 0.0)),
    (TrainingConfig, "final_lr_fraction", 1.1),
    (TrainingConfig, "seed", 2**64),
    (TrainingConfig, "steps", 10**4000),
    (TrainingConfig, "compute_dtype", "float8"),
    *((TrainingConfig, "schedule", value) for value in ("wds", None)),
    *((TrainingConfig, "decay_shape", value) for value in ("square", None)),
    (TrainingConfig, "optimizer", "sgd"),
    (TrainingConfig, "newton_schulz_dtype", "float16"),
    *((TrainingConfig, "momentum", value) for value in (*NOT_NUMBERS, 1.0)),
    *((TrainingConfig, "stream", value) for value in (1, "true", None)),
]  # fmt: skip


@pytest.mark.parametrize("owner, name, value", BAD)
def test_a_bad_value_is_named(owner, name, value):
    with pytest.raises(ValueError) as raised:
        owner(**{name: value})
    message = str(raised.value)
    assert name in message or name.replace("_", " ") in message
    # Of an integer with thousands of digits, the number of digits.
    assert repr(value) in message or f"{len(str(value))} digits" in message


def test_every_field_is_validated():
    for owner in (LiquidNetConfig, TrainingConfig):
        assert {field.name for field in dataclasses.fields(owner)} == {name for who, name, _ in BAD if who is owner}


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LiquidNetConfig().d_model = 3
    assert LiquidNetConfig(n_layers=8).residual_scale == 0.25


@pytest.mark.parametrize(
    "value, message",
    [
        ({"family": "liquid_net"}, "unknown model family 'liquid_net'; this version knows liquidnet"),
        ({}, "unknown model family None"),
        ([1, 2], r"unknown model family \[1, 2\]"),
        ("liquidnet", "unknown model family 'liquidnet'"),
        ({**config_to_json(PRESETS["nano"]), "d_modle": 3}, "no field 'd_modle'; did you mean 'd_model'"),
        ({**config_to_json(PRESETS["nano"]), "d_ff": "x"}, "d_ff must be an integer of at least 1, got 'x'"),
        ({"family": "liquidnet", "d_model": 8}, "lacks the field 'vocab_size'"),
    ],
)
def test_bad_model_json_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        config_from_json(value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peak_rl": 1.0}, "TrainingConfig has no field 'peak_rl'; did you mean 'peak_lr'"),
        ({"zzz": 1.0}, "TrainingConfig has no field 'zzz'$"),
        ({"beta1": 2}, "beta1 must be a number"),
        ({"compute_dtype": "bfloat61"}, "did you mean 'bfloat16'"),
    ],
)
def test_bad_training_json_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        training_from_json({**dataclasses.asdict(TrainingConfig()), **change})


def test_training_json_from_before_there_were_streams_is_read():
    value = dataclasses.asdict(TrainingConfig(steps=3))
    for name in ("stream", "optimizer", "momentum", "newton_schulz_dtype"):
        del value[name]
    assert training_from_json(value) == TrainingConfig(steps=3, stream=False)


def test_training_json_from_before_there_were_schedules_is_read():
    value = dataclasses.asdict(TrainingConfig(steps=3))
    for name in ("schedule", "decay_steps", "decay_shape"):
        del value[name]
    assert training_from_json(value) == TrainingConfig(steps=3, schedule="cosine")


def test_incomplete_training_json_is_refused():
    for value in (3, [], None):
        with pytest.raises(ValueError, match="must be a JSON object"):
            training_from_json(value)
    with pytest.raises(ValueError, match="lacks the field 'batch_size'"):
        training_from_json({"steps": 3})


def test_nearest_names():
    assert nearest("sequentail", ["sequential", "chunked"]) == "; did you mean 'sequential'?"
    assert nearest("qqq", ["sequential"]) == ""
    assert preset("nano") is PRESETS["nano"]
    with pytest.raises(
        ValueError, match=f"unknown preset 'tniy'; choose one of {', '.join(PRESETS)}; did you mean 'tiny'"
    ):
        preset("tniy")


def test_presets_have_recipes_that_fit():
    assert set(RECIPES) == set(PRESETS)
    for name, config in PRESETS.items():
        assert config.vocab_size == 50257 and RECIPES[name].seq_len == config.max_seq_len


def test_only_matrices_decay():
    config = PRESETS["nano"]
    table = parameter_table(config)
    assert decayed_paths(config) == {row.path for row in table if len(row.shape) == 2}
    assert num_parameters(config) == sum(math.prod(row.shape) for row in table)
    assert len({row.path for row in table}) == len(table) == 2 + 7 * config.n_layers


def test_presets_stay_what_they_were_when_they_were_published():
    """A run that names one is the run that others have had; what a later version adds stands beside."""
    published = json.loads((Path(__file__).parent / "published" / "presets.json").read_text())
    assert published.keys() <= {*PRESETS}
    for name, parts in published.items():
        found = json.loads(json.dumps({"model": config_to_json(PRESETS[name]), "training": asdict(RECIPES[name])}))
        for part, values in parts.items():
            assert values == {key: found[part][key] for key in values}, (name, part)
