"""A session: its state is the text that was shown, wherever a turn ends, is cut off, saved or handed to the twin."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st

from parity.proof.problems.cases import perturbed_parameters
from spec import LiquidNetConfig, sampling
from spec.checkpoint.format import Checkpoint, write_checkpoint
from spec.checkpoint.tensors import pack
from spec.sampling import PROMPT_PIECE, Sampling, generate
from tools.cli import backends
from tools.generation.session import Session, open_model
from tools.tokenizer import build_tokenizer

BYTES = build_tokenizer("byte")
PROMPT = list(b"Say: ")
GREEDY = Sampling(temperature=0.0)
CONFIG = LiquidNetConfig(vocab_size=257, d_model=12, d_ff=16, n_layers=2, max_seq_len=16)


def scripted(text: bytes, end: bool = True):
    """A model that writes `text` after whatever it is told, then end of text; its state is all that it has absorbed."""
    script = [*text, *([256] if end else itertools.repeat(ord("."), 4))]

    def step(tokens_bt, states):
        states = (*(states or ()), *tokens_bt[0].tolist())
        logits = np.zeros((1, 257), np.float32)
        logits[0, script[min(max(len(states) - len(PROMPT), 0), len(script) - 1)]] = 1.0
        return logits, states

    return step


def started(step) -> Session:
    session = Session(step, BYTES)
    session.append("Say: ")
    return session


def text_of(session: Session) -> list[int]:
    return [*(session.states or ()), *session.pending]


def cut_at(text: str, stop: list[str]) -> str:
    """Brute force: the text up to the first of the strings that is complete."""
    for end in range(len(text) + 1):
        found = [text[:end].find(string) for string in stop if string in text[:end]]
        if found:
            return text[: min(found)]
    return text


letters = st.text(st.sampled_from("ab\u00e9\U0001f600\n:"), max_size=12)


# The state must not keep the first half of a character with which a stop string begins.
@example(text="a\u00e9", stop=["\u00e9"])
@given(text=letters, stop=st.lists(st.text(st.sampled_from("ab\u00e9:\n"), min_size=1, max_size=3), max_size=3))
def test_what_is_shown_is_what_the_state_holds(text, stop):
    """Any text, any stop strings, characters of several tokens: nothing of a stop string is shown or remembered."""
    session = started(scripted(text.encode()))
    shown = "".join(session.write(GREEDY, 100, stop))
    assert shown == cut_at(text, stop)
    assert text_of(session) == [*PROMPT, *shown.encode()]
    assert session.pending and session.position == len(session.states or ())


@given(text=letters, count=st.integers(1, 30))
def test_a_turn_that_ends_at_its_bound_goes_on(text, count):
    whole = text.encode()
    session = started(scripted(whole))
    first = "".join(session.write(GREEDY, count))
    assert text_of(session) == [*PROMPT, *whole[:count]]
    assert first == whole[:count].decode(errors="ignore")
    # Also where it ended in the middle of a character.
    assert first + "".join(session.write(GREEDY, 100)) == text
    assert text_of(session) == [*PROMPT, *whole]


def test_a_reply_that_is_cut_off_stays_what_was_shown():
    session = started(scripted(b"a long story", end=False))
    reply = session.write(GREEDY, 100)
    shown = "".join(itertools.islice(reply, 4))
    reply.close()
    assert shown == "a lo" and text_of(session) == [*PROMPT, *b"a lo"]
    session.append("!")
    next(session.write(GREEDY, 1))
    assert text_of(session)[:10] == [*PROMPT, *b"a lo!"]


def test_a_reply_that_is_cut_off_keeps_nothing_that_was_held_back():
    """What may begin a stop string was not shown, and whoever goes on has not seen it."""
    session = started(scripted(b"one\nUse", end=False))
    reply = session.write(GREEDY, 100, ["\nUser:"])
    shown = "".join(itertools.islice(reply, 6))
    reply.close()
    assert shown == "one" and text_of(session) == [*PROMPT, *b"one"] and session.pending


def test_a_stop_string_in_the_first_token_leaves_the_prompt_read():
    """It is not read again for the next turn: all but its last token."""
    read = []

    def step(tokens_bt, states):
        read.append(tokens_bt.shape[1])
        return scripted(b"z")(tokens_bt, states)

    session = Session(step, BYTES, prompt_piece=4)
    for turn in range(3):
        session.append("Say: again")
        assert "".join(session.write(Sampling(temperature=0.0, logit_bias=((122, 99.0),)), 9, ["z"])) == ""
        assert len(session.pending) == 1 and session.position == 10 * (turn + 1) - 1


def test_a_held_back_beginning_is_shown_in_the_end():
    assert "".join(started(scripted(b"one\nUse")).write(GREEDY, 100, ["\nUser:"])) == "one\nUse"
    assert "".join(started(scripted(b"one\nUsual")).write(GREEDY, 100, ["\nUser:"])) == "one\nUsual"


def test_a_long_prompt_is_absorbed_in_pieces():
    lengths = []

    def step(tokens_bt, states):
        lengths.append(tokens_bt.shape[1])
        return np.zeros((1, 257), np.float32), states

    next(generate(step, np.zeros((1, 2 * PROMPT_PIECE + 3), int), GREEDY))
    assert lengths == [PROMPT_PIECE, PROMPT_PIECE, 3]


def test_a_long_prompt_that_is_cut_off_is_absorbed_once():
    def step(tokens_bt, states):
        if states is not None and fails:
            fails.clear()
            raise KeyboardInterrupt
        return scripted(b"")(tokens_bt, states)

    fails, session = [True], Session(step, BYTES)
    session.append("x" * (PROMPT_PIECE + 5))
    with pytest.raises(KeyboardInterrupt):
        list(session.write(GREEDY, 1))
    list(session.write(GREEDY, 1))
    assert text_of(session) == [ord("x")] * (PROMPT_PIECE + 5)


def test_a_reply_that_is_cut_off_between_two_tokens_goes_on(monkeypatch):
    """As Ctrl-C does while the next token is drawn: all that was absorbed has been told or shown."""
    draw, drawn = sampling.sample, []

    def interrupted(*arguments):
        drawn.append(draw(*arguments))
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return drawn[-1]

    session, whole = started(scripted(b"a long story")), "a long story"
    monkeypatch.setattr(session, "_sampler", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(session.write(GREEDY, 100))
    assert session.pending and text_of(session) == [*PROMPT, *whole.encode()[:4]]
    assert "".join(session.write(GREEDY, 100)) == whole[4:]


def test_the_end_of_a_text_is_told():
    session = started(scripted(b"The end."))
    list(session.write(GREEDY, 8))
    assert not session.ended
    assert "".join(session.write(GREEDY, 8)) == "" and session.ended
    assert "".join(started(scripted(b"caf\xc3")).write(GREEDY, 8)) == "caf\ufffd"


def test_nothing_to_go_on_from():
    session = Session(scripted(b""), BYTES)
    with pytest.raises(ValueError, match="nothing to go on from"):
        next(session.write(GREEDY, 1))
    with pytest.raises(ValueError, match="not valid Unicode"):
        session.append("\ud800")
    assert session.is_empty


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("session") / "checkpoint"
    write_checkpoint(path, Checkpoint(CONFIG, perturbed_parameters(CONFIG, 3), tokenizer=BYTES.to_json()))
    return path


HERE = backends.installed()
WARM = Sampling(temperature=0.9, seed=4)


def turns(model, lines, state=None, path=None):
    """The texts of some turns; the state goes through a file before each where there is one."""
    session, texts = model.session(), []
    for line in lines:
        session.append(line)
        texts.append("".join(session.write(WARM, 12)))
        if path is not None:
            session.save(path, model)
            session = (state or model).session()
            session.load(path, state or model)
    return texts, session


LINES = ("Hello", ", you", "", " and so on, and so on, and so on")


@pytest.mark.parametrize("name", HERE)
def test_turns_are_one_text(checkpoint, name):
    """Saved and loaded between any two turns, the texts are the same; the file has one size whatever the length."""
    model = open_model(checkpoint, name)
    texts, session = turns(model, LINES)
    path = checkpoint.parent / f"{name}.safetensors"
    again, loaded = turns(model, LINES, path=path)
    assert again == texts and loaded.position == session.position and loaded.pending == session.pending
    size = path.stat().st_size
    session.append("x" * 300)
    list(session.write(WARM, 1))
    session.save(path, model)
    assert abs(path.stat().st_size - size) < 16


@pytest.mark.parametrize("name", HERE)
def test_a_turn_more_changes_no_text(checkpoint, name):
    """Cut into turns, the text is the one that a single turn writes: uniforms belong to positions."""
    model = open_model(checkpoint, name)
    one, cut = model.session(), model.session()
    one.append("Hello")
    cut.append("Hello")
    assert "".join(one.write(WARM, 30)) == "".join(piece for count in (7, 1, 22) for piece in cut.write(WARM, count))


@pytest.mark.skipif(len(HERE) < 2, reason="hands a state from one backend to the other")
def test_a_state_goes_on_in_the_other_backend(checkpoint, tmp_path):
    torch, jax = (open_model(checkpoint, name) for name in HERE)
    texts, _ = turns(torch, LINES)
    assert turns(jax, LINES)[0] == texts
    crossed, session = turns(torch, LINES[:1], state=jax, path=tmp_path / "state")
    for line in LINES[1:]:
        session.append(line)
        crossed.append("".join(session.write(WARM, 12)))
    assert crossed == texts


def test_half_a_character_is_not_taken_along(checkpoint, tmp_path):
    """What is loaded goes on as it would have, whatever the text before it ended with."""
    model, path = open_model(checkpoint), tmp_path / "state"
    kept = model.session()
    kept.append("Hello")
    kept.save(path, model)
    wanted = "".join(kept.write(WARM, 12))
    session = started(scripted("\u00e9".encode()))
    assert "".join(session.write(GREEDY, 1)) == ""
    session._step = model.step
    session.load(path, model)
    assert "".join(session.write(WARM, 12)) == wanted


def test_the_file_keeps_the_half_of_a_character(checkpoint, tmp_path):
    """A text may be kept after three of a character's four bytes, two of which are absorbed."""
    model, path = open_model(checkpoint), tmp_path / "state"
    session, first, others = model.session(), *np.split(np.frombuffer("\U0001f600".encode(), np.uint8), [1])
    session.append("Hello ")
    session.pending += first.tolist()
    session._step = writes(others.tolist(), model.step)
    assert "".join(session.write(GREEDY, 2)) == "" and session.pending == [others[1]]
    session.save(path, model)
    session = model.session()
    session.load(path, model)
    session._step = writes([int(others[2])], model.step)
    assert "".join(session.write(GREEDY, 1)) == "\U0001f600"


def writes(tokens, step):
    """A model that writes these."""
    following = iter(tokens)
    return lambda tokens_bt, states: (np.eye(1, 257, next(following, 0)), step(tokens_bt, states)[1])


def test_a_state_is_written_over_a_state_alone(checkpoint, tmp_path):
    model = open_model(checkpoint)
    session = model.session()
    session.append("Hello")
    session.save(tmp_path / "state", model)
    session.save(tmp_path / "state", model)
    (tmp_path / "novel.txt").write_text("my precious novel")
    for place, message in (
        ("novel.txt", "is no state that /save wrote"),
        ("", "is no state"),
        ("a/b", "is no directory"),
        (checkpoint / "states", "would lie in the checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            session.save(tmp_path / place, model)
    assert (tmp_path / "novel.txt").read_text() == "my precious novel"
    assert {path.name for path in tmp_path.iterdir()} == {"novel.txt", "state"}


@pytest.mark.parametrize("name", HERE)
def test_a_file_that_is_no_state_of_this_model_is_refused(checkpoint, tmp_path, name):
    model = open_model(checkpoint, name)
    session = model.session()
    with pytest.raises(ValueError, match="no text yet"):
        session.save(tmp_path / "none", model)
    session.append("Hello")
    list(session.write(WARM, 5))
    path = tmp_path / "state"
    session.save(path, model)
    before = session.position, list(session.pending)
    whole = path.read_bytes()
    with safetensors.safe_open(path, "np") as file:
        metadata, states = file.metadata(), file.get_tensor("states")
    wrong = {
        "cut off": whole[:-1],
        "text": b"no state at all",
        "empty": b"",
        "not finite": pack({"states": states * np.nan}, metadata),
        "another shape": pack({"states": states[:1]}, metadata),
        "float64": pack({"states": states.astype(np.float64)}, metadata),
        "other weights": pack({"states": states}, {**metadata, "weights": "0" * 64}),
        "no weights": pack({"states": states}, {k: v for k, v in metadata.items() if k != "weights"}),
        "no position": pack({"states": states}, {k: v for k, v in metadata.items() if k != "position"}),
        "negative": pack({"states": states}, {**metadata, "position": "-1"}),
        "nothing pending": pack({"states": states}, {**metadata, "pending": "[]"}),
        "unknown token": pack({"states": states}, {**metadata, "pending": "[257]"}),
        "unknown before": pack({"states": states}, {**metadata, "recent": "[257]"}),
        "nested before": pack({"states": states}, {**metadata, "recent": "[[1]]"}),
        "huge token": pack({"states": states}, {**metadata, "pending": json.dumps([2**70])}),
        "nested": pack({"states": states}, {**metadata, "pending": "[" * 100_000}),
        "words": pack({"states": states}, {**metadata, "pending": '{"a": 1}'}),
        "another tensor": pack({"state": states}, metadata),
    }
    for content in wrong.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            session.load(path, model)
    with pytest.raises(ValueError, match="cannot be read"):
        session.load(tmp_path / "missing", model)
    with pytest.raises(ValueError, match="no regular file"):
        session.load(tmp_path, model)
    assert (session.position, session.pending) == before
