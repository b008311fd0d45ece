"""What a model and a run are: frozen, validated, and the same JSON for every backend."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def nearest(value: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near: the tail of an error message."""
    match = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def require_known(kind: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError with the choices, and the nearest one, where `value` is not among them."""
    known = list(known)
    if value not in known:
        raise ValueError(f"unknown {kind} {value!r}; choose one of {', '.join(known)}{nearest(value, known)}")


def require_integer(name: str, value: Any, least: int, most: int = 2**31 - 1) -> None:
    """Raises ValueError, naming the value, where it is not an integer in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value > most:
        shown = value if value < 2**80 else f"a number of {len(str(value))} digits"
        raise ValueError(f"{name} must be at most {most}, got {shown}")


def _require_number(owner: object, name: str, low: float, high: float, *, low_open: bool = False) -> None:
    value = getattr(owner, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (low_open and value == low):
        bracket = "(" if low_open else "["
        raise ValueError(f"{name} must be a number in {bracket}{low:g}, {high:g}], got {value!r}")


class _Blocks:
    """What follows from the number of blocks, whatever is in them."""

    n_layers: int

    @property
    def residual_scale(self) -> float:
        """s = 1 / sqrt(2 l): keeps the residual stream's variance independent of depth."""
        return 1.0 / math.sqrt(2 * self.n_layers)


@dataclass(frozen=True)
class LiquidNetConfig(_Blocks):
    """Shape and constants of a LiquidNet.

    Args:
        vocab_size: entries of the tied embedding, v.
        d_model: width of the residual stream and of the state, d.
        d_ff: width of the SwiGLU MLP, f.
        n_layers: number of blocks, l.
        max_seq_len: training window in tokens; never a limit at inference.
        delta_min: least decay rate a token; bounds every half-life by ln 2 / delta_min.
        norm_eps: epsilon inside the root of RMSNorm.

    Raises:
        ValueError: a value out of range, named.
    """

    vocab_size: int = 50257
    d_model: int = 384
    d_ff: int = 1024
    n_layers: int = 6
    max_seq_len: int = 512
    delta_min: float = 1e-6
    norm_eps: float = 1e-6

    family: ClassVar[str] = "liquidnet"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len"):
            require_integer(name, getattr(self, name), 1)
        _require_number(self, "delta_min", 0.0, 1.0)
        _require_number(self, "norm_eps", 0.0, 1.0, low_open=True)

    @property
    def d_state(self) -> int:
        """Width of a layer's state."""
        return self.d_model


STATES = ("dense", "diagonal")
HIPPOS = ("legs", "as_printed")
MOST_AS_PRINTED = 16


@dataclass(frozen=True)
class LiquidSSMConfig(_Blocks):
    """Shape and constants of a Liquid SSM.

    Args:
        vocab_size: entries of the tied embedding, v.
        d_model: width of the residual stream, d.
        d_ff: width of the SwiGLU MLP, f.
        n_layers: number of blocks, l.
        max_seq_len: training window in tokens; never a limit at inference.
        d_state: numbers of a layer's state, n; a diagonal state takes them as n / 2 complex ones.
        d_tau: hidden width of the network that sets the time constants, h.
        state: `dense`, all of the state coupled by HiPPO-LegS, or `diagonal`, each mode on its own.
        hippo: `legs`, or `as_printed`, whose response grows as 2^n and is held to a dense state of at most 16.
        eta: how far content moves a time constant, as a fraction of it.
        target_dt: longest step a token, in units of time.
        tau_min, tau_max: time constants at the start, log-spaced between them, in units of time.
        exploration_rate: size of the noise in training.
        norm_eps: epsilon inside the root of RMSNorm.

    Raises:
        ValueError: a value out of range, named.
    """

    vocab_size: int = 32000
    d_model: int = 512
    d_ff: int = 1368
    n_layers: int = 6
    max_seq_len: int = 2048
    d_state: int = 256
    d_tau: int = 32
    state: str = "dense"
    hippo: str = "legs"
    eta: float = 0.5
    target_dt: float = 0.1
    tau_min: float = 1.0
    tau_max: float = 100.0
    exploration_rate: float = 0.0
    norm_eps: float = 1e-6

    family: ClassVar[str] = "liquid_ssm"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "d_ff", "n_layers", "max_seq_len", "d_state", "d_tau"):
            require_integer(name, getattr(self, name), 1)
        require_known("state", self.state, STATES)
        require_known("hippo", self.hippo, HIPPOS)
        if self.state == "diagonal" and (self.d_state % 2 or self.hippo != "legs"):
            raise ValueError(
                f"a diagonal state is made of pairs and of 'legs', got d_state {self.d_state} and {self.hippo!r}; "
                "give an even d_state, or state 'dense'"
            )
        if self.hippo == "as_printed" and self.d_state > MOST_AS_PRINTED:
            raise ValueError(
                f"hippo 'as_printed' grows as 2^n and is held to d_state <= {MOST_AS_PRINTED}, got {self.d_state}; "
                "use 'legs'"
            )
        _require_number(self, "eta", 0.0, 0.999, low_open=True)
        for name in ("target_dt", "tau_min", "tau_max"):
            _require_number(self, name, 0.0, 1e6, low_open=True)
        if self.tau_max < self.tau_min:
            raise ValueError(f"tau_max {self.tau_max:g} is below tau_min {self.tau_min:g}")
        _require_number(self, "exploration_rate", 0.0, 1e3)
        _require_number(self, "norm_eps", 0.0, 1.0, low_open=True)

    @property
    def modes(self) -> int:
        """Parts of a layer's state that have a time constant of their own, m: its numbers, or pairs of them."""
        return self.d_state // 2 if self.state == "diagonal" else self.d_state


ModelConfig = LiquidNetConfig | LiquidSSMConfig


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
        final_lr_fraction: floor of the cosine, as a fraction of peak_lr.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        adam_eps: epsilon outside the root of AdamW's denominator.
        weight_decay: decoupled decay of every matrix; norms and biases are exempt.
        grad_clip: largest global gradient norm; 0 turns clipping off.
        seed: of the initial weights and of the data order.
        compute_dtype: of the dense products; parameters, scan, norms, logits and loss stay float32.
        stream: each row reads on where it stopped in the step before, from the state it had there.

    Raises:
        ValueError: a value out of range, named.
    """

    steps: int = 2000
    batch_size: int = 12
    seq_len: int = 64
    peak_lr: float = 3e-3
    warmup_steps: int = 100
    final_lr_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    seed: int = 0
    compute_dtype: str = "float32"
    stream: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_len"):
            require_integer(name, getattr(self, name), 1)
        require_integer("warmup_steps", self.warmup_steps, 0)
        require_integer("seed", self.seed, 0, 2**64 - 1)
        _require_number(self, "peak_lr", 0.0, 1e3, low_open=True)
        _require_number(self, "final_lr_fraction", 0.0, 1.0)
        _require_number(self, "beta1", 0.0, 1.0 - 2**-24)
        _require_number(self, "beta2", 0.0, 1.0 - 2**-24)
        _require_number(self, "adam_eps", 0.0, 1.0, low_open=True)
        _require_number(self, "weight_decay", 0.0, 1e3)
        _require_number(self, "grad_clip", 0.0, 1e6)
        require_known("compute dtype", self.compute_dtype, COMPUTE_DTYPES)
        if not isinstance(self.stream, bool):
            raise ValueError(f"stream must be true or false, got {self.stream!r}")


FAMILIES = {config.family: config for config in (LiquidNetConfig, LiquidSSMConfig)}


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as a JSON object; `family` says which class it is."""
    return {"family": config.family, **asdict(config)}


def config_from_json(value: Any) -> ModelConfig:
    """The inverse of `config_to_json`; raises ValueError naming an unknown family, field or value."""
    if not isinstance(value, dict) or value.get("family") not in tuple(FAMILIES):
        family = value.get("family") if isinstance(value, dict) else value
        raise ValueError(f"unknown model family {family!r}; this version knows {', '.join(FAMILIES)}")
    return FAMILIES[value["family"]](**known_fields(FAMILIES[value["family"]], value, ignore=("family",)))


def training_from_json(value: Any) -> TrainingConfig:
    """A TrainingConfig from a JSON object; raises ValueError naming an unknown field or bad value."""
    if not isinstance(value, dict):
        raise ValueError(f"training settings must be a JSON object, got {json.dumps(value)[:40]}")
    # Runs that were started before there were streams hold no word of them.
    return TrainingConfig(**known_fields(TrainingConfig, {"stream": False, **value}))


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
