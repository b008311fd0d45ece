"""Irregular time: a Liquid SSM forecasts a signal that is observed at irregular times, with and without the times.

Usage: python recipes/irregular.py --out DIRECTORY   writes irregular.png and irregular.json.

A row alternates two tokens: `see` holds the value just observed and lasts MOMENT; `ask` lasts the gap until the next
observation, and the forecast is read there. The next value only enters at the next `see`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from spec import LiquidSSMConfig
from spec.checkpoint.files import new_file
from spec.init import stream
from torch_impl.model import LanguageModel

FREQUENCIES = (0.3, 0.7)
LEAST_GAP, LONGEST_GAP = 0.1, 3.7
MOMENT = 0.25
BURN_IN = 8
FEATURES = ("value seen", "see", "value held", "ask", "log gap")
MODELS = {
    "times": ("gaps as time", "#1a73e8"),
    "feature": ("gaps as a feature", "#8a94a0"),
    "none": ("no gaps", "#ee4c2c"),
}


class Series(NamedTuple):
    """y(t) = sum over k of amplitude_k sin(frequency_k t + phase_k), seen at `times` [b, t + 1]."""

    times: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """The truth at times [b, k]."""
        angle = np.multiply.outer(times, FREQUENCIES) + self.phase[:, None]
        return (self.amplitude[:, None] * np.sin(angle)).sum(-1)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values seen, gaps until the next ones, and these: [b, t] each."""
        y = self.at(self.times)
        arrays = (y[:, :-1], np.diff(self.times), y[:, 1:])
        value, gap, target = (torch.from_numpy(x.astype(np.float32)) for x in arrays)
        return value, gap, target


def draw(random: np.random.Generator, rows: int, observations: int) -> Series:
    """Amplitudes and phases of each row's own; gaps log-uniform over [0.1, 3.7], whose mean is 1."""
    gaps = np.exp(random.uniform(math.log(LEAST_GAP), math.log(LONGEST_GAP), (rows, observations + 1)))
    shape = (rows, len(FREQUENCIES))
    amplitude = random.uniform(0.5, 1.5, shape) / math.sqrt(len(FREQUENCIES))
    return Series(np.cumsum(gaps, axis=1), amplitude, random.uniform(0.0, 2.0 * math.pi, shape))


class Forecaster(LanguageModel):
    """The blocks of a Liquid SSM between a linear map of features and a linear read-out.

    Args:
        told: how it is told the gaps: `times`, `feature` or `none`; without times every `ask` lasts 1.
        seed: of the initial weights, which are the same whatever is told.
    """

    def __init__(self, told: str, seed: int = 0):
        sizes: dict[str, Any] = {"vocab_size": len(FEATURES), "d_model": 32, "d_ff": 88, "n_layers": 2}
        sizes |= {"d_state": 32, "d_tau": 16}
        super().__init__(LiquidSSMConfig(**sizes, state="diagonal", target_dt=0.3), seed)
        self.told = told
        self.lm_head = nn.Linear(self.config.d_model, 1)
        nn.init.zeros_(self.lm_head.weight)
        nn.init.zeros_(self.lm_head.bias)

    def forward(self, value: Tensor, gap: Tensor) -> Tensor:
        """Forecasts [b, t] of the values that are `gap` after the ones seen."""
        one, zero = torch.ones_like(gap), torch.zeros_like(gap)
        hint = gap.log() if self.told == "feature" else zero
        see = torch.stack([value, one, zero, zero, zero], dim=-1)
        ask = torch.stack([zero, zero, value, one, hint], dim=-1)
        lasts = torch.stack([MOMENT * one, gap if self.told == "times" else one], dim=-1).flatten(1)
        x_btd = torch.stack([see, ask], dim=2).flatten(1, 2) @ self.embedding.weight
        for block in self.blocks:
            x_btd, _ = block(x_btd, side={"dt_scale": lasts})
        return self.lm_head(self.final_norm(x_btd)[:, 1::2])[..., 0]


@dataclass(frozen=True)
class Irregular:
    """Train one model three times, told the gaps as time, as a feature, and not at all; plot what each forecasts."""

    out: Path
    """Directory for irregular.png and irregular.json."""
    steps: int = 300
    """Optimizer steps of each."""
    rows: int = 16
    """Series a step; always new ones."""
    observations: int = 24
    """Observations that are forecast in each."""
    tests: int = 512
    """Series of the test."""
    learning_rate: float = 1e-2
    """At its peak."""
    seed: int = 0
    """Of the initial weights and the series."""

    def run(self) -> dict[str, Any]:
        test = draw(stream(self.seed, "irregular test"), self.tests, self.observations)
        models, found = {}, {}
        for told, (name, _) in MODELS.items():
            models[told] = train(Forecaster(told, self.seed), self)
            horizons, by_gap = errors_by_gap(models[told], test)
            found[told] = {"error": error(models[told], test), "by_gap": by_gap}
            print(f"{name}: test error {found[told]['error']:.3f}", flush=True)
        value, _, target = test.tensors()
        last = ((value - target)[:, BURN_IN:].square().mean() / target[:, BURN_IN:].square().mean()).sqrt().item()
        settings = {key: item for key, item in asdict(self).items() if key != "out"}
        result = {"settings": settings, "gaps": horizons, "models": found, "last_value": last}
        with new_file(self.out / "irregular.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        plot(models, test, result, self.out / "irregular.png")
        return result


def train(model: Forecaster, run: Irregular) -> Forecaster:
    """Least squares by AdamW with a cosine; the series are the same whatever the model is told."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    random = stream(run.seed, "irregular training")
    for step in range(run.steps):
        warm, cosine = min((step + 1) / 50, 1.0), 0.5 + 0.5 * math.cos(math.pi * step / run.steps)
        optimizer.param_groups[0]["lr"] = run.learning_rate * warm * (0.02 + 0.98 * cosine)
        value, gap, target = draw(random, run.rows, run.observations).tensors()
        loss = (model(value, gap) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@torch.no_grad()
def error(model: Forecaster, test: Series) -> float:
    """Root mean square error over that of forecasting 0, from the BURN_IN-th observation on."""
    value, gap, target = test.tensors()
    wrong = (model(value, gap) - target)[:, BURN_IN:]
    return (wrong.square().mean() / target[:, BURN_IN:].square().mean()).sqrt().item()


@torch.no_grad()
def errors_by_gap(model: Forecaster, test: Series) -> tuple[list[float], list[float]]:
    """That error where the last gap alone is replaced, up to one and a half times the longest of training."""
    value, gap, _ = test.tensors()
    horizons, errors = np.geomspace(LEAST_GAP, 1.5 * LONGEST_GAP, 16), []
    for horizon in horizons:
        target = torch.from_numpy(test.at(test.times[:, -2:-1] + horizon))[:, 0]
        forecast = model(value, torch.cat([gap[:, :-1], torch.full_like(gap[:, -1:], float(horizon))], dim=1))[:, -1]
        errors.append(((forecast - target).square().mean() / target.square().mean()).sqrt().item())
    return horizons.tolist(), errors


@torch.no_grad()
def curve(model: Forecaster, series: Series, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Times and forecasts all along gap i, by asking after each part of it."""
    value, gap, _ = series.tensors()
    parts = torch.linspace(0.02, 1.0, 24)
    asked = gap.repeat(len(parts), 1)
    asked[:, i] = gap[0, i] * parts
    forecasts = model(value.repeat(len(parts), 1), asked)[:, i]
    return series.times[0, i] + asked[:, i].numpy(), forecasts.numpy()


def plot(models: dict[str, Forecaster], test: Series, result: dict[str, Any], target: Path) -> None:
    """Forecasts along one series, and test error against the gap, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = FigureCanvasAgg(figure).figure.subplots(1, 2, width_ratios=(1.6, 1.0))
    series = Series(*(part[:1] for part in test))
    first = len(series.times[0]) - 13
    seen = series.times[:, first:]
    fine = np.linspace(seen[:, 0], seen[:, -1], 400, axis=1)
    left.plot(fine[0], series.at(fine)[0], color="black", linewidth=0.8, label="truth")
    left.plot(seen[0], series.at(seen)[0], "ko", markersize=5, label="observed")
    for told in ("times", "none"):
        name, colour = MODELS[told]
        for i in range(first, len(series.times[0]) - 1):
            label = f"forecast, {name}" if i == first else None
            left.plot(*curve(models[told], series, i), color=colour, linewidth=2.0, alpha=0.8, label=label)
    left.set(xlabel="time (mean gap 1)", ylabel="value", title="each forecast starts at an observation")
    for told, (name, colour) in MODELS.items():
        found = result["models"][told]
        right.plot(
            result["gaps"], found["by_gap"], "o-", color=colour, markersize=3, label=f"{name} ({found['error']:.2f})"
        )
    right.axvspan(LONGEST_GAP, result["gaps"][-1], color="lightgrey", alpha=0.4, linewidth=0)
    right.annotate("not in training", (LONGEST_GAP, 0.0), xytext=(3, 3), textcoords="offset points", fontsize=8)
    right.set(
        xlabel="gap until the value asked for",
        ylabel="test error / signal",
        title="the error by gap (and over the test)",
    )
    right.set(ylim=(0.0, None), xlim=(0.0, result["gaps"][-1]))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
    with new_file(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


if __name__ == "__main__":
    tyro.cli(Irregular).run()
