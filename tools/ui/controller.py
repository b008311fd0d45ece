"""What lies behind the page: a text for each browser, and what a browser may ask for."""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from typing import Any, get_args

from spec.checkpoint.quantization import Weights
from spec.sampling import Sampling
from tools.cli import backends
from tools.cli.backends import Backend
from tools.ui.generation_task import Order, Writing
from tools.ui.models import Catalogue, Models

BOTH = "both, side by side"
#: Texts that are kept; the one that was not touched for longest is forgotten first.
TEXTS = 64


class Desk:
    """The texts of all browsers.

    Args:
        catalogue: what may be chosen.
        max_length: bound of the tokens that one click writes.
        weights: what the matrices of every checkpoint are rounded to.
    """

    def __init__(self, catalogue: Catalogue, max_length: int, weights: Weights = "float32"):
        self.catalogue, self.max_length = catalogue, max_length
        self._models, self._lock = Models(weights), threading.Lock()
        self._texts: OrderedDict[str, Writing] = OrderedDict()
        # Those of browsers that have left among them, for as long as they compute.
        self._writings: weakref.WeakSet[Writing] = weakref.WeakSet()

    def text_of(self, browser: str) -> Writing:
        """The text of the browser that asks."""
        with self._lock:
            if browser not in self._texts:
                self._texts[browser] = Writing(self._models)
                self._writings.add(self._texts[browser])
            writing = self._texts[browser]
            self._texts.move_to_end(browser)
            while len(self._texts) > TEXTS:
                self._texts.popitem(last=False)[1].stopped = True
            return writing

    def leave(self, browser: str) -> None:
        """The browser has closed or left the page."""
        with self._lock:
            writing = self._texts.pop(browser, None)
        if writing is not None:
            writing.stopped = True

    def stop_all(self) -> None:
        """The server ends."""
        for writing in list(self._writings):
            writing.stopped = True

    def is_busy(self) -> bool:
        """Whether a text is being written, or a model loaded for one."""
        return any(writing.is_busy for writing in list(self._writings))

    def order(self, prompt: Any, label: Any, which: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any,
              max_tokens: Any) -> Order:  # fmt: skip
        """What the controls ask for; raises ValueError naming the one that is out of range."""
        names: tuple[Backend, ...] = get_args(Backend) if which == BOTH else (which,)
        if any(name not in backends.installed() for name in names):
            raise ValueError(f"backend {which} is not installed where this page is served")
        count = _whole("tokens", max_tokens)
        if not 1 <= count <= self.max_length:
            raise ValueError(f"tokens must be in [1, {self.max_length:,}], got {count:,}")
        sampling = Sampling(
            _number("temperature", temperature), _whole("top-k", top_k), _number("top-p", top_p), _whole("seed", seed)
        )
        return Order(self.catalogue.find(label), names, str(prompt or ""), sampling, count)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} needs a number")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if _number(name, value) != int(value):
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(value)
