"""How the next token is drawn: the numbers that a request may choose."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real

#: Largest bias and penalty in size, those of OpenAI's API.
LARGEST_BIAS, LARGEST_PENALTY = 100.0, 2.0


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: divides the logits; 0 takes the most likely token. Source: Ackley, Hinton and Sejnowski 1985.
        top_k: keep the k most likely tokens; 0 keeps all. Source: Fan, Lewis and Dauphin 2018.
        top_p: keep the smallest set of most likely tokens that holds this probability; 1 keeps all. Source: Holtzman
            et al. 2020, section 3.1 (nucleus sampling).
        seed: of the uniforms.
        min_p: keep the tokens that are at least this times as likely as the most likely one; 0 keeps all. Source:
            Nguyen et al. 2024, "Turning Up the Heat", section 4.
        presence_penalty: taken from the logit of every token that was drawn before, in [-2, 2]. Source: OpenAI's API.
        frequency_penalty: the same, once for each time that it was drawn, in [-2, 2]. Source: OpenAI's API.
        logit_bias: pairs of a token id and what is added to its logit, in [-100, 100]. Source: OpenAI's API.

    Raises:
        ValueError: a value out of range, named.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if getattr(value, "shape", None) == () and hasattr(value, "item"):  # an array of one number is that number
                object.__setattr__(self, field.name, value.item())
        for name in ("top_k", "seed"):
            _require_integer(name, getattr(self, name))
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"):
            _require_number(name, getattr(self, name))
        if not 0.0 <= self.temperature <= 1e3:
            raise ValueError(f"temperature must be in [0, 1000], got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -LARGEST_PENALTY <= getattr(self, name) <= LARGEST_PENALTY:
                raise ValueError(f"{name} must be in [-2, 2], got {getattr(self, name)}")
        self._check_logit_bias()

    @property
    def adjusts_logits(self) -> bool:
        """Whether it has biases or penalties."""
        return bool(self.logit_bias or self.presence_penalty or self.frequency_penalty)

    def _check_logit_bias(self) -> None:
        ids = [token for token, _ in self.logit_bias]
        if len({*ids}) < len(ids):
            raise ValueError("logit_bias names a token more than once")
        for token, bias in self.logit_bias:
            _require_integer("a token of logit_bias", token)
            _require_number("a bias of logit_bias", bias)
            if token < 0:
                raise ValueError(f"a token of logit_bias must be an id of the vocabulary, got {token}")
            if not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
                raise ValueError(f"a bias of logit_bias must be in [-100, 100], got {bias} for token {token}")


def _require_integer(name: str, value: object) -> None:
    # Integers of NumPy too, which `spec.config.require_integer` leaves out: it checks what JSON has.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, got {value!r}")


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
