"""What lies behind the page of `liquidnet ui`: texts that are those of generate, and that never mix."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.suite.support.ui import CONFIG, GREEDY, alone, write_run
from spec.checkpoint.format import Checkpoint
from spec.sampling import Sampling
from tools.cli import backends
from tools.generation.session import OpenModel
from tools.tokenizer import build_tokenizer
from tools.ui.controller import BOTH, TEXTS, Desk
from tools.ui.generation_task import PROMPT_CHARACTERS, WINDOW, Order, Writing, agreement
from tools.ui.models import Catalogue, Opened

BACKENDS = backends.installed()


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("ui") / "tale")


@pytest.fixture
def desk(handed_over: Path) -> Desk:
    return Desk(Catalogue((handed_over,)), max_length=4000)


def order(path: Path, prompt: str = "Once", max_tokens: int = 40, names=(BACKENDS[0],), sampling=GREEDY) -> Order:
    return Order(path, names, prompt, sampling, max_tokens)


def finish(writing: Writing, order: Order, onward: bool = False) -> str:
    return list(writing.write(order, onward))[-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_text_is_that_of_generate(desk, handed_over, backend):
    """However it is looked at: the picture's states are computed beside the text's."""
    writing = desk.text_of("one")
    for prompt in ("Once", "x", "A prompt that is longer than the picture is wide. " * 4):
        finish(writing, order(handed_over, prompt, names=(backend,)))
        assert writing.sides[0].text == alone(handed_over, prompt, 40, backend)
        assert len(writing.sides[0].seen) == min(WINDOW, len(prompt) + 39)
        seen, session = writing.sides[0].seen[-1], writing.sides[0].session
        np.testing.assert_array_equal(seen[1], np.asarray(session.states, np.float32)[:, 0])


@pytest.mark.parametrize("length", [1, 2, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_the_picture_shows_the_states_of_the_prompt(desk, handed_over, length):
    """Token by token, they arrive where the prompt read at once does."""
    writing = desk.text_of("one")
    finish(writing, order(handed_over, ("the fox ran home " * 20)[:length], 1))
    side = writing.sides[0]
    assert len(side.seen) == min(length, WINDOW) and side.seen[-1][0] == side.text[length - 1]
    np.testing.assert_allclose(side.seen[-1][1], np.asarray(side.session.states, np.float32)[:, 0], atol=1e-5)


def test_continue_goes_on_from_the_state(desk, handed_over):
    """Two turns write what one writes; the second reads nothing again."""
    writing, whole = desk.text_of("one"), alone(handed_over, "Once", 60)
    finish(writing, order(handed_over))
    position = writing.sides[0].session.position
    finish(writing, order(handed_over, "something else", 20), onward=True)
    assert writing.sides[0].text == whole
    assert writing.sides[0].session.position == position + 20


def test_continue_by_another_model_is_refused_and_the_page_goes_on(desk, handed_over):
    writing = desk.text_of("one")
    with pytest.raises(ValueError, match="press Generate"):
        finish(writing, order(handed_over), onward=True)
    finish(writing, order(handed_over))
    other = order(handed_over / "checkpoints" / "step_00000010")
    with pytest.raises(ValueError, match="press Generate"):
        finish(writing, other, onward=True)
    finish(writing, order(handed_over, max_tokens=20), onward=True)
    assert writing.sides[0].text == alone(handed_over, "Once", 60)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="needs both backends")
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, 40, 0.95, 3)])
def test_side_by_side_is_one_text(desk, handed_over, sampling):
    writing = desk.text_of("one")
    line = finish(writing, order(handed_over, names=("torch", "jax"), sampling=sampling))
    assert writing.sides[0].text == writing.sides[1].text == alone(handed_over, "Once", 40, sampling=sampling)
    assert f"torch and jax agree: the same {len(writing.sides[0].text):,} characters" in line
    writing.sides[1].text = "Onze" + writing.sides[1].text[4:]
    assert "differ from character 3 on" in agreement(writing.sides)


def test_two_browsers_in_turns_write_what_each_writes_alone(desk, handed_over):
    """Token by token in turns, a third one leaving in the middle: nobody sees anything of another one."""
    path = handed_over
    prompts = ("Once", "Zebra ", "Then he ")
    texts = [desk.text_of(name) for name in ("a", "b", "c")]
    runs = [writing.write(order(path, prompt, 300)) for writing, prompt in zip(texts, prompts, strict=True)]
    for _ in range(2):
        for run in runs:
            next(run)
    runs.pop().close()
    desk.leave("c")
    for _ in itertools.zip_longest(*runs):
        pass
    for writing, prompt in zip(texts[:2], prompts, strict=False):
        assert writing.sides[0].text == alone(path, prompt, 300)
    assert not any(writing.is_busy for writing in texts)
    assert alone(path, prompts[2], 300).startswith(texts[2].sides[0].text)


def test_threads_that_write_at_once_do_not_mix(desk, handed_over):
    """As the server has them: at once, in one model, which is loaded once."""
    prompts = [f"{letter} tale " for letter in "ABCD"]
    threads = [
        threading.Thread(target=finish, args=(desk.text_of(prompt), order(handed_over, prompt, 200)))
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [desk.text_of(prompt).sides[0].text for prompt in prompts] == [
        alone(handed_over, prompt, 200) for prompt in prompts
    ]


def test_stop_ends_it_within_a_token(desk, handed_over, monkeypatch):
    writing, taken = desk.text_of("one"), []
    steps = iter(range(10**6))
    finish(writing, order(handed_over, max_tokens=1))
    side = type(writing.sides[0])

    def take(self, pieces, real=side.take):
        taken.append(next(steps))
        if len(taken) == 7:
            writing.stopped = True
        return real(self, pieces)

    monkeypatch.setattr(side, "take", take)
    line = finish(writing, order(handed_over, max_tokens=4000))
    assert line.startswith("Stopped: 7 tokens") and len(taken) == 7
    monkeypatch.undo()
    writing.stopped = False
    finish(writing, order(handed_over, max_tokens=13), onward=True)
    assert writing.sides[0].text == alone(handed_over, "Once", 20)


def test_a_browser_writes_one_text_at_a_time(desk, handed_over):
    writing = desk.text_of("one")
    first = writing.write(order(handed_over, max_tokens=2000))
    next(first)
    assert desk.is_busy()
    with pytest.raises(ValueError, match="still writing; press Stop"):
        finish(writing, order(handed_over))
    first.close()
    assert not desk.is_busy()
    finish(writing, order(handed_over))
    assert writing.sides[0].text == alone(handed_over, "Once", 40)


def test_who_leaves_is_stopped_and_forgotten(desk):
    writing = desk.text_of("one")
    desk.leave("one")
    desk.leave("never there")
    assert writing.stopped and desk.text_of("one") is not writing
    for i in range(TEXTS + 5):
        desk.text_of(f"browser {i}")
    assert desk.text_of("browser 4").sides == [] and len(desk._texts) == TEXTS


def test_bounds_are_refused_in_words(desk, handed_over):
    usual = {
        "prompt": "x",
        "label": "tale, step 30",
        "which": BACKENDS[0],
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 0.95,
    }

    def asked(**changes: Any) -> Order:
        return desk.order(**{**usual, "seed": 0, "max_tokens": 10, **changes})

    assert asked(max_tokens=4000).max_tokens == 4000 and asked(label="tale, step 10").checkpoint.name == "step_00000010"
    for wrong, told_of in (
        ({"max_tokens": 4001}, "tokens must be in"),
        ({"max_tokens": 0}, "tokens must be in"),
        ({"max_tokens": None}, "tokens needs a number"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": float("nan")}, "seed needs a number"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 0}, "top_p must be"),
        ({"temperature": float("inf")}, "temperature needs a number"),
        ({"temperature": "hot"}, "temperature needs a number"),
        ({"which": "numpy"}, "is not installed"),
        ({"which": None}, "is not installed"),
    ):
        with pytest.raises(ValueError, match=told_of):
            asked(**wrong)
    if len(BACKENDS) > 1:
        assert asked(which=BOTH).backends == ("torch", "jax")


@pytest.mark.parametrize(
    "prompt, told_of", [("", "is empty"), ("x" * (PROMPT_CHARACTERS + 1), "10,001 characters, this page takes 10,000")]
)
def test_a_prompt_out_of_bounds_is_refused_before_anything_is_loaded(desk, prompt, told_of):
    with pytest.raises(ValueError, match=told_of):
        finish(desk.text_of("one"), order(Path("nowhere"), prompt))
    assert not desk.is_busy()


@pytest.mark.parametrize(
    "prompt", ["🦊 und ein Wolf", "a<|endoftext|>b", "<img src=x onerror=alert(1)>", "\0\x1b[31m", " "]
)
def test_strange_prompts_are_text(desk, handed_over, prompt):
    writing = desk.text_of("one")
    finish(writing, order(handed_over, prompt, 5))
    assert writing.sides[0].text.startswith(prompt) and writing.sides[0].text == alone(handed_over, prompt, 5)


def test_half_a_character_is_refused_in_words(desk, handed_over):
    with pytest.raises(ValueError, match="not valid Unicode"):
        finish(desk.text_of("one"), order(handed_over, "half \ud83e"))
    assert not desk.is_busy()


def test_the_end_of_a_text_is_told(desk, handed_over, monkeypatch):
    """A model that writes aaa and ends: nothing to continue."""

    def step(tokens_bt, states):
        count = tokens_bt.shape[1] + (0 if states is None else int(states[0, 0, 0]))
        logits_bv = np.zeros((1, 257), np.float32)
        logits_bv[0, 256 if count >= 7 else ord("a")] = 1.0
        return logits_bv, np.full((1, 1, 1), count, np.float32)

    model = OpenModel(BACKENDS[0], Checkpoint(CONFIG, {}), build_tokenizer("byte"), step)
    monkeypatch.setattr("tools.ui.models.Models.open", lambda *_: Opened(model, np.ones((1, 1))))
    writing = desk.text_of("one")
    assert finish(writing, order(handed_over, max_tokens=3)).startswith("Done: 3 tokens") and not writing.ended
    assert finish(writing, order(handed_over, max_tokens=4)).startswith("The text ends here: 3 tokens")
    assert writing.ended and writing.sides[0].text == "Onceaaa"


def test_a_text_that_waits_holds_no_model(desk, handed_over):
    writing = desk.text_of("one")
    finish(writing, order(handed_over))
    assert writing.sides[0].opened is None
