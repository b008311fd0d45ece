"""What the page's handlers call: a text for each browser, and the checks of what a browser asks for."""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict

from spec.checkpoint.quantization import Weights
from spec.sampling import Sampling
from tools.cli import backends
from tools.cli.backends import Backend
from tools.ui.generation_task import GenerationRequest, GenerationTask
from tools.ui.models import Catalogue, ModelCache

BOTH = "both, side by side"
#: Texts that are kept; the one that was not touched for longest is forgotten first.
TEXTS = 64


class Controller:
    """The texts of all browsers.

    Args:
        catalogue: what may be chosen.
        max_length: bound of the tokens that one click writes.
        weights: what the matrices of every checkpoint are rounded to.
    """

    def __init__(self, catalogue: Catalogue, max_length: int, weights: Weights = "float32"):
        self.catalogue, self.max_length = catalogue, max_length
        self._models, self._lock = ModelCache(weights), threading.Lock()
        self._by_browser: OrderedDict[str, GenerationTask] = OrderedDict()
        # Those of browsers that have left among them, for as long as they compute.
        self._tasks: weakref.WeakSet[GenerationTask] = weakref.WeakSet()

    def task(self, browser: str) -> GenerationTask:
        """The text of the browser that asks."""
        with self._lock:
            if browser not in self._by_browser:
                self._by_browser[browser] = GenerationTask(self._models)
                self._tasks.add(self._by_browser[browser])
            task = self._by_browser[browser]
            self._by_browser.move_to_end(browser)
            while len(self._by_browser) > TEXTS:
                self._by_browser.popitem(last=False)[1].stopped = True
            return task

    def leave(self, browser: str) -> None:
        """The browser has closed or left the page."""
        with self._lock:
            task = self._by_browser.pop(browser, None)
        if task is not None:
            task.stopped = True

    def stop_all(self) -> None:
        """The server ends."""
        for task in list(self._tasks):
            task.stopped = True

    def is_busy(self) -> bool:
        """Whether a text is being written, or a model loaded for one."""
        return any(task.is_busy for task in list(self._tasks))

    def request(self, prompt: object, label: object, which: object, temperature: object, top_k: object, top_p: object,
                seed: object, max_tokens: object) -> GenerationRequest:  # fmt: skip
        """What the controls ask for; a browser may send anything, so no argument has a type that is relied on.

        Raises:
            ValueError: a value is out of range, named.
        """
        names: tuple[Backend, ...] = tuple(name for name in backends.BACKENDS if which in (name, BOTH))
        if not names or any(name not in backends.installed() for name in names):
            raise ValueError(f"backend {which} is not installed where this page is served")
        count = _whole("tokens", max_tokens)
        if not 1 <= count <= self.max_length:
            raise ValueError(f"tokens must be in [1, {self.max_length:,}], got {count:,}")
        sampling = Sampling(
            float(_number("temperature", temperature)),
            _whole("top-k", top_k),
            float(_number("top-p", top_p)),
            _whole("seed", seed),
        )
        return GenerationRequest(self.catalogue.find(label), names, str(prompt or ""), sampling, count)


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} needs a number")
    return value


def _whole(name: str, value: object) -> int:
    number = _number(name, value)
    if float(number) != int(number):
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(number)
