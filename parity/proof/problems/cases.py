"""Problems to compare on: few shapes, each is compiled, and many values; a case prints as what makes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from spec.config import ModelConfig, TrainingConfig
from spec.init import initial_parameters
from spec.inputs import IGNORED_LABEL
from spec.mixers import state_shape
from spec.presets import PRESETS

LENGTHS = (1, 2, 3, 31, 63, 257, 1000)
BATCH, WIDTH = 2, 3
SHAPES = (*((BATCH, t, WIDTH) for t in LENGTHS[:5]), (3, 257, 2), (1, 1000, 1))

CONFIG = replace(PRESETS["nano"], vocab_size=13, d_model=8, d_ff=12, n_layers=2, max_seq_len=8)
# Odd widths, which no vector register and no block divides.
ODD = replace(CONFIG, vocab_size=11, d_model=7, d_ff=5)
# The widths of nano, over bytes.
NANO = replace(PRESETS["nano"], vocab_size=257)
NANO_BLOCK = replace(NANO, n_layers=1)

ALMOST_ONE = 1.0 - 2.0**-24
DECAYS = ("uniform", "zero", "one", "almost one", "slow", "tiny", "mixture")
DRIVES = ("normal", "small", "subnormal", "large", "mixture", "zero")
RESETS = ("none", "first", "last", "some", "all", "every kind")
PADDINGS = ("none", "left", "right", "some", "all", "every kind")
IGNORED = ("none", "some", "all")


class ScanArrays(NamedTuple):
    """The arguments of `scan_vjp`, the method apart."""

    decay: np.ndarray
    drive: np.ndarray
    state: np.ndarray
    resets: np.ndarray
    padding: np.ndarray
    states_gradient: np.ndarray
    final_gradient: np.ndarray


@dataclass(frozen=True)
class ScanCase:
    """One problem for a scan; `arrays` makes it, the same on every machine."""

    shape: tuple[int, int, int]
    decays: str
    drives: str
    resets: str
    padding: str
    seed: int

    def arrays(self, dtype: type = np.float32) -> ScanArrays:
        random = np.random.default_rng(self.seed)
        b, t, d = self.shape
        decay = draw_decays(random, self.decays, self.shape)
        drive = random.standard_normal(self.shape) * draw_scales(random, self.drives, self.shape)
        state = random.standard_normal((b, d)) * draw_scales(random, self.drives, (b, d))
        masks = draw_resets(random, self.resets, (b, t)), draw_padding(random, self.padding, (b, t))
        gradients = random.standard_normal(self.shape), random.standard_normal((b, d))
        decay, drive, state, *gradients = (x.astype(dtype) for x in (decay, drive, state, *gradients))
        return ScanArrays(decay, drive, state, *masks, *gradients)


def draw_decays(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Decays in [0, 1]; `tiny` reaches below the smallest normal float32, `slow` has half-lives of 2^8 to 2^24."""
    every = {
        "uniform": random.random(shape),
        "zero": np.zeros(shape),
        "one": np.ones(shape),
        "almost one": np.full(shape, ALMOST_ONE),
        "slow": 1.0 - 2.0 ** -random.uniform(8, 24, shape),
        "tiny": 10.0 ** -random.uniform(5, 44, shape),
    }
    if kind != "mixture":
        return every[kind]
    return np.choose(random.integers(len(every), size=shape), list(every.values()))


def draw_scales(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Factors for the drives and the state."""
    fixed = {"normal": 1.0, "small": 1e-20, "subnormal": 1e-38, "large": 1e20, "zero": 0.0}
    return 10.0 ** random.uniform(-6, 6, shape) if kind == "mixture" else np.full(shape, fixed[kind])


def draw_resets(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Where a document begins. `every kind`: at the first and the last token, and twice in a row inside."""
    resets = np.full(shape, kind == "all")
    if kind == "every kind":
        resets[:, [0, shape[1] // 2 - 1, shape[1] // 2, -1]] = True
    if kind == "some":
        resets = random.random(shape) < 0.3
    elif kind in ("first", "last"):
        resets[:, 0 if kind == "first" else -1] = True
    return resets


def draw_padding(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Where nothing happens; `left` and `right` pad each row by an amount of its own.

    `every kind`: the first row on the left, the last on the right, by a third of it, and all of them once inside.
    """
    b, t = shape
    if kind == "every kind":
        padding = np.zeros(shape, bool)
        padding[0, : t // 3], padding[-1, t - t // 3 :], padding[:, t // 2] = True, True, True
        return padding
    amount, position = random.integers(0, t + 1, size=(b, 1)), np.arange(t)
    every = {"left": position < amount, "right": position >= t - amount, "some": random.random(shape) < 0.3}
    return every.get(kind, np.full(shape, kind == "all"))


def draw_ignored(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Which labels do not count."""
    return np.full(shape, kind == "all") | ((kind == "some") & (random.random(shape) < 0.3))


@lru_cache(maxsize=64)
def perturbed_parameters(config: ModelConfig, seed: int, scale: float = 0.3) -> dict[str, np.ndarray]:
    """Initial parameters with noise on every one: outputs that begin at zero would hide what stands before them."""
    random = np.random.default_rng(seed)
    initial = initial_parameters(config, seed)
    return {path: x + np.float32(scale) * random.standard_normal(x.shape, np.float32) for path, x in initial.items()}


class ModelArrays(NamedTuple):
    """The arguments of `loss_and_gradients` after the configuration."""

    tokens: np.ndarray
    labels: np.ndarray
    states: np.ndarray
    resets: np.ndarray
    padding: np.ndarray
    final_state_gradient: np.ndarray


@dataclass(frozen=True)
class ModelCase:
    """One problem for a model of configuration `config`; its floats are exact in float32."""

    length: int
    resets: str
    padding: str
    ignored: str
    fresh: bool
    seed: int
    batch: int = BATCH
    config: ModelConfig = CONFIG

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        return perturbed_parameters(self.config, self.seed)

    def arrays(self) -> ModelArrays:
        random = np.random.default_rng(self.seed)
        shape, c = (self.batch, self.length), self.config
        tokens, labels = random.integers(0, c.vocab_size, size=(2, *shape)).astype(np.int32)
        hidden = draw_ignored(random, self.ignored, shape)
        states = random.standard_normal((2, *state_shape(c, self.batch))).astype(np.float32)
        masks = draw_resets(random, self.resets, shape), draw_padding(random, self.padding, shape)
        start = np.zeros_like(states[0]) if self.fresh else states[0]
        return ModelArrays(tokens, np.where(hidden, IGNORED_LABEL, labels).astype(np.int32), start, *masks, states[1])


VALUES = ("normal", "wide", "mixture", "small", "absorbed", "huge")


def draw_values(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Inputs of a layer.

    `absorbed`: 1, then numbers just below half an ulp of it, which a sum in order all loses. `huge`: every second one
    100 to 600 of either sign, where gates are saturated, and exp infinite or zero in float32, not yet in float64.
    """
    if kind == "huge":
        far = np.copysign(random.uniform(100, 600, shape), random.standard_normal(shape))
        return np.where(random.random(shape) < 0.5, far, random.standard_normal(shape))
    if kind == "absorbed":
        return np.broadcast_to(np.where(np.arange(shape[-1]) == 0, 1.0, 0.9 * 2.0**-24), shape)
    scale = {"normal": 1.0, "wide": 30.0, "small": 1e-4}.get(kind) or 10.0 ** random.uniform(-4, 2, shape)
    return scale * (random.uniform(-1, 1, shape) if kind == "wide" else random.standard_normal(shape))


@dataclass(frozen=True)
class LayerCase:
    """One problem for a layer of `config`; its floats are exact in float32.

    Args:
        shape: b, t.
        values: a kind of VALUES.
        seed: of everything drawn.
        config: widths and constants.
        resets, padding, ignored: masks, where the layer has any.
    """

    shape: tuple[int, int]
    values: str
    seed: int
    config: ModelConfig = CONFIG
    resets: str = "none"
    padding: str = "none"
    ignored: str = "none"

    @property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        return draw_resets(self.random, self.resets, self.shape), draw_padding(self.random, self.padding, self.shape)

    def ignore(self, labels: np.ndarray) -> np.ndarray:
        """The labels, some of them ignored."""
        return np.where(draw_ignored(self.random, self.ignored, self.shape), IGNORED_LABEL, labels).astype(np.int32)


ADAMW = {
    "clip active": {},
    "clip inactive": {"grad_clip": 1e6},
    "no clip": {"grad_clip": 0.0},
    "no decay": {"weight_decay": 0.0, "grad_clip": 0.0},
    "large rate": {"peak_lr": 1.0, "grad_clip": 0.0, "beta1": 0.5, "beta2": 0.999},
    "large eps": {"adam_eps": 1e-2, "grad_clip": 0.0},
}


@dataclass(frozen=True)
class AdamWCase:
    """A few steps of AdamW from zero moments with given gradients; `kind` is a key of ADAMW."""

    kind: str
    steps: int
    seed: int
    config: ModelConfig = CONFIG

    @property
    def training(self) -> TrainingConfig:
        return TrainingConfig(**{"peak_lr": 3e-3, **ADAMW[self.kind]})

    @property
    def rates(self) -> list[float]:
        return [self.training.peak_lr * (1.0 + i) / self.steps for i in range(self.steps)]

    def arrays(self) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
        """Parameters, and gradients that differ in size from one to the other, a tenth of them exactly zero."""
        random = np.random.default_rng(self.seed)
        params = perturbed_parameters(self.config, 1)

        def one(shape):
            g = random.standard_normal(shape) * 10.0 ** random.uniform(-4, 1)
            return np.where(random.random(shape) < 0.1, 0.0, g).astype(np.float32)

        return params, [{path: one(x.shape) for path, x in params.items()} for _ in range(self.steps)]
