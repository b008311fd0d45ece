"""The configuration of a Liquid SSM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from spec.config import ModelConfig
from spec.validation import require_integer, require_known, require_number

State = Literal["dense", "diagonal"]
Hippo = Literal["legs", "as_printed"]
MOST_AS_PRINTED = 16


@dataclass(frozen=True)
class LiquidSSMConfig(ModelConfig):
    """Shape and constants of a Liquid SSM.

    Args:
        vocab_size, d_model, d_ff, n_layers, max_seq_len, norm_eps: as in ModelConfig.
        d_state: numbers of a layer's state, n; a diagonal state takes them as n / 2 complex ones.
        d_tau: hidden width of the network that sets the time constants, h.
        state: `dense`, all of the state coupled by HiPPO-LegS, or `diagonal`, each mode on its own.
        hippo: `legs`, or `as_printed`, whose response grows as 2^n and is held to a dense state of at most 16.
        eta: how far content moves a time constant, as a fraction of it.
        target_dt: longest step a token, in units of time.
        tau_min, tau_max: time constants at the start, log-spaced between them, in units of time.
        exploration_rate: size of the noise in training.

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
    state: State = "dense"
    hippo: Hippo = "legs"
    eta: float = 0.5
    target_dt: float = 0.1
    tau_min: float = 1.0
    tau_max: float = 100.0
    exploration_rate: float = 0.0
    norm_eps: float = 1e-6

    family: ClassVar[str] = "liquid_ssm"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d_state", "d_tau"):
            require_integer(name, getattr(self, name), 1)
        require_known("state", self.state, get_args(State))
        require_known("hippo", self.hippo, get_args(Hippo))
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
        require_number("eta", self.eta, 0.0, 0.999, low_open=True)
        for name in ("target_dt", "tau_min", "tau_max"):
            require_number(name, getattr(self, name), 0.0, 1e6, low_open=True)
        if self.tau_max < self.tau_min:
            raise ValueError(f"tau_max {self.tau_max:g} is below tau_min {self.tau_min:g}")
        require_number("exploration_rate", self.exploration_rate, 0.0, 1e3)

    @property
    def modes(self) -> int:
        """Parts of a layer's state that have a time constant of their own, m: its numbers, or pairs of them."""
        return self.d_state // 2 if self.state == "diagonal" else self.d_state
