"""How large everything is that `liquidnet bench` measures on a processor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spec.config import ModelConfig
from spec.presets import PRESETS

NANO = replace(PRESETS["nano"], vocab_size=65)
GROWING = replace(PRESETS["nano"], vocab_size=257)


@dataclass(frozen=True)
class Training:
    """A train step that is timed: its name in the table, the model, rows and tokens a row."""

    name: str
    config: ModelConfig
    rows: int
    length: int


@dataclass(frozen=True)
class Decoding:
    """A model that is decoded.

    Args:
        name: in the table.
        config: the model.
        contexts: tokens before those that are timed.
        peer_contexts: the same of a GPT-2 of equal size; none leaves it out.
        streams: rows at once.
        tokens: that each stream writes in one measurement.
    """

    name: str
    config: ModelConfig
    contexts: tuple[int, ...]
    peer_contexts: tuple[int, ...] = ()
    streams: tuple[int, ...] = (1,)
    tokens: int = 32


@dataclass(frozen=True)
class Sizes:
    """What `liquidnet bench` measures without flags.

    Args:
        large: bytes of an array that no cache holds.
        square: side of the matrices whose product gives the peak.
        shape: [b, t, d] of scan and mixer.
        training: train steps.
        decoding: models that are decoded.
        growing: the model whose cost is measured over the length of a row.
        lengths: those lengths, the first of which the others are compared with.
        tokens: of a step at each length.
        growth_of: backends that this is measured of, where they are installed.
        compiled: whether train steps are timed eagerly, compiled, or one after the other.
        peers: whether models of transformers are timed too.
        mamba: what its Mamba is timed on then, forward and backward alone.
    """

    large: int = 2**28
    square: int = 2048
    shape: tuple[int, int, int] = (8, 512, 384)
    training: tuple[Training, ...] = (
        Training("0.8M, 12 x 64", NANO, 12, 64),
        Training("0.8M, 4 x 1024", NANO, 4, 1024),
        Training("30M, 2 x 512", PRESETS["small"], 2, 512),
    )
    decoding: tuple[Decoding, ...] = (
        Decoding("small", PRESETS["small"], (32, 10_000), (32, 4096)),
        Decoding("nano", GROWING, (32, 10_000), tokens=128),
    )
    growing: ModelConfig = GROWING
    lengths: tuple[int, ...] = (512, 4096, 65_536)
    tokens: int = 65_536
    growth_of: tuple[str, ...] = ("torch",)
    compiled: tuple[bool, ...] = (False,)
    peers: bool = False
    mamba: Training | None = Training("30M, 1 x 128, no optimizer", PRESETS["small"], 1, 128)


def full(sizes: Sizes) -> Sizes:
    """With more streams, a million tokens of context, every power of two between the lengths, and peers."""
    small, nano = sizes.decoding
    powers = range(sizes.lengths[0].bit_length() - 1, sizes.lengths[-1].bit_length())
    return replace(
        sizes,
        decoding=(replace(small, streams=(1, 4, 16)), replace(nano, contexts=(*nano.contexts, 1_000_000))),
        lengths=tuple(2**power for power in powers),
        growth_of=("torch", "jax"),
        peers=True,
    )
