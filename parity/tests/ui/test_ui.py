"""The controller of `liquidnet ui` and its texts, which are those of generate and never mix."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from parity.suite.support.ui import CONFIG, GREEDY, alone, write_run
from spec.checkpoint.format import Checkpoint
from spec.sampling import Sampling
from tools.cli import backends
from tools.generation.session import OpenModel
from tools.tokenizer import build_tokenizer
from tools.ui.controller import BOTH, TEXTS, Controller
from tools.ui.generation_task import PROMPT_CHARACTERS, WINDOW, GenerationRequest, GenerationTask, agreement
from tools.ui.models import Catalogue, LoadedModel

BACKENDS = backends.installed()


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("ui") / "tale")


@pytest.fixture
def controller(handed_over: Path) -> Controller:
    return Controller(Catalogue((handed_over,)), max_length=4000)


def request(
    path: Path, prompt: str = "Once", max_tokens: int = 40, names=(BACKENDS[0],), sampling=GREEDY
) -> GenerationRequest:
    return GenerationRequest(path, names, prompt, sampling, max_tokens)


def finish(task: GenerationTask, request: GenerationRequest, onward: bool = False) -> str:
    return list(task.write(request, onward))[-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_text_is_that_of_generate(controller, handed_over, backend):
    """However it is looked at: the picture's states are computed beside the text's."""
    task = controller.task("one")
    for prompt in ("Once", "x", "A prompt that is longer than the picture is wide. " * 4):
        finish(task, request(handed_over, prompt, names=(backend,)))
        assert task.generations[0].text == alone(handed_over, prompt, 40, backend)
        assert len(task.generations[0].recent_states) == min(WINDOW, len(prompt) + 39)
        recent_states, session = task.generations[0].recent_states[-1], task.generations[0].session
        np.testing.assert_array_equal(recent_states[1], np.asarray(session.states, np.float32)[:, 0])


@pytest.mark.parametrize("length", [1, 2, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_the_picture_shows_the_states_of_the_prompt(controller, handed_over, length):
    """Token by token, they arrive where the prompt read at once does."""
    task = controller.task("one")
    finish(task, request(handed_over, ("the fox ran home " * 20)[:length], 1))
    generation = task.generations[0]
    assert (
        len(generation.recent_states) == min(length, WINDOW)
        and generation.recent_states[-1][0] == generation.text[length - 1]
    )
    np.testing.assert_allclose(
        generation.recent_states[-1][1], np.asarray(generation.session.states, np.float32)[:, 0], atol=1e-5
    )


def test_continue_goes_on_from_the_state(controller, handed_over):
    """Two turns write what one writes; the second reads nothing again."""
    task, whole = controller.task("one"), alone(handed_over, "Once", 60)
    finish(task, request(handed_over))
    position = task.generations[0].session.position
    finish(task, request(handed_over, "something else", 20), onward=True)
    assert task.generations[0].text == whole
    assert task.generations[0].session.position == position + 20
    # The picture goes on without a gap: after each token of the prompt and of what was absorbed since.
    recent = task.generations[0].recent_states
    assert "".join(token for token, _ in recent) == whole[:-1] and len(recent) == position + 20
    np.testing.assert_array_equal(recent[-1][1], np.asarray(task.generations[0].session.states, np.float32)[:, 0])


def test_continue_by_another_model_is_refused_and_the_page_goes_on(controller, handed_over):
    task = controller.task("one")
    with pytest.raises(ValueError, match="press Generate"):
        finish(task, request(handed_over), onward=True)
    finish(task, request(handed_over))
    other = request(handed_over / "checkpoints" / "step_00000010")
    with pytest.raises(ValueError, match="press Generate"):
        finish(task, other, onward=True)
    finish(task, request(handed_over, max_tokens=20), onward=True)
    assert task.generations[0].text == alone(handed_over, "Once", 60)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="needs both backends")
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, 40, 0.95, 3)])
def test_side_by_side_is_one_text(controller, handed_over, sampling):
    task = controller.task("one")
    line = finish(task, request(handed_over, names=("torch", "jax"), sampling=sampling))
    assert task.generations[0].text == task.generations[1].text == alone(handed_over, "Once", 40, sampling=sampling)
    assert f"torch and jax agree: the same {len(task.generations[0].text):,} characters" in line
    task.generations[1].text = "Onze" + task.generations[1].text[4:]
    assert "differ from character 3 on" in agreement(task.generations)


def test_two_browsers_in_turns_write_what_each_writes_alone(controller, handed_over):
    """Token by token in turns, a third one leaving in the middle: nobody sees anything of another one."""
    path = handed_over
    prompts = ("Once", "Zebra ", "Then he ")
    texts = [controller.task(name) for name in ("a", "b", "c")]
    runs = [task.write(request(path, prompt, 300)) for task, prompt in zip(texts, prompts, strict=True)]
    for _ in range(2):
        for run in runs:
            next(run)
    runs.pop().close()
    controller.leave("c")
    for _ in itertools.zip_longest(*runs):
        pass
    for task, prompt in zip(texts[:2], prompts, strict=False):
        assert task.generations[0].text == alone(path, prompt, 300)
    assert not any(task.is_busy for task in texts)
    assert alone(path, prompts[2], 300).startswith(texts[2].generations[0].text)


def test_threads_that_write_at_once_do_not_mix(controller, handed_over):
    """As the server has them: at once, in one model, which is loaded once."""
    prompts = [f"{letter} tale " for letter in "ABCD"]
    threads = [
        threading.Thread(target=finish, args=(controller.task(prompt), request(handed_over, prompt, 200)))
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [controller.task(prompt).generations[0].text for prompt in prompts] == [
        alone(handed_over, prompt, 200) for prompt in prompts
    ]


def test_stop_ends_it_and_the_text_goes_on_from_what_is_shown(controller, handed_over):
    task, whole = controller.task("one"), alone(handed_over, "Once", 4000)
    lines = task.write(request(handed_over, max_tokens=4000))
    assert [next(lines).partition(":")[0], next(lines).partition(":")[0]] == [
        "Loading the model in " + BACKENDS[0] + " …",
        "Writing",
    ]
    task.stopped = True
    line = [*lines][-1]
    shown = task.generations[0].text
    assert line.startswith(f"Stopped: {len(shown) - 4} tokens") and whole.startswith(shown) and len(shown) < len(whole)
    task.stopped = False
    finish(task, request(handed_over, max_tokens=13), onward=True)
    assert task.generations[0].text == whole[: len(shown) + 13]


def test_a_browser_writes_one_text_at_a_time(controller, handed_over):
    task = controller.task("one")
    first = task.write(request(handed_over, max_tokens=2000))
    next(first)
    assert controller.is_busy()
    with pytest.raises(ValueError, match="still writing; press Stop"):
        finish(task, request(handed_over))
    first.close()
    assert not controller.is_busy()
    finish(task, request(handed_over))
    assert task.generations[0].text == alone(handed_over, "Once", 40)


def test_who_leaves_is_stopped_and_forgotten(controller):
    task = controller.task("one")
    controller.leave("one")
    controller.leave("never there")
    assert task.stopped and controller.task("one") is not task


def test_the_text_that_was_not_touched_for_longest_is_forgotten(controller):
    """Each is told from the others by its layer; that of `browser 0` is asked for in between, so 1 and 2 go."""
    tasks = [controller.task(f"browser {i}") for i in range(TEXTS)]
    for i, task in enumerate(tasks):
        task.layer = i
    assert controller.task("browser 0") is tasks[0]
    new = [controller.task(f"new {i}") for i in range(2)]
    assert [task.stopped for task in tasks] == [i in (1, 2) for i in range(TEXTS)]
    assert not any(task.stopped for task in new) and [controller.task(f"new {i}") for i in range(2)] == new
    assert controller.task(f"browser {TEXTS - 1}").layer == TEXTS - 1 and controller.task("browser 0").layer == 0
    assert controller.task("browser 1") is not tasks[1] and len(controller._by_browser) == TEXTS


def test_bounds_are_refused_in_words(controller, handed_over):
    usual = {
        "prompt": "x",
        "label": "tale, step 30",
        "which": BACKENDS[0],
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 0.95,
    }

    def request_for(**changes: object) -> GenerationRequest:
        return controller.request(**{**usual, "seed": 0, "max_tokens": 10, **changes})

    assert (
        request_for(max_tokens=4000).max_tokens == 4000
        and request_for(label="tale, step 10").checkpoint.name == "step_00000010"
    )
    for wrong, message in (
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
        with pytest.raises(ValueError, match=message):
            request_for(**wrong)
    if len(BACKENDS) > 1:
        assert request_for(which=BOTH).backends == ("torch", "jax")


@pytest.mark.parametrize(
    "prompt, message", [("", "is empty"), ("x" * (PROMPT_CHARACTERS + 1), "10,001 characters, this page takes 10,000")]
)
def test_a_prompt_out_of_bounds_is_refused_before_anything_is_loaded(controller, prompt, message):
    with pytest.raises(ValueError, match=message):
        finish(controller.task("one"), request(Path("nowhere"), prompt))
    assert not controller.is_busy()


@pytest.mark.parametrize(
    "prompt", ["🦊 und ein Wolf", "a<|endoftext|>b", "<img src=x onerror=alert(1)>", "\0\x1b[31m", " "]
)
def test_strange_prompts_are_text(controller, handed_over, prompt):
    task = controller.task("one")
    finish(task, request(handed_over, prompt, 5))
    assert task.generations[0].text.startswith(prompt) and task.generations[0].text == alone(handed_over, prompt, 5)


def test_half_a_character_is_refused_in_words(controller, handed_over):
    with pytest.raises(ValueError, match="not valid Unicode"):
        finish(controller.task("one"), request(handed_over, "half \ud83e"))
    assert not controller.is_busy()


def test_the_end_of_a_text_is_reported(controller, handed_over, monkeypatch):
    """A model that writes aaa and ends: nothing to continue."""

    def step(tokens_bt, states):
        count = tokens_bt.shape[1] + (0 if states is None else int(states[0, 0, 0]))
        logits_bv = np.zeros((1, 257), np.float32)
        logits_bv[0, 256 if count >= 7 else ord("a")] = 1.0
        return logits_bv, np.full((1, 1, 1), count, np.float32)

    model = OpenModel(BACKENDS[0], Checkpoint(CONFIG, {}), build_tokenizer("byte"), step)
    monkeypatch.setattr("tools.ui.models.ModelCache.open", lambda *_: LoadedModel(model, np.ones((1, 1))))
    task = controller.task("one")
    assert finish(task, request(handed_over, max_tokens=3)).startswith("Done: 3 tokens") and not task.ended
    assert finish(task, request(handed_over, max_tokens=4)).startswith("The text ends here: 3 tokens")
    assert task.ended and task.generations[0].text == "Onceaaa"


def test_a_text_that_waits_holds_no_model(controller, handed_over):
    task = controller.task("one")
    finish(task, request(handed_over))
    assert task.generations[0].opened is None
