"""The generation engine: one thread owns the device, and many texts are written at once (continuous batching).

    slots   a request joins and leaves between two steps; those that find none wait in a bounded queue
    step    all texts that wait for one token take it together
    prompt  is absorbed in pieces between two steps, so that no text waits for longer than a piece

A text depends on its own request alone, to the bit: on no text beside it, and not on what the prefix cache holds.
Where a decode method is not batch-invariant, each row is a step of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from spec.mixers import state_shape
from spec.sampling import StepInput, StepOutput, check_tokens, logprobs, piece_starts
from tools.generation.prefix_cache import PrefixCache
from tools.generation.request import (
    EngineClosedError,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Piece,
    PromptScored,
    QueueFullError,
    TokenLogprobs,
)
from tools.generation.session import OpenModel, Session, as_array

Deliver = Callable[[Event], None]
Observe = Callable[[Session, list[int]], None]
#: Rows of a step at most: those up to which decoding on a processor is one compiled function.
ROWS = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start, and what is there now.

    Args:
        slots, active, waiting: texts that can be written at once, that are, and that wait.
        cache_bytes, cache_entries: of the prefix cache.
        prompt_tokens, cached_tokens, completion_tokens: read, of these found in the cache, and drawn.
        requests: finished ones by their reason.
        steps, prompt_pieces: taken.
        alive: whether its thread runs, or has ended as it was told to.
    """

    slots: int
    active: int
    waiting: int
    cache_bytes: int
    cache_entries: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    requests: dict[str, int]
    steps: int
    prompt_pieces: int
    alive: bool = True


class Ticket:
    """A request that was taken; `cancel` may be called from any thread, at any time."""

    def __init__(self, request: GenerationRequest, deliver: Deliver, observe: Observe | None):
        self.request, self.deliver, self.observe = request, deliver, observe
        self.cancelled = False

    def cancel(self) -> None:
        """The client has left: `Finished("cancelled")` follows, unless another one has come already."""
        self.cancelled = True


class Engine:
    """Writes many texts at once with one model.

    Args:
        model: that writes.
        slots: texts at once.
        queue: requests that may wait.
        cache_bytes: of the prefix cache.
        batch_invariant: whether texts are to be the same, to the bit, whatever is written beside them; where the decode
            method is not batch-invariant each text takes a step of its own for that.
    """

    def __init__(
        self, model: OpenModel, slots: int = 16, queue: int = 64, cache_bytes: int = 64 << 20,
        batch_invariant: bool = True,
    ):  # fmt: skip
        self.model, self.slots, self._queue = model, slots, queue
        self._rows, self._batch_invariant = ROWS, batch_invariant
        self._cache = PrefixCache(cache_bytes)
        self._waiting: deque[Ticket] = deque()
        self._texts: list[_Text] = []
        self._changed = threading.Condition()
        self._closing: float | None = None
        self._failed = False
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._turn = 0
        self._thread = threading.Thread(target=self._run, name="generation engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, deliver: Deliver, observe: Observe | None = None) -> Ticket:
        """Take a request.

        Args:
            request: what to write.
            deliver: called with each event, on the engine's thread, `Finished` last; it must return at once.
            observe: called after each step, on the engine's thread, with the session, whose states it may look at, and
                the tokens that it has absorbed.

        Raises:
            QueueFullError: too many are waiting.
            EngineClosedError: the engine is closing, or has failed.
            ValueError: a request that cannot be: no token to go on from, or one outside the vocabulary.
        """
        vocabulary = self.model.checkpoint.config.vocab_size
        if request.prompt_logprobs and self.model.score is None:
            raise ValueError("this model does not score prompts; ask without the logprobs of the prompt")
        if not request.prompt and request.state is None:
            raise ValueError("the prompt is empty; give at least one token")
        if request.max_tokens < 0:
            raise ValueError(f"max_tokens must be 0 or more, got {request.max_tokens}")
        check_tokens(np.asarray([request.prompt], np.int64), vocabulary)
        for token, _ in request.sampling.logit_bias:
            if token >= vocabulary:
                raise ValueError(f"logit_bias names token {token}; the vocabulary has {vocabulary}")
        ticket = Ticket(request, deliver, observe)
        with self._changed:
            if self._closing is not None:
                raise EngineClosedError("the engine has failed" if self._failed else "the engine is closed")
            if len(self._waiting) >= self._queue:
                raise QueueFullError(len(self._waiting), 1 + len(self._waiting) // self.slots)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def close(self, grace: float = 0.0, wait: bool = True) -> None:
        """Take no more, let what is there go on for `grace` seconds, and end the rest with "shutdown"."""
        with self._changed:
            self._closing = time.monotonic() + grace
            self._changed.notify()
        if wait:
            self._thread.join()

    def stats(self) -> EngineStats:
        """Counts, as of now."""
        with self._changed:
            counts, reasons = Counter(self._counts), dict(self._reasons)
            return EngineStats(
                self.slots, len(self._texts), len(self._waiting), self._cache.bytes, len(self._cache),
                counts["prompt"], counts["cached"], counts["completion"], reasons, counts["steps"], counts["pieces"],
                not self._failed,
            )  # fmt: skip

    def _run(self) -> None:
        try:
            # On this thread, which is to be the only one that computes.
            if self._batch_invariant and not is_batch_invariant(self.model):
                self._rows = 1
            while self._admit():
                for text in [text for text in self._texts if text.ticket.cancelled]:
                    self._end(text, "cancelled")
                self._absorb_piece()
                self._step_all()
        except BaseException:  # a fault of ours: nobody must wait for this thread
            self._failed = True
            _log.exception("the engine has failed")
            with self._changed:
                self._closing = time.monotonic()
                left = [*self._waiting, *(text.ticket for text in self._texts)]
            for ticket in left:
                self._finish(
                    ticket, Finished("error", len(ticket.request.prompt), 0, 0, message="the engine has failed")
                )

    def _admit(self) -> bool:
        """Fill free slots, and wait where there is nothing to do; false once the engine is closed."""
        with self._changed:
            while not self._waiting and not self._texts and self._closing is None:
                self._changed.wait()
            over = self._closing is not None and (
                time.monotonic() >= self._closing or not (self._waiting or self._texts)
            )
            gone = [ticket for ticket in self._waiting if over or ticket.cancelled]
            self._waiting = deque(ticket for ticket in self._waiting if ticket not in gone)
            free = 0 if over else min(self.slots - len(self._texts), len(self._waiting))
            joining = [_Text(self._waiting.popleft(), self.model, self._cache) for _ in range(free)]
            self._texts += joining
        for ticket in gone:
            self._finish(ticket, Finished("shutdown" if over else "cancelled", len(ticket.request.prompt), 0, 0))
        if over:
            for text in [*self._texts]:
                self._end(text, "shutdown")
        for text in joining:
            self._advance(text, None)
        return not over

    def _absorb_piece(self) -> None:
        """One piece of one prompt, of each text in turn."""
        reading = [text for text in self._texts if text.needs.tokens_bt.shape[1] > 1 or text.scores]
        if not reading:
            return
        self._turn += 1
        text = reading[self._turn % len(reading)]
        try:
            output = self._piece_read(text)
        except Exception as error:  # the device's; whatever it is, the client must hear of it and the others go on
            self._fail(text, error)
            return
        self._counts["pieces"] += 1
        self._advance(text, output)

    def _piece_read(self, text: _Text) -> StepOutput:
        if not text.scores:
            logits_bv, states = self.model.step(*text.needs)
            return logits_bv, as_array(states)
        assert self.model.score is not None
        logits_btv, states = self.model.score(*text.needs)
        text.score(logits_btv)
        return logits_btv[:, -1], as_array(states)

    def _step_all(self) -> None:
        """One token of every text that waits for that, in as few steps as there are rows for."""
        ready = [text for text in self._texts if text.needs.tokens_bt.shape[1] == 1 and not text.scores]
        for start in range(0, len(ready), self._rows):
            texts = ready[start : start + self._rows]
            try:
                logits_bv, states = self.model.step(
                    np.concatenate([text.needs.tokens_bt for text in texts]),
                    np.concatenate([self._states(text) for text in texts], axis=1),
                )
                states = as_array(states)
            except Exception as error:  # as above
                for text in texts:
                    self._fail(text, error)
                continue
            self._counts["steps"] += 1
            for row, text in enumerate(texts):
                # A copy: what a text keeps must not hold on to the states of those beside it.
                self._advance(text, (logits_bv[row : row + 1], states[:, row : row + 1].copy()))

    def _states(self, text: _Text) -> np.ndarray:
        states = text.needs.states
        return np.zeros(state_shape(self.model.checkpoint.config, 1), np.float32) if states is None else states

    def _advance(self, text: _Text, output: StepOutput | None) -> None:
        """Go on with a text to its next step, and hand over what has been written."""
        try:
            while True:
                event = text.turn.send(output)
                if output is not None and text.ticket.observe is not None:
                    text.ticket.observe(text.session, text.needs.tokens_bt[0].tolist())
                output = None
                if (scored := text.scored()) is not None:
                    self._deliver(text.ticket, scored)
                if isinstance(event, StepInput):
                    text.needs = event
                    text.keep_prefix(self._cache)
                    return
                if event.text or event.tokens:
                    self._deliver(text.ticket, event)
        except StopIteration as stop:
            self._end(text, stop.value)
        except Exception as error:  # a logit that is not finite, say
            self._fail(text, error)

    def _fail(self, text: _Text, error: Exception) -> None:
        _log.error("a text could not be written", exc_info=not isinstance(error, ValueError))
        self._end(text, "error", str(error))

    def _end(self, text: _Text, reason: FinishReason, message: str = "") -> None:
        text.turn.close()
        with self._changed:
            self._texts.remove(text)
        self._finish(text.ticket, text.finished(reason, message))

    def _finish(self, ticket: Ticket, finished: Finished) -> None:
        self._reasons[finished.reason] += 1
        self._counts["prompt"] += finished.prompt_tokens
        self._counts["cached"] += finished.cached_tokens
        self._counts["completion"] += finished.completion_tokens
        self._deliver(ticket, finished)

    def _deliver(self, ticket: Ticket, event: Event) -> None:
        try:
            ticket.deliver(event)
        except Exception:  # one client's fault is not the others'
            _log.exception("an event could not be delivered")
            ticket.cancel()


def is_batch_invariant(model: OpenModel) -> bool:
    """Whether a step gives a row the same bits alone and among others: the method says so, and it is tried here.

    A compiler may have made another order of sums for several rows on this machine, which no other one has shown.
    """
    if not model.batch_invariant:
        return False
    tokens_bt = np.arange(ROWS)[:, None] % model.checkpoint.config.vocab_size
    logits_bv, states = model.step(tokens_bt, None)
    logits_bv, states = model.step(tokens_bt, states)
    alone = []
    for row in range(ROWS):
        _, one = model.step(tokens_bt[row : row + 1], None)
        alone.append(model.step(tokens_bt[row : row + 1], one))
    same = all(np.array_equal(logits_bv[row], one[0]) for row, (one, _) in enumerate(alone))
    return same and np.array_equal(as_array(states), np.concatenate([as_array(one) for _, one in alone], axis=1))


class _Text:
    """A text that is being written.

    Args:
        ticket: its request.
        model: that writes it.
        cache: states of prompts that began alike.
    """

    def __init__(self, ticket: Ticket, model: OpenModel, cache: PrefixCache):
        request = ticket.request
        self.ticket, self._prompt = ticket, request.prompt
        self.session: Session = model.session()
        #: Whether tokens of the prompt are still to be scored, which takes the logits of every one.
        self.scores = request.prompt_logprobs
        self._scored: list[TokenLogprobs] = []
        self.cached = 0
        if request.state is not None:
            self.session.go_on_from(request.state)
        elif not self.scores:
            piece = model.prompt_piece
            ends = [] if piece is None else piece_starts(len(self._prompt), piece)[1:]
            self.cached, states = cache.find(self._prompt, ends)
            if states is not None:
                self.session.go_on_from_prefix(states, self._prompt[: self.cached])
        self.session.pending = [*self.session.pending, *self._prompt[self.cached :]]
        self.turn: Generator[StepInput | Piece, StepOutput | None, FinishReason] = self.session.turn(
            request.sampling, request.max_tokens, request.stop, request.logprobs
        )
        self.needs: StepInput

    def keep_prefix(self, cache: PrefixCache) -> None:
        """Keep the state, where it is one of the prompt's beginning, read as any prompt that begins alike would be."""
        request, position = self.ticket.request, self.session.position
        if request.state is None and not request.prompt_logprobs and self.cached < position < len(self._prompt):
            cache.keep(self._prompt[:position], as_array(self.session.states))

    def score(self, logits_btv: np.ndarray) -> None:
        """How likely each token was that follows those just read, which are pending still."""
        count, pending = logits_btv.shape[1], self.session.pending
        for logits_v, token in zip(logits_btv[0], pending[1 : count + 1], strict=False):
            alternatives = self.ticket.request.logprobs or 0
            self._scored.append(TokenLogprobs(token, *logprobs(logits_v, token, alternatives)))

    def scored(self) -> PromptScored | None:
        """Once: that all tokens of the prompt have been scored."""
        if not self.scores or len(self.session.pending) > 1:
            return None
        self.scores = False
        first = [TokenLogprobs(self._prompt[0], None)] if len(self._scored) < len(self._prompt) else []
        return PromptScored((*first, *self._scored[len(self._scored) + len(first) - len(self._prompt) :]))

    def finished(self, reason: FinishReason, message: str) -> Finished:
        """What is said in the end."""
        state = self.session.state() if self.ticket.request.keep_state else None
        return Finished(reason, len(self._prompt), self.cached, self.session.drawn, state, message)
