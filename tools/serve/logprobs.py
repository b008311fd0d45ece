"""Log-probabilities of tokens, in the words of completions and in those of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tools.generation.request import TokenLogprobs
from tools.tokenizer import Tokenizer

#: In place of minus infinity, which JSON has not; OpenAI's own number.
LEAST = -9999.0


@lru_cache(maxsize=1 << 16)
def _spelled(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token's text, and its bytes; neither of one that the model has and its tokenizer has not.

    The text of half of a character is `bytes:\\xe2\\x80`, as in OpenAI's completions.
    """
    content = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    try:
        return content.decode(), content
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content), content


def _finite(logprob: float) -> float:
    return max(float(logprob), LEAST)


class TextOffsets:
    """Where in a text each token begins, as the tokens come.

    Args:
        tokenizer: of the text.
        context: the tokens before.
        start: characters before the first one.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], start: int):
        self._decoder, self._size, self._at = tokenizer.stream_decoder(context), tokenizer.vocab_size, start

    def push(self, token: int) -> int:
        """The offset of the next token; of the second half of a character, that of the character."""
        at = self._at
        if token < self._size:
            self._at += len(self._decoder.push(token))
        return at


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenLogprobs], offsets: TextOffsets, most_likely: int
) -> dict[str, object]:
    """`logprobs` of a completion; the token itself is among the most likely ones, whether it is one or not."""

    def top(one: TokenLogprobs) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            found.setdefault(_spelled(tokenizer, token)[0], _finite(logprob))
        return found

    return {
        "tokens": [_spelled(tokenizer, one.token)[0] for one in tokens],
        "token_logprobs": [None if one.logprob is None else _finite(one.logprob) for one in tokens],
        "top_logprobs": [top(one) for one in tokens] if most_likely else None,
        "text_offset": [offsets.push(one.token) for one in tokens],
    }


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprobs]) -> dict[str, object]:
    """`logprobs` of a choice of a chat completion."""

    def entry(token: int, logprob: float | None) -> dict[str, object]:
        text, content = _spelled(tokenizer, token)
        number = LEAST if logprob is None else _finite(logprob)
        return {"token": text, "logprob": number, "bytes": list(content)}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}
