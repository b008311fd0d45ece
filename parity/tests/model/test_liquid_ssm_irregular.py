"""recipes/irregular.py: a model that is told the times forecasts better, and no forecast sees what it is about."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from parity.proof.environment import ROOT

torch = pytest.importorskip("torch")

RECIPE = ROOT / "recipes" / "irregular.py"
STEPS = 90


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("irregular", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    sys.modules["irregular"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["irregular"]


@pytest.fixture
def series(recipe):
    return recipe.draw(np.random.default_rng(0), 4, 12)


def stirred(recipe, told: str):
    """A model whose every parameter matters: the read-out starts at zero, and would hide all."""
    model = recipe.Forecaster(told)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
    return model


def test_the_series_is_what_it_says(recipe, series):
    value, gap, target = series.tensors()
    assert value.shape == gap.shape == target.shape == (4, 12)
    torch.testing.assert_close(value[:, 1:], target[:, :-1])
    by_hand = sum(series.amplitude[:, k] * np.sin(w * series.times[:, 5] + series.phase[:, k])
                  for k, w in enumerate(recipe.FREQUENCIES))  # fmt: skip
    np.testing.assert_allclose(target[:, 4].numpy(), by_hand, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gap.numpy(), np.diff(series.times), rtol=1e-5)
    many = np.diff(recipe.draw(np.random.default_rng(1), 500, 100).times)
    assert many.min() + 1e-9 >= recipe.LEAST_GAP and many.max() <= recipe.LONGEST_GAP + 1e-9
    assert abs(many.mean() - 1.0) < 0.02


@pytest.mark.parametrize("told", ["times", "feature", "none"])
def test_a_forecast_knows_its_own_gap_and_nothing_later(recipe, series, told: str):
    model = stirred(recipe, told)
    value, gap, _ = series.tensors()
    later, longer = value.clone(), gap.clone()
    later[:, 7:] += 1.0
    longer[:, 7:] *= 2.0
    with torch.no_grad():
        plain, after_value, after_gap = model(value, gap), model(later, gap), model(value, longer)
    torch.testing.assert_close(after_value[:, :7], plain[:, :7])
    torch.testing.assert_close(after_gap[:, :7], plain[:, :7])
    assert (after_value[:, 7] - plain[:, 7]).abs().min() > 1e-4
    moved = (after_gap[:, 7] - plain[:, 7]).abs()
    assert moved.max() < 1e-6 if told == "none" else moved.min() > 1e-5


def test_the_models_start_from_the_same_weights(recipe):
    first, *others = (recipe.Forecaster(told, seed=3).state_dict() for told in recipe.MODELS)
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


@pytest.mark.long
def test_times_lower_the_error_and_the_figure_appears(recipe, tmp_path: Path):
    run = recipe.Irregular(out=tmp_path / "out", steps=STEPS, rows=8, observations=14, tests=128)
    run.run()
    result = json.loads((tmp_path / "out" / "irregular.json").read_text())
    errors = {told: found["error"] for told, found in result["models"].items()}
    # A model that makes nothing of its gaps would have the same error.
    assert errors["times"] < 0.85 * errors["none"], errors
    assert errors["none"] < result["last_value"] * 1.2, "the control must have learnt too"
    assert all(len(found["by_gap"]) == len(result["gaps"]) for found in result["models"].values())
    assert (tmp_path / "out" / "irregular.png").read_bytes().startswith(b"\x89PNG")
