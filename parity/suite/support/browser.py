"""Someone in front of the page of `liquidnet ui`: a Chromium with its controls by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

SECONDS = 60_000  # milliseconds until playwright gives up


class Visitor:
    """Someone in front of the page.

    Args:
        context: of the browser.
        address: of the page.
    """

    def __init__(self, context: Any, address: str):
        self.context, self.page = context, context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.set_default_timeout(SECONDS)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
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
        told = self.page.locator("#told p")
        told.filter(has_text=ends).or_(self.page.locator("#told [role=alert]")).wait_for()
        self.page.locator("#stop[disabled]").wait_for()
        self.page.locator("#generate:not([disabled])").wait_for()
        return self.told()

    def told(self) -> str:
        return self.page.locator("#told").inner_text()

    def text(self, box: str = "text") -> str:
        return self.page.locator(f"#{box} textarea").input_value()

    def writes(self, more_than: int) -> None:
        """Wait until there is that much text."""
        self.page.wait_for_function("n => document.querySelector('#text textarea').value.length > n", arg=more_than)

    def generate(self, **values: Any) -> str:
        self.set(**values)
        self.click("generate")
        return self.done()

    def fits(self) -> bool:
        """Whether nothing is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    def keep(self, name: str) -> None:
        """A screenshot, where $SCREENSHOTS says that they are wanted."""
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
