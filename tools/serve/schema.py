"""What the body of each request may hold. Types are strict: "5" is no integer and true is no number."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tools.serve.errors import bad_request

#: Choices of a prompt, strings that may end a text, characters of one of them, tokens with a bias.
MOST_CHOICES, MOST_STOPS, LONGEST_STOP, MOST_BIASES = 16, 16, 500, 1024
ANY = object()
"""In a table of neutral values: every value changes nothing."""


class Body(BaseModel):
    """A JSON object in which null is as good as nothing; a field that is not known is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    #: Fields that others have and this server does not, with the values at which they change nothing.
    neutral: ClassVar[dict[str, tuple[object, ...]]] = {}

    @classmethod
    def supported(cls, data: dict[str, object]) -> dict[str, object]:
        """The fields without those that change nothing.

        Raises:
            ApiError: one of them would change something here, and is not supported.
        """
        kept = {}
        for name, value in data.items():
            if name in cls.neutral:
                if value is not None and not any(_is_same(value, one) for one in cls.neutral[name]):
                    raise bad_request(f"{name}: is not supported by this server", name, "unsupported_parameter")
            elif value is not None or name not in cls.model_fields:
                kept[name] = value
        return kept


def _is_same(value: object, neutral: object) -> bool:
    return neutral is ANY or (type(value) is type(neutral) and value == neutral)


def _is_ids(value: list[Any]) -> bool:
    return all(type(one) is int for one in value)


def _prompts(value: object) -> list[str | list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if _is_ids(value):
            return [value]
        if all(isinstance(one, str) for one in value):
            return value
        if all(isinstance(one, list) and _is_ids(one) for one in value):
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of such lists")


def _prompt(value: object) -> str | list[int]:
    if isinstance(value, str) or (isinstance(value, list) and _is_ids(value)):
        return value
    raise ValueError("must be a string or a list of token ids")


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MOST_STOPS or any(len(one) > LONGEST_STOP for one in stops):
        raise ValueError(f"at most {MOST_STOPS} strings of {LONGEST_STOP} characters each")
    return [one for one in stops if one]


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise ValueError(f"must be an object of at most {MOST_BIASES} token ids and biases")
    for token, bias in value.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", token):
            raise ValueError('keys must be token ids, such as "50256"')
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError("a bias must be a number in [-100, 100]")
    return {int(token): float(bias) for token, bias in value.items()}


def _content(value: object) -> str:
    """A string, or a list of parts of type text, joined as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, dict) and part.keys() == {"type", "text"}]
        kinds = {part.get("type") for part in value if isinstance(part, dict) and isinstance(part.get("type"), str)}
        if kinds - {"text"}:
            raise ValueError('only parts of type "text" are supported')
        if len(texts) == len(value) and kinds <= {"text"} and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise ValueError('must be a string or a list of {"type": "text", "text": …}')


def _ignored(value: object) -> object:
    if value:
        raise ValueError("is not supported by this server")
    return None


Neutral = Annotated[None, BeforeValidator(_ignored)]


class StreamOptions(BaseModel):
    """Of a stream."""

    model_config = Body.model_config
    include_usage: bool | None = None
    include_obfuscation: Neutral = None


class Generating(Body):
    """What completions and chat completions have in common."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=1000)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[int, float], BeforeValidator(_biases)] = {}
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: Annotated[list[str], BeforeValidator(_stops)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    state: str | None = None
    save_state: bool = False
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


_COMMON: dict[str, tuple[object, ...]] = {
    "store": (False,),
    "metadata": (ANY,),
    "service_tier": ("auto", "default"),
    "safety_identifier": (ANY,),
    "prompt_cache_key": (ANY,),
}


class CompletionRequest(Generating):
    """Of POST /v1/completions."""

    neutral: ClassVar[dict[str, tuple[object, ...]]] = {**_COMMON, "suffix": ("",)}
    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = Body.model_config
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]
    name: str | None = None
    # What the answers of others hold, which clients send back.
    refusal: Neutral = None
    annotations: Neutral = None
    audio: Neutral = None
    function_call: Neutral = None
    tool_calls: Neutral = None

    def turn(self) -> dict[str, str]:
        """As a chat template knows it: a developer's turn is a system's."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content} | ({"name": self.name} if self.name else {})


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatRequest(Generating):
    """Of POST /v1/chat/completions."""

    neutral: ClassVar[dict[str, tuple[object, ...]]] = {
        **_COMMON,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "reasoning_effort": (),
        "verbosity": (),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
    }
    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class TokenizeRequest(Body):
    """Of POST /tokenize: a prompt, or the messages of a chat."""

    neutral: ClassVar[dict[str, tuple[object, ...]]] = {
        "add_special_tokens": (True, False),
        "return_token_strs": (False,),
    }
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_generation_prompt: bool = True


class DetokenizeRequest(Body):
    """Of POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class StateRequest(Body):
    """Of POST /v1/states."""

    model: str | None = None
    prompt: Annotated[str | list[int], BeforeValidator(_prompt)]
    state: str | None = None
