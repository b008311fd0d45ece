"""What a model and a run are: frozen, validated, and the same JSON for every backend."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from spec.validation import nearest, require_integer, require_known, require_number

OPTIMIZERS = ("adamw", "muon")
NEWTON_SCHULZ_DTYPES = ("float32", "bfloat16")
COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")
SCHEDULES = ("cosine", "wsd")
DECAY_SHAPES = ("linear", "sqrt")


class _Shared:
    """What generic code reads of any configuration; no fields, so that a family lists them in an order of its own."""

    family: ClassVar[str]

    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    max_seq_len: int
    norm_eps: float

    @property
    def residual_scale(self) -> float:
        """s = 1 / sqrt(2 l): keeps the residual stream's variance independent of depth."""
        return 1.0 / math.sqrt(2 * self.n_layers)


SHARED_FIELDS = ("vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len", "norm_eps")
"""Fields that every configuration has; the others are its mixer's."""


@dataclass(frozen=True)
class ModelConfig(_Shared):
    """A model of any family. A family's own Config is a frozen dataclass below this class.

    It lists the fields below itself, with its own defaults and its mixer's fields among them: the order is its JSON's.

    Args:
        vocab_size: entries of the tied embedding, v.
        d_model: width of the residual stream, d.
        d_ff: width of the SwiGLU MLP, f.
        n_layers: number of blocks, l.
        max_seq_len: training window in tokens; never a limit at inference.
        norm_eps: epsilon inside the root of RMSNorm.

    Raises:
        ValueError: a value out of range, named.
    """

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len"):
            require_integer(name, getattr(self, name), 1)
        require_number("norm_eps", self.norm_eps, 0.0, 1.0, low_open=True)


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as a JSON object; `family` says whose it is. The inverse is `spec.mixers.config_from_json`."""
    return {"family": config.family, **asdict(config)}


def swiglu_width(d_model: int) -> int:
    """Width of a SwiGLU MLP that has the weights of one of 4 d without a gate: 8 d / 3, up to a multiple of 8."""
    return 8 * math.ceil(d_model / 3)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides which numbers a run computes, apart from the model and the data.

    Args:
        steps: length of the learning-rate schedule in optimizer steps.
        batch_size: sequences a step, over all devices.
        seq_len: tokens a sequence.
        peak_lr: learning rate after warm-up.
        warmup_steps: steps of linear warm-up.
        final_lr_fraction: floor of the schedule, as a fraction of peak_lr.
        schedule: cosine, or wsd (warm-up, stable, decay); see spec/schedule.py.
        decay_steps: steps of the decay that ends a wsd schedule; 0 is a fifth of `steps`, at least 1.
        decay_shape: of that decay: linear, or sqrt, which falls as 1 - sqrt(progress).
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        adam_eps: epsilon outside the root of AdamW's denominator.
        weight_decay: decoupled decay of every matrix; norms and biases are exempt.
        grad_clip: largest global gradient norm; 0 turns clipping off.
        seed: of the initial weights and of the data order.
        compute_dtype: of the dense products; parameters, scan, norms, logits and loss stay float32.
        stream: each row reads on where it stopped in the step before, from the state it had there.
        optimizer: adamw, or muon for the matrices of the blocks and AdamW for the rest; see spec/optimizer.py.
        momentum: decay of Muon's first moment.
        newton_schulz_dtype: what the operands of Muon's products are rounded to; float32 leaves them as they are.

    Raises:
        ValueError: a value out of range, named.
    """

    steps: int = 2000
    batch_size: int = 12
    seq_len: int = 64
    peak_lr: float = 3e-3
    warmup_steps: int = 100
    final_lr_fraction: float = 0.1
    schedule: str = "cosine"
    decay_steps: int = 0
    decay_shape: str = "linear"
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    seed: int = 0
    compute_dtype: str = "float32"
    stream: bool = False
    optimizer: str = "adamw"
    momentum: float = 0.95
    newton_schulz_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_len"):
            require_integer(name, getattr(self, name), 1)
        require_integer("warmup_steps", self.warmup_steps, 0)
        require_integer("seed", self.seed, 0, 2**64 - 1)
        require_number("peak_lr", self.peak_lr, 0.0, 1e3, low_open=True)
        require_number("final_lr_fraction", self.final_lr_fraction, 0.0, 1.0)
        require_known("schedule", self.schedule, SCHEDULES)
        require_integer("decay_steps", self.decay_steps, 0)
        require_known("decay shape", self.decay_shape, DECAY_SHAPES)
        require_number("beta1", self.beta1, 0.0, 1.0 - 2**-24)
        require_number("beta2", self.beta2, 0.0, 1.0 - 2**-24)
        require_number("adam_eps", self.adam_eps, 0.0, 1.0, low_open=True)
        require_number("weight_decay", self.weight_decay, 0.0, 1e3)
        require_number("grad_clip", self.grad_clip, 0.0, 1e6)
        require_known("compute dtype", self.compute_dtype, COMPUTE_DTYPES)
        require_known("optimizer", self.optimizer, OPTIMIZERS)
        require_number("momentum", self.momentum, 0.0, 1.0 - 2**-24)
        require_known("newton_schulz_dtype", self.newton_schulz_dtype, NEWTON_SCHULZ_DTYPES)
        if not isinstance(self.stream, bool):
            raise ValueError(f"stream must be true or false, got {self.stream!r}")
        if self.schedule == "wsd" and self.warmup_steps > self.decay_start:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.steps - self.decay_start} are more than the "
                f"{self.steps} steps of a wsd schedule; lower them or raise steps"
            )

    @property
    def decay_start(self) -> int:
        """Steps before the first decayed one of a wsd schedule, the warm-up among them."""
        return self.steps - (self.decay_steps or max(self.steps // 5, 1))


def training_from_json(value: Any) -> TrainingConfig:
    """A TrainingConfig from a JSON object; raises ValueError naming an unknown field or bad value."""
    if not isinstance(value, dict):
        raise ValueError(f"training settings must be a JSON object, got {json.dumps(value)[:40]}")
    # Runs that were started before there was a field hold no word of it.
    schedule = {"schedule": "cosine", "decay_steps": 0, "decay_shape": "linear"}
    later = {"stream": False, "optimizer": "adamw", "momentum": 0.95, "newton_schulz_dtype": "float32", **schedule}
    return TrainingConfig(**known_fields(TrainingConfig, {**later, **value}))


def known_fields(owner: type, value: dict[str, Any], ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    """`value` without `ignore`; raises ValueError for a key that is no field of `owner`, or a field that is missing."""
    names = [field.name for field in fields(owner)]
    given = {key: item for key, item in value.items() if key not in ignore}
    for key in given:
        if key not in names:
            raise ValueError(f"{owner.__name__} has no field {key!r}{nearest(key, names)}")
    for name in names:
        if name not in given:
            raise ValueError(f"{owner.__name__} lacks the field {name!r}")
    return given
