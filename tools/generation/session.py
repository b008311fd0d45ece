"""A session: a text that a user and a model write in turns, held as one recurrent state, whatever its length."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from spec.checkpoint.files import new_file, require_file
from spec.checkpoint.format import Checkpoint
from spec.checkpoint.quantization import Weights, rounded
from spec.checkpoint.tensors import pack
from spec.mixers import state_shape
from spec.sampling import (
    Sampler,
    Sampling,
    Step,
    StepInput,
    StepOutput,
    check_tokens,
    draw_tokens,
    logprobs,
    piece_starts,
    sample,
)
from tools import convert
from tools.cli import backends
from tools.cli.destination import require_outside_checkpoints
from tools.generation.request import FinishReason, Piece, SessionState, TokenLogprobs
from tools.generation.stop_strings import HeldTokens, StopStringFilter
from tools.tokenizer import Tokenizer, parse_tokenizer

T = TypeVar("T")
#: States, of the backend's own kind, the number of tokens they have absorbed, the last of these, and the tokens after.
Snapshot = tuple[object, int, tuple[int, ...], list[int]]
#: Absorbed tokens that are kept, for the text of those that follow depends on them.
RECENT = 64
#: Tokens of a prompt that are absorbed at a time: on a processor little more is gained by more of them, and texts that
#: are written at the same time wait for no longer than this.
PROMPT_PIECE = 64
#: The same on a GPU or a TPU, which is idle half of the time with fewer; a model until measured.
ACCELERATOR_PROMPT_PIECE = 1024
#: More tokens than anything reads, in digits that every JSON takes.
_POSITION = re.compile(r"[0-9]{1,15}", re.ASCII)
#: Bytes of the file of a state, far more than any model's; what is larger is not read.
LARGEST_STATE = 1 << 30
#: Of these tokens, in a file: with the one that is pending, a character of four bytes that the text ends in the middle
#: of.
RECENT_SAVED = 3


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A checkpoint that is ready to write: any number of sessions may use it at once, from any thread.

    Args:
        backend: it computes with.
        checkpoint: configuration and weights, without moments.
        tokenizer: the checkpoint's.
        step: (tokens [b, t], states or None) -> (logits of the last position [b, v], states).
        score: the same with the logits of every position, [b, t, v]; None where no prompt is scored.
        batch_invariant: whether what a step gives a row does not depend, to the bit, on the rows beside it.
        prompt_piece: tokens of a prompt that are absorbed at a time; None is as many as `spec.sampling.generate` takes.
        sampler: draws a token a row.
    """

    backend: backends.Backend
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    step: Step
    score: Step | None = None
    batch_invariant: bool = False
    prompt_piece: int | None = None
    sampler: Sampler = sample

    @cached_property
    def identity(self) -> str:
        """A checksum of the weights: a state means nothing to other ones."""
        digest = hashlib.sha256()
        for path, array in sorted(self.checkpoint.parameters.items()):
            digest.update(path.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def session(self) -> Session:
        """A new text."""
        return Session(self.step, self.tokenizer, self.prompt_piece, self.sampler)


def open_model(path: Path, backend: backends.Backend | None = None, weights: Weights = "float32") -> OpenModel:
    """Load a checkpoint to write with.

    Args:
        path: a run, a checkpoint directory, a .pt or a .msgpack file.
        backend: by default the first one installed.
        weights: what the matrices are rounded to; float32 leaves them as they are.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, cannot be rounded, or holds no tokenizer.
    """
    name = backend or backends.default()
    return in_a_thread_that_ends(lambda: _opened(path, name, weights))


def in_a_thread_that_ends(work: Callable[[], T]) -> T:
    """What `work` comes to, or raises.

    A thread that has computed keeps those that OpenMP started for it. With more of them than there are processors,
    libgomp has them all sleep between two turns: texts that another thread writes take half as long again.
    """
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # whoever waits must hear of it
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found.result()


def _opened(path: Path, backend: backends.Backend, weights: Weights) -> OpenModel:
    checkpoint = replace(convert.read(path), moments={}, states=None)
    if weights != "float32":
        checkpoint = replace(checkpoint, parameters=rounded(checkpoint.parameters, weights))
    if checkpoint.tokenizer is None:
        raise ValueError(f"{path} holds no tokenizer; write with a checkpoint that `liquidnet train` wrote")
    model = backends.load(backend, "model").build(checkpoint.config)
    if backend == "torch":  # JAX places arrays itself
        model.to(backends.load(backend, "ops.devices").default_device())
    backends.load(backend, "checkpoint.native").load_parameters(model, checkpoint.parameters)
    decode, lock = backends.load(backend, "ops.decode"), threading.Lock()
    method = decode.choose_method(model, weights)

    def locked(step: Step) -> Step:
        def locked_step(tokens_bt: np.ndarray, states: object) -> StepOutput:
            with lock:  # a recorded graph has one set of buffers
                return step(tokens_bt, states)

        return locked_step

    return OpenModel(
        backend, checkpoint, parse_tokenizer(checkpoint.tokenizer),
        locked(decode.make_step(model, weights=weights)), locked(decode.make_scorer(model)),
        decode.is_batch_invariant(method), PROMPT_PIECE if _on_processor(backend) else ACCELERATOR_PROMPT_PIECE,
        backends.load(backend, "ops.sampling").sample,
    )  # fmt: skip


def _on_processor(backend: backends.Backend) -> bool:
    if backend == "torch":
        return backends.load(backend, "ops.devices").default_device().type == "cpu"
    import jax

    return jax.default_backend() == "cpu"


class Session:
    """One text that grows by turns. One seed and the same turns give the same text on either backend, near-ties aside.

    Args:
        step: of a model.
        tokenizer: the model's.
        prompt_piece: tokens of a prompt that are absorbed at a time, see `spec.sampling.piece_starts`; None is as
            many as `spec.sampling.generate` takes.
        sampler: draws a token a row.
    """

    def __init__(self, step: Step, tokenizer: Tokenizer, prompt_piece: int | None = None, sampler: Sampler = sample):
        self._step, self.tokenizer, self._prompt_piece, self._sampler = step, tokenizer, prompt_piece, sampler
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        #: After the first `position` tokens: [l, 1, n], of the backend's own kind; None before any.
        self.states: object = None
        self.position = 0
        self._recent: tuple[int, ...] = ()
        #: Tokens of the text that have not been absorbed yet.
        self.pending: list[int] = []
        self._previous = self._snapshot()
        # Of the prompt of the next turn, what `go_on_from_prefix` has been given the state after.
        self._prefix = 0
        #: Whether the last turn met an end-of-text token, and how many tokens it drew.
        self.ended, self.drawn = False, 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to go on from."""
        return self.position == 0 and not self.pending

    def append(self, text: str) -> None:
        """Append to the text, as it is: what a tokenizer puts before a text belongs before the first of it alone.

        Raises:
            ValueError: the text cannot be encoded.
        """
        try:
            self.pending = self.pending + self.tokenizer.encode(text, continues=not self.is_empty).tolist()
        except UnicodeEncodeError as error:
            raise ValueError("the text is not valid Unicode; give it as UTF-8") from error

    def write(self, sampling: Sampling, max_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """Pieces of what the model appends, as they come.

        It ends at `max_tokens` tokens, before an end-of-text token, or before one of the strings `stop`; neither of the
        two becomes part of the text. The state keeps what came before, so that the next turn goes on from there.

        Args:
            sampling: how each token is drawn; its uniforms depend on the position in the text.
            max_tokens: tokens to write at most.
            stop: strings that end the turn.

        Raises:
            ValueError: there is no text to go on from.
        """
        turn = self.turn(sampling, max_tokens, stop)
        try:
            event = next(turn)
            while True:
                if isinstance(event, StepInput):
                    event = turn.send(self._step(*event))
                else:
                    yield event.text
                    event = next(turn)
        except StopIteration:
            return
        finally:
            turn.close()

    def turn(
        self, sampling: Sampling, max_tokens: int, stop: Sequence[str] = (), alternatives: int | None = None
    ) -> Generator[StepInput | Piece, StepOutput | None, FinishReason]:
        """`write` as a coroutine, whose steps are taken by whoever runs it, alone or with those of other texts.

        It yields StepInput and is sent what the step gives; it yields each Piece that may be shown; it returns why it
        ended. Closing it, or an error in a step, leaves the text as it was shown.

        Args:
            sampling, max_tokens, stop: see `write`; with 0 tokens a prompt of several pieces is absorbed, all but its
                last token, and a shorter one is left to the next turn.
            alternatives: how likely each token was, and so many of the most likely ones; None leaves it out.

        Raises:
            ValueError: there is no text to go on from.
        """
        if not self.pending:
            raise ValueError("there is nothing to go on from; give at least one character")
        self._previous = self._snapshot()
        try:
            return (yield from self._turn(sampling, max_tokens, stop, alternatives))
        finally:
            if not self.pending:  # no token was drawn after the last step, or none that belongs to the text
                self._restore(self._previous)

    def _turn(
        self, sampling: Sampling, max_tokens: int, stop: Sequence[str], alternatives: int | None
    ) -> Generator[StepInput | Piece, StepOutput | None, FinishReason]:
        # What the turn appends is the text of all tokens without that of those before: a decoder may drop the space of
        # the first one, and the last turn may have ended in the middle of a character.
        decoder = self.tokenizer.stream_decoder(self._context)
        visible, scored = StopStringFilter(stop, self._snapshot()), HeldTokens()
        self.ended, self.drawn = False, 0
        piece = self._prompt_piece
        read, self._prefix = self._prefix, 0
        whole = [] if piece is None else piece_starts(read + len(self.pending), piece)
        # What is left of a prompt is read in the pieces that it has as a part of the whole.
        starts = [start - read for start in whole if start >= read] or None
        prompt_bt = np.asarray([self.pending])
        loop = draw_tokens(prompt_bt, sampling, self.states, self.position, starts=starts, sampler=self._sampler)
        try:
            event, logits_bv = next(loop), np.empty((1, 0))
            while self.drawn < max_tokens or len(self.pending) > 1:
                if isinstance(event, StepInput):
                    output = yield event
                    assert output is not None
                    logits_bv = output[0]
                    self._absorbed(event.tokens_bt.shape[1], output[1])
                    event = loop.send(output)
                    continue
                token, self.drawn = int(event[0]), self.drawn + 1
                if self.drawn == 1:  # the prompt has been read: nothing goes back to before it
                    visible = StopStringFilter(stop, self._previous)
                self.ended = token == self.tokenizer.end_of_text_id
                grown = "" if self.ended else decoder.push(token)
                if alternatives is not None:
                    scored.push(TokenLogprobs(token, *logprobs(logits_bv[0], token, alternatives)), grown)
                if self.ended:
                    break
                self.pending = [token]
                # A token may complete one character and begin another: going back must not leave the half of it.
                shown = visible.push(grown, None if decoder.is_unfinished else self._snapshot())
                yield Piece(shown, scored.take(shown))
                if visible.stopped:
                    self._go_back_to_shown(visible)
                    return "stop"
                if self.drawn < max_tokens:
                    event = next(loop)
        except BaseException:  # closed, or a step has failed: what was held back was never shown
            if visible.rest():
                self._go_back_to_shown(visible)
            raise
        # Half of a character that the text ends with is never completed; one that a turn ends with may be.
        rest = visible.rest() + (decoder.flush() if self.ended else "")
        yield Piece(rest, scored.rest())
        return "stop" if self.ended else "length"

    def _go_back_to_shown(self, visible: StopStringFilter[Snapshot]) -> None:
        snapshot, text = visible.before_stop()
        self._restore(snapshot)
        self.pending = self.pending + self.tokenizer.encode_after(self._context, text)

    def save(self, path: Path, model: OpenModel) -> None:
        """Write the state and what belongs to it to a safetensors file, of one size whatever the length of the text.

        Raises:
            ValueError: there is no text yet, or the path is another file, or in no directory.
        """
        if not self.pending:
            raise ValueError("there is no text yet, so there is no state to save; give some text first")
        if path.exists() and not _is_state(path):
            raise ValueError(f"{path} exists and is no state that /save wrote; name another file")
        require_outside_checkpoints(path.parent, str(path))
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is no directory; make it first, or name another file")
        with new_file(path) as temporary:
            temporary.write_bytes(pack_state(self.state(), model))

    def load(self, path: Path, model: OpenModel) -> None:
        """Go on from what `save` wrote, on either backend.

        Raises:
            ValueError: the file is none of these, is damaged, or belongs to other weights; the session stays as it was.
        """
        require_file(path)
        try:
            state = parse_state(_content(path), model)
        except OtherWeightsError as error:
            raise ValueError(f"{path} is {error}") from error
        except ValueError as error:
            raise ValueError(
                f"{path} is no state that /save wrote, or is damaged ({error}); name another file"
            ) from error
        self.go_on_from(state)

    def state(self) -> SessionState:
        """All that is kept of the text."""
        states = None if self.states is None else as_array(self.states)
        return SessionState(states, self.position, self._recent, tuple(self.pending))

    def go_on_from(self, state: SessionState) -> None:
        """Go on from what `state` gave, of this model, on either backend."""
        self._restore((state.states, state.position, state.recent, [*state.pending]))

    def go_on_from_prefix(self, states: np.ndarray, tokens: Sequence[int]) -> None:
        """Go on from the states [l, 1, n] after these tokens; more have to be pending before it can write."""
        self._restore((states, len(tokens), tuple(tokens[-RECENT:]), []))
        self._prefix = len(tokens)

    def _absorbed(self, count: int, states: object) -> None:
        """The first tokens of those that were pending have been absorbed."""
        self._previous = self._snapshot()
        self._recent = (*self._recent, *self.pending[:count][-RECENT:])[-RECENT:]
        self.states, self.position, self.pending = states, self.position + count, self.pending[count:]

    def _snapshot(self) -> Snapshot:
        return self.states, self.position, self._recent, self.pending

    def _restore(self, snapshot: Snapshot) -> None:
        self.states, self.position, self._recent, self.pending = snapshot

    @property
    def _context(self) -> list[int]:
        """The last tokens of the text: as many, however many of them have been absorbed."""
        return [*self._recent, *self.pending][-RECENT:]


class OtherWeightsError(ValueError):
    """A state means nothing to other weights than those that made it."""


def pack_state(state: SessionState, model: OpenModel) -> bytes:
    """A state as the content of a safetensors file, of one size whatever the length of the text.

    Args:
        state: with at least one pending token.
        model: that made it.
    """
    zeros = np.zeros(state_shape(model.checkpoint.config, 1), np.float32)
    metadata = {
        "weights": model.identity,
        "position": str(state.position),
        "recent": json.dumps(state.recent[-RECENT_SAVED:]),
        "pending": json.dumps(state.pending),
    }
    return pack({"states": zeros if state.states is None else state.states}, metadata)


def parse_state(content: bytes, model: OpenModel) -> SessionState:
    """The state that `pack_state` has made a file of, on either backend.

    Raises:
        OtherWeightsError: it belongs to another model, or to other rounding.
        ValueError: it is no such file, or damaged; the message says how.
    """
    try:
        metadata = _metadata(content)
        states = safetensors.numpy.load(content)["states"]
        if not _POSITION.fullmatch(metadata["position"]):
            raise ValueError("its position is no number of tokens")
        position, tokens = int(metadata["position"]), _token_ids(metadata["pending"])
        recent = _token_ids(metadata.get("recent", "[]"))[-RECENT:]  # older files have none
        others = metadata["weights"] != model.identity or states.shape != state_shape(model.checkpoint.config, 1)
        if not others:
            check_tokens(np.concatenate([recent, tokens]), model.checkpoint.config.vocab_size)
        if states.dtype != np.float32 or not np.isfinite(states).all():
            raise ValueError("its numbers are not float32, or not finite")
        if tokens.size == 0:
            raise ValueError("no text")
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if others:
        raise OtherWeightsError(
            "a state of other weights; load it with the checkpoint and the --weights it was saved with"
        )
    return SessionState(states if position else None, position, tuple(recent.tolist()), tuple(tokens.tolist()))


def _token_ids(text: str) -> np.ndarray:
    ids = json.loads(text)
    if not isinstance(ids, list) or not all(type(index) is int for index in ids):
        raise ValueError("its tokens are no list of ids")
    return np.asarray(ids, np.int64)


def _metadata(content: bytes) -> dict[str, str]:
    """What a safetensors file says of itself; source: the format's description, safetensors 0.5, README."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__") or {}


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST_STATE:
        raise ValueError(f"it has {size:,} bytes")
    return path.read_bytes()


def as_array(states: object) -> np.ndarray:
    """States of either backend in NumPy, float32."""
    return np.asarray(getattr(states, "cpu", lambda: states)(), np.float32)


def _is_state(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "np") as file:
            return {"weights", "position", "pending"} <= (file.metadata() or {}).keys()
    except (OSError, safetensors.SafetensorError):
        return False
