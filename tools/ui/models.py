"""The checkpoints that a page offers, and the models that it has open."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from spec.checkpoint.format import find_checkpoint, list_checkpoints
from spec.checkpoint.quantization import Weights
from tools.cli.backends import Backend
from tools.convert import SUFFIXES
from tools.generation.engine import Engine
from tools.generation.session import OpenModel, open_model
from tools.plot.compute_half_lives import half_lives
from tools.plot.loss import MetricsLine
from tools.training.run_dir import RunDir

OPEN_MODELS = 4


class Catalogue:
    """The checkpoints below the paths that the server was started with; a browser names one by its label alone.

    Args:
        roots: runs, checkpoint directories, .pt or .msgpack files.

    Raises:
        ValueError: a path is none of these, or holds no checkpoint.
    """

    def __init__(self, roots: tuple[Path, ...]):
        for root in roots:
            if not root.exists():
                raise ValueError(f"{root} does not exist; name a checkpoint directory, a run, a .pt or a .msgpack file")
            if root.is_dir():
                if not (find_checkpoint(root) / "SHA256SUMS").is_file():
                    raise ValueError(
                        f"{root} is not a checkpoint directory or a run; name a directory of `liquidnet train`"
                    )
            elif root.suffix not in SUFFIXES:
                raise ValueError(f"{root} is no known checkpoint format; name a directory, a .pt or a .msgpack file")
        self._roots = tuple(dict.fromkeys(roots))

    def labels(self) -> dict[str, Path]:
        """Every checkpoint by its label, as of now: a run's newest first, the best marked."""
        names = [_run_of(root).name for root in self._roots]
        found = {}
        for root, name in zip(self._roots, names, strict=True):
            short = name if names.count(name) == 1 else str(root)
            is_run = (root / "checkpoints").is_dir() or bool(list_checkpoints(root))
            found |= _checkpoints_of_run(root, short) if is_run else {short: root}
        return found

    def find(self, label: object) -> Path:
        """The checkpoint of that label; raises ValueError where there is none (any more)."""
        found = self.labels()
        if not isinstance(label, str) or label not in found:
            raise ValueError("this checkpoint is not there any more; reload the page and choose another one")
        return found[label]


def _run_of(root: Path) -> Path:
    """The run, where its directory `checkpoints` was named."""
    place = root.resolve()
    return place.parent if place.name == "checkpoints" and list_checkpoints(place) else place


def _checkpoints_of_run(run: Path, name: str) -> dict[str, Path]:
    found = list_checkpoints(run)
    best = _best_step(found[-1]) if found else None
    steps = {path: int(path.name.removeprefix("step_")) for path in reversed(found)}
    return {f"{name}, step {step:,}" + " (best)" * (step == best): path for path, step in steps.items()}


def _best_step(newest: Path) -> int | None:
    try:
        return json.loads((newest / "state.json").read_text())["best"]["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # a checkpoint that was removed or is damaged says so when it is opened


def run_metrics(checkpoint: Path) -> Sequence[MetricsLine]:
    """The metrics of the run that a checkpoint lies in; none where it lies in no run."""
    return RunDir(checkpoint.parent.parent).metrics() if checkpoint.parent.name == "checkpoints" else []


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model, and what of it the page shows.

    Args:
        model: ready to write.
        half_lives_ln: of each channel of the state, in tokens, [l, n].
    """

    model: OpenModel
    half_lives_ln: np.ndarray

    @cached_property
    def engine(self) -> Engine:
        """Writes the texts of all browsers; it ends with those that it has once `close` was called."""
        return Engine(self.model)

    def close(self) -> None:
        """Take no new text; those that are being written are let go on."""
        if "engine" in self.__dict__:
            self.engine.close(grace=math.inf, wait=False)


def _close(future: Future[LoadedModel]) -> None:
    if future.exception() is None:
        future.result().close()


class ModelCache:
    """Models that stay in memory, the last few that were asked for; each is loaded once, whoever asks meanwhile.

    Args:
        weights: what their matrices are rounded to.
    """

    def __init__(self, weights: Weights = "float32") -> None:
        self._weights: Weights = weights
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[Path, Backend], Future[LoadedModel]] = OrderedDict()

    def open(self, path: Path, backend: Backend) -> LoadedModel:
        """The model; a thread that asks while another one loads it waits for that. Raises what loading raises."""
        key = path, backend
        with self._lock:
            future, mine = self._found.get(key), key not in self._found
            if future is None:
                future = self._found[key] = Future()
            self._found.move_to_end(key)
            while len(self._found) > OPEN_MODELS:
                self._found.popitem(last=False)[1].add_done_callback(_close)
        if mine:
            try:
                model = open_model(path, backend, self._weights)
                loaded = LoadedModel(model, half_lives(model.checkpoint.parameters, model.checkpoint.config))
                _ = loaded.engine  # so that there is one to be closed, whenever the model is put away
                future.set_result(loaded)
            except BaseException as error:  # whatever it is, those who wait must hear of it, and the next one may try
                with self._lock:
                    self._found.pop(key, None)
                future.set_exception(error)
        return future.result()

    def is_open(self, path: Path, backend: Backend) -> bool:
        """Whether it is in memory: nothing to wait for."""
        with self._lock:
            return (path, backend) in self._found and self._found[path, backend].done()
