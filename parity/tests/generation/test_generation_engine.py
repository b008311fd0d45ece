"""The generation engine: a text depends on its own request alone, to the bit; whoever leaves is not waited for."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from parity.proof.problems.cases import perturbed_parameters
from spec import LiquidNetConfig
from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.mixers.mingru import MinGRUConfig
from spec.sampling import Sampling
from tools.cli import backends
from tools.generation import engine as engines
from tools.generation.engine import Engine, is_batch_invariant
from tools.generation.request import EngineClosedError, Finished, GenerationRequest, Piece, PromptScored, QueueFullError
from tools.generation.session import open_model
from tools.tokenizer import build_tokenizer

BYTES = build_tokenizer("byte")
CONFIG = LiquidNetConfig(vocab_size=257, d_model=12, d_ff=16, n_layers=2, max_seq_len=16)
WAIT = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A LiquidNet and another recurrence, in each backend that is installed."""
    found = {}
    for name, config in (
        ("liquidnet", CONFIG),
        ("mingru", MinGRUConfig(vocab_size=257, d_model=12, d_ff=16, n_layers=2, max_seq_len=16)),
    ):
        path = tmp_path_factory.mktemp(name) / "checkpoint"
        write_checkpoint(path, Checkpoint(config, perturbed_parameters(config, 3), tokenizer=BYTES.to_json()))
        found |= {(name, backend): open_model(path, backend) for backend in backends.installed()}
    return found


@pytest.fixture(params=["torch", "jax"])
def model(models, request):
    if ("liquidnet", request.param) not in models:
        pytest.skip(f"{request.param} is not installed")
    return models["liquidnet", request.param]


@pytest.fixture
def engine(model):
    with closing(Engine(model, slots=4)) as one:
        yield one


class closing:
    def __init__(self, engine):
        self.engine = engine

    def __enter__(self):
        return self.engine

    def __exit__(self, *_):
        self.engine.close()


class Client:
    """Collects what the engine delivers."""

    def __init__(self, engine, request):
        self.events: queue.Queue = queue.Queue()
        self.ticket = engine.submit(request, self.events.put)
        self.pieces: list[Piece] = []
        self.scored: PromptScored | None = None

    def next(self):
        return self.events.get(timeout=WAIT)

    def finish(self) -> Finished:
        while not isinstance(event := self.next(), Finished):
            if isinstance(event, PromptScored):
                assert self.scored is None and not self.pieces
                self.scored = event
            else:
                self.pieces.append(event)
        return event

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)


def ids(text):
    return tuple(text.encode())


def request(text, seed=0, **fields):
    return GenerationRequest(ids(text), Sampling(temperature=0.9, top_p=0.95, seed=seed), **fields)


def endless(text):
    """It never draws an end of text."""
    return GenerationRequest(ids(text), Sampling(logit_bias=((256, -100.0),)), 1_000_000)


def written(model, asked):
    """The same by a session alone."""
    session = model.session()
    session.append(bytes(asked.prompt).decode())
    return "".join(session.write(asked.sampling, asked.max_tokens, asked.stop))


PROMPTS = ("a", "Once upon a time", "x" * 64, "y" * 65, "a longer one, " * 20, "Once upon a time there was")


@pytest.mark.parametrize("family", ["liquidnet", "mingru"])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_text_is_the_one_that_a_session_writes(models, family, backend):
    """Of many texts at once, of every length, with stop strings, some of whom leave: and again from the cache."""
    if (family, backend) not in models:
        pytest.skip(f"{backend} is not installed")
    model = models[family, backend]
    asked = [
        request(prompt, seed, max_tokens=5 + 3 * seed, stop=("e",) if seed % 3 == 2 else ())
        for seed, prompt in enumerate([*PROMPTS, *PROMPTS])
    ]
    alone = [written(model, one) for one in asked]
    assert len({*alone}) > len(PROMPTS)
    with closing(Engine(model, slots=5)) as engine:
        for again in range(2):
            leaving = [Client(engine, endless("I leave")) for _ in range(2)]
            clients = [Client(engine, one) for one in asked]
            for client in leaving:
                client.ticket.cancel()
            finished = [client.finish() for client in clients]
            assert [client.text for client in clients] == alone
            assert [one.reason for one in map(Client.finish, leaving)] == ["cancelled"] * 2
            assert {one.reason for one in finished} == {"stop", "length"}
            assert [one.prompt_tokens for one in finished] == [len(one.prompt) for one in asked]
            for one, client in zip(finished, asked, strict=True):
                if again:
                    assert one.cached_tokens == (len(client.prompt) - 1 if len(client.prompt) > 64 else 0)
        stats = engine.stats()
        assert stats.active == stats.waiting == 0
        assert stats.requests["cancelled"] == 4 and sum(stats.requests.values()) == 2 * (len(asked) + 2)
        assert stats.cached_tokens > 0 and stats.cache_entries > 0 and stats.cache_bytes > 0


@pytest.mark.parametrize("size", [65, 66, 72, 127, 128, 129, 130, 192])
def test_what_the_cache_holds_changes_no_bit(model, size):
    """Of a prompt that another one began like: its last pieces are those that it has when it is read whole."""
    begun, text = "the quick brown fox jumps over the lazy dog and " * 4, "".join(map(chr, range(40, 120))) * 3
    asked = [GenerationRequest(ids((begun[:64] + rest)[:size]), keep_state=True) for rest in (text[::-1], text)]
    asked = [replace(one, sampling=Sampling(seed=2), max_tokens=3) for one in asked]
    with closing(Engine(model)) as filled, closing(Engine(model, cache_bytes=0)) as empty:
        Client(filled, asked[0]).finish()
        one, other = Client(filled, asked[1]).finish(), Client(empty, asked[1]).finish()
    assert one.cached_tokens >= 64 and other.cached_tokens == 0
    assert one.state is not None and other.state is not None and one.state.pending == other.state.pending
    np.testing.assert_array_equal(one.state.states, other.state.states)


def test_texts_are_written_together(models):
    """Steps are shared where the method is batch-invariant: as many as the longest text has."""
    model = models.get(("liquidnet", "torch"))
    if model is None or not model.batch_invariant:
        pytest.skip("needs torch and Numba")
    with closing(Engine(model, slots=8)) as engine:
        held = threading.Event()
        # A first one holds the engine's thread until all have come.
        engine.submit(request("a", max_tokens=1), lambda event: held.wait(WAIT))
        clients = [Client(engine, request("ab", seed, max_tokens=40)) for seed in range(7)]
        held.set()
        for client in clients:
            client.finish()
        assert 40 <= engine.stats().steps <= 45


@pytest.mark.parametrize("asked", [True, False], ids=["batch-invariant", "any batch"])
def test_rows_are_alone_where_a_batch_would_change_them(models, asked):
    """Unless nobody asks for texts that are the same beside others."""
    model, rows = next(iter(models.values())), []

    def step(tokens_bt, states):
        rows.append(len(tokens_bt))
        return model.step(tokens_bt, states)

    with closing(Engine(replace(model, step=step, batch_invariant=False), slots=4, batch_invariant=asked)) as engine:
        held = threading.Event()
        engine.submit(request("a", max_tokens=1), lambda event: held.wait(WAIT))
        clients = [Client(engine, endless("ab")) for _ in range(3)]
        held.set()
        for client in clients:
            assert isinstance(client.next(), Piece)
        for client in clients:
            client.ticket.cancel()
            client.finish()
    assert (max(rows) == 1) == asked


def test_a_method_that_only_claims_to_be_batch_invariant_is_found_out(models):
    model = next(iter(models.values()))

    def step(tokens_bt, states):
        logits_bv, states = model.step(tokens_bt, states)
        return logits_bv * (1.0 + 1e-7 * len(tokens_bt)), states

    assert not is_batch_invariant(replace(model, step=step, batch_invariant=True))
    assert not is_batch_invariant(replace(model, batch_invariant=False))


def test_the_prompt_is_scored(model, engine):
    """How likely each token was, against the log-softmax of the whole text's logits; the most likely ones too."""
    text = "It was a dark night, and the wind blew over the roofs of the town. It rained in torrents."
    client = Client(engine, replace(request(text, max_tokens=3), logprobs=2, prompt_logprobs=True))
    finished = client.finish()
    assert finished.completion_tokens == 3 and client.scored is not None
    tokens = [*client.scored.tokens, *(token for piece in client.pieces for token in piece.tokens)]
    whole = np.array([[*ids(text), *(token.token for token in tokens[len(text) :])]])
    assert [token.token for token in tokens] == whole[0].tolist()
    logits = model.score(whole, None)[0][0].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert tokens[0].logprob is None and tokens[0].top == ()
    for before, token in enumerate(tokens[1:]):
        assert token.logprob == pytest.approx(expected[before, token.token], abs=1e-4)
        best = np.argsort(-expected[before], kind="stable")[:2]
        assert [index for index, _ in token.top] == best.tolist()
        assert token.top[0][1] == pytest.approx(expected[before].max(), abs=1e-4)
    assert client.text == written(model, request(text, max_tokens=3))


@pytest.mark.parametrize("prompt", ["a", "ab", "a" * 64, "b" * 130])
def test_a_prompt_is_scored_and_nothing_written(model, engine, prompt):
    client = Client(engine, replace(request(prompt, max_tokens=0), prompt_logprobs=True))
    finished = client.finish()
    assert client.scored is not None and len(client.scored.tokens) == len(prompt)
    assert finished.reason == "length" and finished.completion_tokens == 0 and not client.text


def test_a_text_goes_on_from_a_state(model, engine):
    """In two requests, the state handed over in between: as in a session of two turns; scored, too."""
    session = model.session()
    session.append("Hello")
    first = "".join(session.write(Sampling(seed=5), 7))
    session.append(" world")
    second = "".join(session.write(Sampling(seed=6), 9))
    one = Client(engine, GenerationRequest(ids("Hello"), Sampling(seed=5), 7, keep_state=True))
    state = one.finish().state
    assert state is not None and state.tokens == len("Hello") + 7
    two = Client(engine, GenerationRequest(ids(" world"), Sampling(seed=6), 9, state=state))
    assert two.finish().cached_tokens == 0
    assert (one.text, two.text) == (first, second)
    three = Client(engine, GenerationRequest(ids(" world"), Sampling(seed=6), 0, state=state, prompt_logprobs=True))
    three.finish()
    assert three.scored is not None
    assert [token.token for token in three.scored.tokens] == [*ids(" world")]
    assert all(token.logprob is not None for token in three.scored.tokens)


def test_nothing_but_the_state_is_wanted(engine):
    """0 tokens: the prompt is absorbed but for its last token, and the state goes on as if it had been read at once."""
    absorbed = Client(engine, GenerationRequest(ids("Hello world" * 9), max_tokens=0, keep_state=True)).finish()
    assert absorbed.reason == "length" and absorbed.state is not None and absorbed.state.pending == (ord("d"),)
    onward = Client(engine, GenerationRequest((), Sampling(seed=1), 8, state=absorbed.state))
    whole = Client(engine, GenerationRequest(ids("Hello world" * 9), Sampling(seed=1), 8))
    assert onward.finish().reason == whole.finish().reason == "length"
    assert onward.text == whole.text


def test_penalties_and_biases(model, engine):
    """A bias of 100 decides alone, until the penalties of what it has written do."""
    token = ord("q")
    plain = Sampling(temperature=0.0, logit_bias=((token, 100.0),))
    client = Client(engine, GenerationRequest(ids("Say"), plain, 5))
    client.finish()
    assert client.text == "qqqqq"
    varied = Client(engine, GenerationRequest(ids("Say"), Sampling(temperature=0.0, frequency_penalty=2.0), 40))
    same = Client(engine, GenerationRequest(ids("Say"), Sampling(temperature=0.0), 40))
    varied.finish(), same.finish()
    assert len({*varied.text}) > len({*same.text})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GenerationRequest(()), "the prompt is empty"),
        (GenerationRequest((1, 257)), r"\[0, 257\), got 257"),
        (GenerationRequest((-1,)), r"\[0, 257\), got -1"),
        (GenerationRequest((1,), max_tokens=-1), "max_tokens must be 0 or more, got -1"),
        (GenerationRequest((1,), Sampling(logit_bias=((257, 1.0),))), "names token 257; the vocabulary has 257"),
    ],
)
def test_what_cannot_be_is_refused_at_once(engine, bad, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(bad, lambda event: None)


def test_a_full_queue_refuses_and_those_who_leave_it_make_room(model):
    with closing(Engine(model, slots=1, queue=2)) as engine:
        first = Client(engine, endless("a"))
        assert isinstance(first.next(), Piece)  # it has the slot
        waiting = [Client(engine, request("b", max_tokens=1)) for _ in range(2)]
        with pytest.raises(QueueFullError) as caught:
            engine.submit(request("c", max_tokens=1), lambda event: None)
        assert caught.value.retry_after >= 1
        waiting[0].ticket.cancel()
        assert waiting[0].finish().reason == "cancelled"
        later = Client(engine, request("d", max_tokens=1))
        first.ticket.cancel()
        assert first.finish().reason == "cancelled"
        assert waiting[1].finish().reason == later.finish().reason == "length"


def test_one_fault_is_not_the_others(model, monkeypatch):
    """A logit that is not finite, a step that fails, a client whose handler raises: only they end, and say why."""
    with closing(Engine(model, slots=4)) as engine:
        right = request("fine", 3, max_tokens=30)
        alone = written(model, right)

        def raises(event):
            raise RuntimeError("a client's handler")

        monkeypatch.setattr(engines._log, "exception", lambda *_: None)
        monkeypatch.setattr(engines._log, "error", lambda *_, **__: None)
        engine.submit(request("broken handler", max_tokens=50), raises)
        client = Client(engine, right)
        assert client.finish().reason == "length" and client.text == alone

        def fails(tokens_bt, states):
            if tokens_bt.shape[1] > 1:
                raise RuntimeError("the device is gone")
            return model.step(tokens_bt, states)

        engine.model = replace(model, step=fails)
        failed, client = (
            Client(engine, request("two tokens", max_tokens=5)),
            Client(engine, request("z", 1, max_tokens=9)),
        )
        finished = failed.finish()
        assert finished.reason == "error" and finished.message == "the device is gone"
        assert client.finish().reason == "length" and client.text == written(model, request("z", 1, max_tokens=9))

        def not_finite(tokens_bt, states):
            logits_bv, states = model.step(tokens_bt, states)
            return logits_bv + np.nan, states

        class Device:
            """States that have been computed, it seems, until they are looked at."""

            def cpu(self):
                raise RuntimeError("the device was gone before")

        engine.model = replace(model, step=lambda tokens_bt, states: (model.step(tokens_bt, None)[0], Device()))
        for prompt in ("a", "ab"):
            finished = Client(engine, request(prompt, max_tokens=5)).finish()
            assert finished.reason == "error" and finished.message == "the device was gone before"
        engine.model = replace(model, step=not_finite)
        finished = Client(engine, request("a", max_tokens=5)).finish()
        assert finished.reason == "error" and "not finite" in finished.message


def test_a_thread_that_fails_leaves_nobody_waiting(model, monkeypatch):
    monkeypatch.setattr(engines._log, "exception", lambda *_: None)
    engine = Engine(model, slots=1)
    assert engine.stats().alive
    first, waits = Client(engine, endless("a")), Client(engine, endless("b"))
    assert isinstance(first.next(), Piece)
    monkeypatch.setattr(engine, "_step_all", lambda: 1 // 0)
    assert [first.finish().reason, waits.finish().reason] == ["error", "error"]
    engine.close()
    assert not engine.stats().alive
    with pytest.raises(EngineClosedError, match="has failed"):
        engine.submit(request("c"), lambda event: None)


def test_closing_lets_texts_end_and_cuts_off_the_rest(model):
    engine = Engine(model, slots=2)
    long = Client(engine, endless("a"))
    short = Client(engine, request("b", max_tokens=3))
    waits = Client(engine, endless("c"))
    assert isinstance(long.next(), Piece)
    began = time.monotonic()
    engine.close(grace=1.0)
    assert 0.5 < time.monotonic() - began < 30
    assert [client.finish().reason for client in (long, short, waits)] == ["shutdown", "length", "shutdown"]
    with pytest.raises(EngineClosedError, match="is closed"):
        engine.submit(request("d"), lambda event: None)
    idle = Engine(model)
    began = time.monotonic()
    idle.close(grace=30.0)
    assert time.monotonic() - began < 10
