"""Hostile text against random tokenizers, until the time is up or something is found.

    python -m parity.suite.robustness.hostile_text --minutes 10

A case is a pure function of the seed and its number: a tokenizer of any kind, and texts that spell its special tokens,
mix scripts, controls and combining marks, or repeat one thing for ever. Whatever it is: no text yields a special token;
a copy and a pickle encode alike; what is shown token by token is the text of all of them; a lossless tokenizer gives
the text back; all of it in bounded time. A refusal is one line.
"""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import random
import sys
import time
import traceback
from dataclasses import dataclass

import tyro

from parity.suite.robustness.random_tokenizers import SPECIAL, UNKNOWN, WORDS, DrawnTokenizer, draw_tokenizer
from tools.tokenizer import Tokenizer, parse_tokenizer

#: Of all threads; another program's work counts for nothing.
CASE_SECONDS = 10.0
_BYTE_NAME = "<0x"
_TEXTS = (
    " ", "  ", "\n", "\r\n", "\t", "\0", "\u2581", "\u0120", "\u00e9", "e\u0301", "\u0301" * 5, "\ufffd", "\ufeff",
    "\U0001f469\u200d\U0001f680", "\uff1c/\uff53\uff1e", "\uff3bSEP\uff3d", "</S>", "[sep]", "<0xE2>", "##x", "\u202e",
    "\u2028", "ACGT" * 20, "a</s>b", "\u3002", "\u1d2c", "\x85",
)  # fmt: skip


@dataclass(frozen=True)
class HostileText:
    """How long to look, and from where."""

    minutes: float = 1.0
    """Time in all."""
    seed: int = 0
    """Of the cases."""
    first: int = 0
    """Number of the first case."""
    cases: int | None = None
    """End after so many, if the time is not up before."""


def draw_text(draw: random.Random, special: tuple[str, ...]) -> str:
    """A text that spells special tokens, among other things."""
    parts: list[str] = []
    for _ in range(draw.randint(0, 12)):
        kind = draw.random()
        if kind < 0.3:
            token = draw.choice([*special, *SPECIAL, UNKNOWN])
            cut = draw.randint(0, len(token))
            parts += draw.choice(
                [[token], [token], [token.upper()], [token[:cut], token[cut:]], [token[:cut], " ", token[cut:]]]
            )
        elif kind < 0.6:
            parts.append(draw.choice(WORDS) + draw.choice(["", " ", "  "]))
        elif kind < 0.9:
            parts.append(draw.choice(_TEXTS))
        else:
            parts += [chr(code) for code in draw.choices(range(0xD800), k=3)] + [chr(draw.randrange(0xE000, 0x110000))]
    if draw.random() < 0.02 and parts:
        parts.append(draw.choice(parts) * (20_000 // max(len(parts[-1]), 1)))
    return "".join(parts)


def check(drawn: DrawnTokenizer, draw: random.Random) -> int:
    """Check one tokenizer on some texts; how many it could encode.

    Raises:
        AssertionError: what must hold does not.
    """
    tokenizer = parse_tokenizer(drawn.content)
    ids_of = {token: tokenizer.backend.token_to_id(token) for token in drawn.special}
    model = json.loads(drawn.content)["model"]
    unknown = model["unk_id"] if "unk_id" in model else tokenizer.backend.token_to_id(model["unk_token"] or "")
    forbidden = {index for index in ids_of.values() if index != unknown} | {tokenizer.end_of_text_id}
    copies = [copy.copy(tokenizer), copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))]
    encoded = 0
    for _ in range(4):
        text = draw_text(draw, drawn.special)
        for continues in (False, True):
            try:
                ids = tokenizer.encode(text, continues).tolist()
            except ValueError as error:
                if drawn.kind == "byte-level" or "\n" in str(error) or len(str(error)) > 1000:
                    raise AssertionError(f"{text[:99]!r} is refused: {error}") from error
                continue
            encoded += 1
            assert not forbidden & set(ids), f"encode({text!r}, {continues}) = {ids}, which holds one of {forbidden}"
            for other in copies:
                assert other.encode(text, continues).tolist() == ids, f"a copy encodes {text!r} otherwise"
            if drawn.kind != "any" and continues:
                _check_appended(tokenizer, text, ids)
            if drawn.kind == "byte-level":
                assert (found := tokenizer.decode(ids)) == text, f"{text!r} came back as {found!r}"
            _check_stream(tokenizer, ids[:300], draw)
    _check_stream(tokenizer, draw.choices(range(tokenizer.vocab_size), k=draw.choice([5, 20, 400])), draw)
    return encoded


def _check_appended(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    """A text that goes on from another one makes it longer by itself; U+2581 is the space of Metaspace and of Llama."""
    with contextlib.suppress(ValueError):
        before = tokenizer.encode("once").tolist()
        wanted, found = tokenizer.decode(before) + text, tokenizer.decode([*before, *ids])
        if (
            tokenizer.decode(before) == "once"
            and "\u2581" not in text
            and _BYTE_NAME not in text
            and UNKNOWN not in found
        ):
            assert found == wanted, f"{wanted!r} came back as {found!r}"


def _check_stream(tokenizer: Tokenizer, ids: list[int], draw: random.Random) -> None:
    """What is shown token by token is the text of all of them, where a text grows by a token at all."""
    at = draw.randint(0, min(len(ids), 9))
    texts = [tokenizer.decode(ids[:end]).rstrip("\ufffd") for end in range(at, len(ids) + 1)]
    whole, before = tokenizer.decode(ids), tokenizer.decode(ids[:at])
    stream = tokenizer.stream_decoder(ids[:at])
    shown = "".join([stream.push(token) for token in ids[at:]]) + stream.flush()
    if before == texts[0] and all(
        later.startswith(text) for text, later in zip(texts, [*texts[1:], whole], strict=True)
    ):
        assert before + shown == whole, f"of {ids}, {at} known, is shown {shown!r} and not {whole[len(before) :]!r}"


def run(options: HostileText) -> int:
    """Exit code 0 where nothing was found, 1 where something was."""
    began, done, encoded, slowest = time.monotonic(), 0, 0, 0.0
    number = options.first
    while time.monotonic() - began < 60.0 * options.minutes and done != options.cases:
        draw = random.Random(f"{options.seed}, {number}")
        drawn, at = draw_tokenizer(draw), time.process_time()
        try:
            encoded += check(drawn, draw)
            took = time.process_time() - at
            slowest = max(slowest, took)
            assert took < CASE_SECONDS, f"it took {took:.1f} s"
        except Exception as error:  # whatever it is, it is a finding
            traceback.print_exc()
            print(
                f"{drawn}\n{error}\nagain: python -m {__spec__.name} --seed {options.seed} --first {number} --cases 1"
            )
            return 1
        done, number = done + 1, number + 1
    print(f"{done:,} tokenizers, {encoded:,} texts encoded, slowest case {slowest:.2f} s of CPU: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(HostileText, description=__doc__)))
