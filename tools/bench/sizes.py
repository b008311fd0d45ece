"""How large everything is that `liquidnet bench` measures: on a processor, with --full, and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spec.config import ModelConfig, TrainingConfig
from spec.presets import PRESETS, RECIPES
from tools.cli import backends

NANO = replace(PRESETS["nano"], vocab_size=65)
BYTES = replace(PRESETS["nano"], vocab_size=257)
SMALL = PRESETS["small"]


@dataclass(frozen=True)
class TrainStep:
    """A train step that is timed: its name in the table, the model, and the recipe: batch and compute dtype."""

    name: str
    config: ModelConfig
    recipe: TrainingConfig

    @property
    def tokens(self) -> int:
        return self.recipe.batch_size * self.recipe.seq_len


def train_step(name: str, config: ModelConfig, batch_size: int, seq_len: int) -> TrainStep:
    """In float32."""
    return TrainStep(name, config, TrainingConfig(batch_size=batch_size, seq_len=seq_len))


MAMBA = train_step("30M, 1 x 128, no optimizer", SMALL, 1, 128)


@dataclass(frozen=True)
class Decoding:
    """A model that is decoded.

    Args:
        name: in the table.
        config: the model.
        contexts: tokens before those that are timed.
        peer_contexts: the same of a GPT-2 of equal size; none leaves it out.
        batches: streams at once.
        tokens: that each stream writes in one measurement.
        compute_dtype: of the model's products.
    """

    name: str
    config: ModelConfig
    contexts: tuple[int, ...] = (0,)
    peer_contexts: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    tokens: int = 32
    compute_dtype: str = "float32"


@dataclass(frozen=True)
class Sizes:
    """What is measured; as it stands here, on a processor without flags.

    Args:
        gpu: measure as on a GPU: torch alone, the mixer in bfloat16, all in GB/s and FLOP/s, beside kernels of others.
        large: bytes of an array that no cache holds.
        square: side of the matrices whose product gives the peak.
        shapes: [b, t, d] of scan and mixer.
        training: train steps.
        decoding: models that are decoded.
        compiled: whether train steps of torch are timed eagerly, compiled, or one after the other.
        peers: whether kernels and models of other projects are timed too.
        scaling: the model whose cost is measured over the length of a row.
        lengths: those lengths, the first of which the others are compared with.
        tokens: of a step at each length.
        scaling_backends: backends that this is measured of, where they are installed.
        mamba: what the Mamba of `transformers` is timed on, forward and backward alone.
    """

    gpu: bool = False
    large: int = 2**28
    square: int = 2048
    shapes: tuple[tuple[int, int, int], ...] = ((8, 512, 384),)
    training: tuple[TrainStep, ...] = (
        train_step("0.8M, 12 x 64", NANO, 12, 64),
        train_step("0.8M, 4 x 1024", NANO, 4, 1024),
        train_step("30M, 2 x 512", SMALL, 2, 512),
    )
    decoding: tuple[Decoding, ...] = (
        Decoding("small", SMALL, (32, 10_000), (32, 4096)),
        Decoding("nano", BYTES, (32, 10_000), tokens=128),
    )
    compiled: tuple[bool, ...] = (False,)
    peers: bool = False
    scaling: ModelConfig = BYTES
    lengths: tuple[int, ...] = (512, 4096, 65_536)
    tokens: int = 65_536
    scaling_backends: tuple[str, ...] = ("torch",)
    mamba: TrainStep | None = MAMBA

    @property
    def backends(self) -> list[str]:
        """Those that are installed and measured."""
        return [name for name in backends.installed() if name == "torch" or not self.gpu]


CPU = Sizes()


def full(sizes: Sizes) -> Sizes:
    """With more streams, a million tokens of context, every power of two between the lengths, and peers."""
    small, nano = sizes.decoding
    powers = range(sizes.lengths[0].bit_length() - 1, sizes.lengths[-1].bit_length())
    return replace(
        sizes,
        decoding=(replace(small, batches=(1, 4, 16)), replace(nano, contexts=(*nano.contexts, 1_000_000))),
        lengths=tuple(2**power for power in powers),
        scaling_backends=("torch", "jax"),
        peers=True,
    )


def on_gpu(config: ModelConfig = SMALL, recipe: TrainingConfig = RECIPES["small"]) -> Sizes:
    """On a GPU, in bfloat16: a model with its batch; scans of `small`'s shape, and of one row over a long time."""
    recipe = replace(recipe, compute_dtype="bfloat16")
    return Sizes(
        gpu=True,
        large=2**29,
        square=8192,
        shapes=((48, 512, 384), (1, 16384, 384)),
        training=(TrainStep("", config, recipe),),
        decoding=tuple(Decoding("", config, batches=(batch,), compute_dtype="bfloat16") for batch in (1, 64)),
        compiled=(False, True),
        peers=True,
    )
