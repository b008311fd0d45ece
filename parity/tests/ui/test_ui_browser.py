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
from parity.suite.support.browser import UiPage
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
def visit(chromium: Any, server: tuple[int, str]) -> Iterator[Callable[..., UiPage]]:
    """Opens the page in a browser of its own, with nothing shared; what went wrong in any of them fails the test."""
    pages: list[UiPage] = []

    def open_page(width: int = 1280, **options: Any) -> UiPage:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        pages.append(UiPage(context, server[1]))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
    # Gradio's plot library says that its own specification is of an earlier version.
    assert [line for page in pages for line in page.errors] == []
    hosts = {re.sub(r"^\w+://([^/:]+).*", r"\1", url) for page in pages for url in page.requests}
    assert {host for host in hosts if not host.startswith(("data:", "blob:"))} == {"127.0.0.1"}


def test_it_writes_what_generate_writes_and_goes_on(visit, wandering):
    page = visit()
    page.screenshot("1280-fresh")
    assert page.fits()
    assert page.generate(prompt="Once upon a time", tokens=60).startswith("Done: 60 tokens")
    assert page.text() == alone(wandering, "Once upon a time", 60)
    page.set(prompt="", tokens=40)
    page.click("onward")
    assert page.done().startswith("Done: 40 tokens")
    assert page.text() == alone(wandering, "Once upon a time", 100)
    assert "after 116 tokens its memory is still 3 x 24 numbers" in page.status()
    page.screenshot("1280-finished")
    assert page.fits()


def test_stop_stops_and_the_page_goes_on(visit, wandering):
    page = visit()
    page.set(prompt="A long one: ", tokens=LONG)
    page.click("generate")
    page.wait_for_text(100)
    page.screenshot("1280-writing")
    page.click("stop")
    assert page.done().startswith("Stopped: ")
    text = page.text()
    page.page.wait_for_timeout(700)
    assert page.text() == text and 100 < len(text) < LONG
    assert alone(wandering, "A long one: ", len(text) - 12) == text
    assert page.generate(prompt="Again", tokens=20).startswith("Done: 20 tokens")
    assert page.text() == alone(wandering, "Again", 20)


def test_backends_by_turns_and_side_by_side(visit, wandering):
    page = visit()
    for backend in ("jax", "torch"):
        page.generate(prompt="The fox ", tokens=50, temperature=0.7, backend=backend)
        assert page.page.locator("#text label, #text").first.inner_text().startswith(f"Text, {backend}")
        assert page.text() == alone(wandering, "The fox ", 50, backend, DRAWN)
        assert not page.page.locator("#beside").is_visible()
    told = page.generate(prompt="The fox ", tokens=80, temperature=0.7, backend="both, side by side")
    assert page.text() == page.text("beside") == alone(wandering, "The fox ", 80, sampling=DRAWN)
    assert f"torch and jax agree: the same {len(page.text())} characters" in told
    page.screenshot("1280-both")
    assert page.fits()


def test_the_state_and_the_loss_are_shown(visit, trained):
    shown = visit()
    page = shown.page
    assert not page.locator("#loss").is_visible()  # the first checkpoint lies in no run
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name="trained, step 40").click()
    page.locator("#loss").get_by_text("training, jax").wait_for()
    assert page.locator("#loss_head").inner_text().split("\n")[-1] == "Handed over: torch → jax after step 20"
    assert page.locator("#loss").get_by_text("validation").is_visible()
    shown.generate(prompt="Once", tokens=30)
    assert shown.text() == alone(trained, "Once", 30)
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
    page = visit(1280)
    page.page.locator("#checkpoint input").click()
    page.page.get_by_role("option", name="trained, step 40").click()
    page.page.locator("#loss").get_by_text("training, jax").wait_for()
    assert page.fits()
    for width in (400, 900, 400):
        page.page.set_viewport_size({"width": width, "height": 900})
        page.page.wait_for_timeout(500)
        assert page.fits(), width


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
    page = visit(400)
    page.set()
    page.page.locator("#prompt textarea").evaluate(
        "(box, text) => { box.value = text; box.dispatchEvent(new Event('input', {bubbles: true})); }", prompt
    )
    page.click("generate")
    assert message in page.done() and page.fits()
    page.screenshot("400-refused")
    page.generate(prompt="Then", tokens=20)
    assert page.text() == alone(wandering, "Then", 20) and not page.page.locator("#told [role=alert]").count()


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
    page = visit()
    page.generate(prompt=prompt, tokens=20)
    assert page.text() == alone(wandering, prompt, 20)
    assert page.page.title() == "LiquidNet"
    shown = "".join(page.page.locator("#states .tokens span").all_inner_texts())
    assert page.page.locator("#states img").count() == 1 and len(shown) >= 20


def test_browsers_do_not_mix(visit, wandering):
    """Two write at once, a third closes in the middle of a long text."""
    prompts = ["Once upon a time", "In the beginning"]
    pages = [visit() for _ in prompts]
    leaver = visit()
    leaver.set(prompt="Zebra", tokens=LONG)
    leaver.click("generate")
    leaver.wait_for_text(50)
    for page, prompt in zip(pages, prompts, strict=True):
        page.set(prompt=prompt, tokens=1500)
        page.click("generate")
    for page in pages:
        page.wait_for_text(100)
    leaver.context.close()
    for page, prompt in zip(pages, prompts, strict=True):
        assert page.done().startswith("Done: 1,500 tokens")
        assert page.text() == alone(wandering, prompt, 1500)


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

    page = visit()
    page.set(prompt="On and on", tokens=LONG)
    page.click("generate")
    page.wait_for_text(100)
    while_writing = processor_share()
    page.context.close()
    deadline = time.monotonic() + 20
    while (after := processor_share()) > 0.1 * while_writing:
        assert time.monotonic() < deadline, (while_writing, after)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_has_everything_in_reach(visit, scheme):
    page = visit(400, color_scheme=scheme)
    page.screenshot(f"400-{scheme}-fresh")
    page.generate(tokens=200, backend="both, side by side")
    page.screenshot(f"400-{scheme}-both")
    assert page.fits()
    for name in ("prompt", "generate", "text", "beside", "tokens", "seed", "layer", "states"):
        box = page.page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400 and box["height"] > 20, (name, box)
    letters = page.page.locator("#states .tokens span").last.bounding_box()
    assert letters["width"] >= 10 and letters["x"] + letters["width"] <= 400
