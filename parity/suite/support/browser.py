"""The page of `liquidnet ui` in a Chromium, its controls by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

SECONDS = 60_000  # milliseconds until playwright gives up


class UiPage:
    """One opened page.

    Args:
        context: of the browser.
        address: of the page.
    """

    def __init__(self, context: BrowserContext, address: str):
        self.context, self.page = context, context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.set_default_timeout(SECONDS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.goto(address)
        self.page.locator("#generate:not([disabled])").wait_for()
        self.page.locator("#checkpoint input").wait_for()

    def set(
        self, prompt: str = "Once upon a time", tokens: int = 60, temperature: float = 0.0, backend: str = ""
    ) -> None:
        """Put values into the controls."""
        self.page.locator("#prompt textarea").fill(prompt)
        for name, value in (("tokens", tokens), ("temperature", temperature)):
            box = self.page.locator(f"#{name} input[type=number]")
            box.fill(str(value))
            box.blur()
        if backend:
            self.page.locator("#backend").get_by_label(backend, exact=True).check()

    def click(self, name: str) -> None:
        """Press a button, once it can be pressed; what stood below it is not mistaken for what comes."""
        button = self.page.locator(f"#{name}:not([disabled])")
        button.wait_for()
        if name != "stop":
            self.page.evaluate("document.querySelector('#told p').textContent = ''")
        button.click()

    def done(self) -> str:
        """Wait until nothing is written any more; what the line below the buttons says."""
        ends = re.compile("^(Done|Stopped|The text ends)")
        status = self.page.locator("#told p")
        status.filter(has_text=ends).or_(self.page.locator("#told [role=alert]")).wait_for()
        self.page.locator("#stop[disabled]").wait_for()
        self.page.locator("#generate:not([disabled])").wait_for()
        return self.status()

    def status(self) -> str:
        """The line below the buttons."""
        return self.page.locator("#told").inner_text()

    def text(self, box: str = "text") -> str:
        return self.page.locator(f"#{box} textarea").input_value()

    def wait_for_text(self, more_than: int) -> None:
        """Wait until there is that much text."""
        self.page.wait_for_function("n => document.querySelector('#text textarea').value.length > n", arg=more_than)

    def generate(self, *values: Any, **named: Any) -> str:
        """Press the button with the values of `set`; what the line below the buttons says at the end."""
        self.set(*values, **named)
        self.click("generate")
        return self.done()

    def fits(self) -> bool:
        """Whether nothing is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    def screenshot(self, name: str) -> None:
        """A screenshot, where $SCREENSHOTS says that they are wanted."""
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
