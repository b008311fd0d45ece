"""A session: a text that a user and a model write in turns, held as one recurrent state, whatever its length."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors

from spec.checkpoint.files import new_file, require_file
from spec.checkpoint.format import Checkpoint
from spec.checkpoint.quantization import Weights, rounded
from spec.checkpoint.tensors import pack
from spec.mixers import state_shape
from spec.sampling import Sampling, Step, check_tokens, generate
from tools import convert
from tools.cli import backends
from tools.cli.destination import require_outside_checkpoints
from tools.generation.stop_strings import StopStringFilter
from tools.tokenizer import Tokenizer, parse_tokenizer

#: States, of the backend's own kind, the number of tokens they have absorbed, the last of these, and the tokens after.
Snapshot = tuple[object, int, tuple[int, ...], list[int]]
#: Absorbed tokens that are kept, for the text of those that follow depends on them.
RECENT = 64
#: Of these, in a file: with the one that is pending, a character of four bytes that the text ends in the middle of.
RECENT_SAVED = 3


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A checkpoint that is ready to write: any number of sessions may use it at once, from any thread.

    Args:
        backend: it computes with.
        checkpoint: configuration and weights, without moments.
        tokenizer: the checkpoint's.
        step: (tokens [b, t], states or None) -> (logits of the last position [b, v], states).
    """

    backend: backends.Backend
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    step: Step

    @cached_property
    def identity(self) -> str:
        """A checksum of the weights: a state means nothing to other ones."""
        digest = hashlib.sha256()
        for path, array in sorted(self.checkpoint.parameters.items()):
            digest.update(path.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def session(self) -> Session:
        """A new text."""
        return Session(self.step, self.tokenizer)


def open_model(path: Path, backend: backends.Backend | None = None, weights: Weights = "float32") -> OpenModel:
    """Load a checkpoint to write with.

    Args:
        path: a run, a checkpoint directory, a .pt or a .msgpack file.
        backend: by default the first one installed.
        weights: what the matrices are rounded to; float32 leaves them as they are.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, cannot be rounded, or holds no tokenizer.
    """
    backend = backend or backends.default()
    checkpoint = replace(convert.read(path), moments={}, states=None)
    if weights != "float32":
        checkpoint = replace(checkpoint, parameters=rounded(checkpoint.parameters, weights))
    if checkpoint.tokenizer is None:
        raise ValueError(f"{path} holds no tokenizer; write with a checkpoint that `liquidnet train` wrote")
    model = backends.load(backend, "model").build(checkpoint.config)
    if backend == "torch":  # JAX places arrays itself
        model.to(backends.load(backend, "ops.devices").default_device())
    backends.load(backend, "checkpoint.native").load_parameters(model, checkpoint.parameters)
    step, lock = backends.load(backend, "ops.decode").make_step(model, weights=weights), threading.Lock()

    def locked_step(tokens_bt: np.ndarray, states: object) -> tuple[np.ndarray, object]:
        with lock:  # a recorded graph has one set of buffers
            return step(tokens_bt, states)

    return OpenModel(backend, checkpoint, parse_tokenizer(checkpoint.tokenizer), locked_step)


class Session:
    """One text that grows by turns. One seed and the same turns give the same text on either backend, near-ties aside.

    Args:
        step: of a model.
        tokenizer: the model's.
    """

    def __init__(self, step: Step, tokenizer: Tokenizer):
        self._step, self.tokenizer = step, tokenizer
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
        #: Whether the last turn met an end-of-text token.
        self.ended = False

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
        if not self.pending:
            raise ValueError("there is nothing to go on from; give at least one character")
        try:
            yield from self._generate(sampling, max_tokens, stop)
        finally:
            if not self.pending:  # no token was drawn after the last step, or none that belongs to the text
                self._restore(self._previous)

    def _generate(self, sampling: Sampling, max_tokens: int, stop: Sequence[str]) -> Iterator[str]:
        # What the turn appends is the text of all tokens without that of those before: a decoder may drop the space of
        # the first one, and the last turn may have ended in the middle of a character.
        decoder = self.tokenizer.stream_decoder(self._context)
        visible = StopStringFilter(stop, self._snapshot())
        self.ended = False
        tokens = generate(self._absorb, np.asarray([self.pending]), sampling, self.states, self.position)
        for _, tokens_b in zip(range(max_tokens), tokens, strict=False):
            token = int(tokens_b[0])
            if token == self.tokenizer.end_of_text_id:
                self.ended = True
                break
            self.pending = [token]
            piece = decoder.push(token)
            # A token may complete one character and begin another: going back must not leave the half of it.
            yield visible.push(piece, None if decoder.is_unfinished else self._snapshot())
            if visible.stopped:
                snapshot, text = visible.before_stop()
                self._restore(snapshot)
                self.pending = self.pending + self.tokenizer.encode_after(self._context, text)
                return
        # Half of a character that the text ends with is never completed; one that a turn ends with may be.
        yield visible.rest() + (decoder.flush() if self.ended else "")

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
        states = (
            np.zeros(state_shape(model.checkpoint.config, 1), np.float32)
            if self.states is None
            else as_array(self.states)
        )
        metadata = {
            "weights": model.identity,
            "position": str(self.position),
            "recent": json.dumps(self._recent[-RECENT_SAVED:]),
            "pending": json.dumps(self.pending),
        }
        with new_file(path) as temporary:
            temporary.write_bytes(pack({"states": states}, metadata))

    def load(self, path: Path, model: OpenModel) -> None:
        """Go on from what `save` wrote, on either backend.

        Raises:
            ValueError: the file is none of these, is damaged, or belongs to other weights; the session stays as it was.
        """
        require_file(path)
        try:
            with safetensors.safe_open(path, "np") as file:
                metadata, states = file.metadata() or {}, file.get_tensor("states")
            position, pending = int(metadata["position"]), json.loads(metadata["pending"])
            tokens = np.asarray(pending, np.int64)
            recent = np.asarray(json.loads(metadata.get("recent", "[]")), np.int64)  # older files have none
            others = metadata["weights"] != model.identity or states.shape != state_shape(model.checkpoint.config, 1)
            if not others:
                check_tokens(np.concatenate([recent, tokens]), model.checkpoint.config.vocab_size)
            if states.dtype != np.float32 or not np.isfinite(states).all():
                raise ValueError("its numbers are not float32, or not finite")
            if tokens.ndim != 1 or tokens.size == 0 or position < 0:
                raise ValueError("no text")
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{path} is no state that /save wrote, or is damaged ({error}); name another file"
            ) from error
        if others:
            raise ValueError(
                f"{path} is a state of other weights; load it with the checkpoint and the --weights it was saved with"
            )
        self._restore((states if position else None, position, tuple(recent.tolist()), tokens.tolist()))

    def _absorb(self, tokens_bt: np.ndarray, states: object) -> tuple[np.ndarray, object]:
        self._previous = self._snapshot()
        logits_bv, states = self._step(tokens_bt, states)
        count = tokens_bt.shape[1]
        self._recent = (*self._recent, *self.pending[:count][-RECENT:])[-RECENT:]
        self.states, self.position, self.pending = states, self.position + count, self.pending[count:]
        return logits_bv, states

    def _snapshot(self) -> Snapshot:
        return self.states, self.position, self._recent, self.pending

    def _restore(self, snapshot: Snapshot) -> None:
        self.states, self.position, self._recent, self.pending = snapshot

    @property
    def _context(self) -> list[int]:
        """The last tokens of the text."""
        return [*self._recent, *self.pending]


def as_array(states: object) -> np.ndarray:
    """States of either backend in NumPy, float32."""
    return np.asarray(getattr(states, "cpu", lambda: states)(), np.float32)


def _is_state(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "np") as file:
            return {"weights", "position", "pending"} <= (file.metadata() or {}).keys()
    except (OSError, safetensors.SafetensorError):
        return False
