"""The page of `liquidnet ui` in a real Chromium: it writes, stops, compares, shows, refuses, keeps browsers apart."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parity.suite.support import ui as pages
from parity.suite.support.browser import Visitor
from parity.suite.support.ui import alone, free_port, served
from spec.checkpoint.format import write_checkpoint
from spec.sampling import Sampling
from tools.cli import backends
from tools.cli.main import main
from tools.ui.generation_task import PROMPT_CHARACTERS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = 200_000
DRAWN = Sampling(0.7, 0, 0.95, 0)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt install chromium"),
    pytest.mark.skipif(len(backends.installed()) < 2, reason="needs both backends"),
]


@pytest.fixture(scope="session")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps, the first 20 on torch, the others on jax."""
    run = tmp_path_factory.mktemp("browser") / "trained"
    model = ("--preset", "nano", "--d-model", "16", "--d-ff", "24", "--n-layers", "2")
    common = ("--data", str(small_data), "--out", str(run), "--checkpoint-every", "20")
    first = ["train", "torch", *model, *common, "--steps", "40", "--batch-size", "4", "--stop-at", "20"]
    for segment in ([*first, "--eval-every", "20"], ["train", "jax", *common, "--resume"]):
        with pytest.raises(SystemExit, match="0"):
            main(segment)
    return run


@pytest.fixture(scope="session")
def wandering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "wandering"
    write_checkpoint(path, pages.wandering())
    text = alone(path, "Once upon a time", 1500)
    assert len({text[i : i + 6] for i in range(len(text))}) > 300
    return path


@pytest.fixture(scope="session")
def server(trained: Path, wandering: Path) -> Iterator[tuple[int, str]]:
    """A server of both: its process and its address."""
    pytest.importorskip("gradio", reason="gradio is not installed; pip install 'liquidnet-dual[ui]'")
    port = free_port()
    flags = ("--checkpoint", wandering, trained, "--backend", "torch", "--port", port, "--max-length", LONG)
    with served(*flags) as (process, line):
        assert line.startswith("LiquidNet is at")
        yield process.pid, f"http://127.0.0.1:{port}"
        process.terminate()
        assert (*process.communicate(timeout=20), process.returncode) == ("", "", 0)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, server: tuple[int, str]) -> Iterator[Callable[..., Visitor]]:
    """Opens the page in a browser of its own, with nothing shared; what went wrong in any of them fails the test."""
    visitors: list[Visitor] = []

    def open_page(width: int = 1280, **options: Any) -> Visitor:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        visitors.append(Visitor(context, server[1]))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.context.close()
    # Gradio's plot library says that its own specification is of an earlier version.
    assert [line for visitor in visitors for line in visitor.complaints] == []
    hosts = {re.sub(r"^\w+://([^/:]+).*", r"\1", url) for visitor in visitors for url in visitor.asked}
    assert {host for host in hosts if not host.startswith(("data:", "blob:"))} == {"127.0.0.1"}


def test_it_writes_what_generate_writes_and_goes_on(visit, wandering):
    visitor = visit()
    visitor.keep("1280-fresh")
    assert visitor.fits()
    assert visitor.generate(prompt="Once upon a time", tokens=60).startswith("Done: 60 tokens")
    assert visitor.text() == alone(wandering, "Once upon a time", 60)
    visitor.set(prompt="", tokens=40)
    visitor.click("onward")
    assert visitor.done().startswith("Done: 40 tokens")
    assert visitor.text() == alone(wandering, "Once upon a time", 100)
    assert "after 116 tokens its memory is still 3 x 24 numbers" in visitor.told()
    visitor.keep("1280-finished")
    assert visitor.fits()


def test_stop_stops_and_the_page_goes_on(visit, wandering):
    visitor = visit()
    visitor.set(prompt="A long one: ", tokens=LONG)
    visitor.click("generate")
    visitor.writes(100)
    visitor.keep("1280-writing")
    visitor.click("stop")
    assert visitor.done().startswith("Stopped: ")
    text = visitor.text()
    visitor.page.wait_for_timeout(700)
    assert visitor.text() == text and 100 < len(text) < LONG
    assert alone(wandering, "A long one: ", len(text) - 12) == text
    assert visitor.generate(prompt="Again", tokens=20).startswith("Done: 20 tokens")
    assert visitor.text() == alone(wandering, "Again", 20)


def test_backends_by_turns_and_side_by_side(visit, wandering):
    visitor = visit()
    for backend in ("jax", "torch"):
        visitor.generate(prompt="The fox ", tokens=50, temperature=0.7, backend=backend)
        assert visitor.page.locator("#text label, #text").first.inner_text().startswith(f"Text, {backend}")
        assert visitor.text() == alone(wandering, "The fox ", 50, backend, DRAWN)
        assert not visitor.page.locator("#beside").is_visible()
    message = visitor.generate(prompt="The fox ", tokens=80, temperature=0.7, backend="both, side by side")
    assert visitor.text() == visitor.text("beside") == alone(wandering, "The fox ", 80, sampling=DRAWN)
    assert f"torch and jax agree: the same {len(visitor.text())} characters" in message
    visitor.keep("1280-both")
    assert visitor.fits()


def test_the_state_and_the_loss_are_shown(visit, trained):
    visitor = visit()
    page = visitor.page
    assert not page.locator("#loss").is_visible()  # the first checkpoint lies in no run
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name="trained, step 40").click()
    page.locator("#loss").get_by_text("training, jax").wait_for()
    assert page.locator("#loss_head").inner_text().split("\n")[-1] == "Handed over: torch → jax after step 20"
    assert page.locator("#loss").get_by_text("validation").is_visible()
    visitor.generate(prompt="Once", tokens=30)
    assert visitor.text() == alone(trained, "Once", 30)
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name="wandering").click()
    page.locator("#loss").wait_for(state="hidden")
    picture = page.locator("#states img")
    assert picture.get_attribute("alt") == "state of layer 1 after each of 33 tokens"
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [33, 16]
    assert "".join(page.locator("#states .tokens span").all_inner_texts())[:4] == "Once"
    first = picture.get_attribute("src")
    page.locator("#layer input[type=number]").fill("2")
    page.locator("#layer input[type=number]").blur()
    page.locator("#states img[alt^='state of layer 2']").wait_for()
    assert picture.get_attribute("src") != first


def test_a_page_that_gets_narrower_still_fits(visit, trained):
    """A phone that is turned: the chart must not hold the width that it was drawn at."""
    visitor = visit(1280)
    visitor.page.locator("#checkpoint input").click()
    visitor.page.get_by_role("option", name="trained, step 40").click()
    visitor.page.locator("#loss").get_by_text("training, jax").wait_for()
    assert visitor.fits()
    for width in (400, 900, 400):
        visitor.page.set_viewport_size({"width": width, "height": 900})
        visitor.page.wait_for_timeout(500)
        assert visitor.fits(), width


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "The prompt is empty; give at least one character"),
        ("x" * 100_000, f"The prompt has 100,000 characters, this page takes {PROMPT_CHARACTERS:,}; shorten it"),
        ("half \ud83e", "not valid Unicode"),
    ],
    ids=["empty", "long", "half"],
)
def test_a_refusal_is_a_sentence_and_the_page_goes_on(visit, wandering, prompt, message):
    visitor = visit(400)
    visitor.set()
    visitor.page.locator("#prompt textarea").evaluate(
        "(box, text) => { box.value = text; box.dispatchEvent(new Event('input', {bubbles: true})); }", prompt
    )
    visitor.click("generate")
    assert message in visitor.done() and visitor.fits()
    visitor.keep("400-refused")
    visitor.generate(prompt="Then", tokens=20)
    assert visitor.text() == alone(wandering, "Then", 20) and not visitor.page.locator("#told [role=alert]").count()


@pytest.mark.parametrize(
    "prompt",
    [
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>",
        "${document.title='owned'} {{document.title}} $\\$$ **b** [a](javascript:alert(1))",
        "🦊 <|endoftext|> ﷽ \u202e",
    ],
    ids=["html", "template", "signs"],
)
def test_a_prompt_is_text(visit, wandering, prompt):
    visitor = visit()
    visitor.generate(prompt=prompt, tokens=20)
    assert visitor.text() == alone(wandering, prompt, 20)
    assert visitor.page.title() == "LiquidNet"
    shown = "".join(visitor.page.locator("#states .tokens span").all_inner_texts())
    assert visitor.page.locator("#states img").count() == 1 and len(shown) >= 20


def test_browsers_do_not_mix(visit, wandering):
    """Two write at once, a third closes in the middle of a long text."""
    prompts = ["Once upon a time", "In the beginning"]
    visitors = [visit() for _ in prompts]
    leaver = visit()
    leaver.set(prompt="Zebra", tokens=LONG)
    leaver.click("generate")
    leaver.writes(50)
    for visitor, prompt in zip(visitors, prompts, strict=True):
        visitor.set(prompt=prompt, tokens=1500)
        visitor.click("generate")
    for visitor in visitors:
        visitor.writes(100)
    leaver.context.close()
    for visitor, prompt in zip(visitors, prompts, strict=True):
        assert visitor.done().startswith("Done: 1,500 tokens")
        assert visitor.text() == alone(wandering, prompt, 1500)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor time from /proc")
def test_nothing_is_computed_for_who_has_left(visit, server):
    def computed() -> float:
        """Seconds of processor that the server has used."""
        fields = Path(f"/proc/{server[0]}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def processor_share(seconds: float = 1.0) -> float:
        before, began = computed(), time.monotonic()
        time.sleep(seconds)
        return (computed() - before) / (time.monotonic() - began)

    visitor = visit()
    visitor.set(prompt="On and on", tokens=LONG)
    visitor.click("generate")
    visitor.writes(100)
    while_writing = processor_share()
    visitor.context.close()
    deadline = time.monotonic() + 20
    while (after := processor_share()) > 0.1 * while_writing:
        assert time.monotonic() < deadline, (while_writing, after)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_has_everything_in_reach(visit, scheme):
    visitor = visit(400, color_scheme=scheme)
    visitor.keep(f"400-{scheme}-fresh")
    visitor.generate(tokens=200, backend="both, side by side")
    visitor.keep(f"400-{scheme}-both")
    assert visitor.fits()
    for name in ("prompt", "generate", "text", "beside", "tokens", "seed", "layer", "states"):
        box = visitor.page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400 and box["height"] > 20, (name, box)
    letters = visitor.page.locator("#states .tokens span").last.bounding_box()
    assert letters["width"] >= 10 and letters["x"] + letters["width"] <= 400
