"""Kernels for processors, compiled by Numba. No twin: JAX has a compiler of its own."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)


def _imported() -> Any:
    """Numba; raises ImportError where it is not installed, or cannot be used as its variables have it."""
    with warnings.catch_warnings(record=True) as ignored:
        warnings.simplefilter("always")
        try:
            import numba
        except ImportError:
            raise
        except Exception as error:  # of a variable: it has no class of its own for them
            raise ImportError(f"Numba cannot be imported: {error}; look at the variables NUMBA_*") from error
    for warning in ignored:
        # Its second line is a traceback.
        _log.warning("Numba: %s", str(warning.message).splitlines()[0])
    config: Any = numba.config
    if config.DISABLE_JIT:
        raise ImportError("NUMBA_DISABLE_JIT is set, and Numba compiles nothing; unset it")
    return numba


numba = _imported()
_config: Any = numba.config
# GNU's OpenMP does not outlive a fork.
_process = os.getpid()
# Of Numba's pools of threads, one bears no second kernel beside the first.
one_at_a_time = threading.Lock()


def _cache_directory() -> str | None:
    """Where machine code is kept; None where nothing can be.

    Numba asks for the date of a kernel's own file alone; what it calls stands in others, so all of them count. Where it
    may not write it would look for another place, in which they do not.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        home = _config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        place = Path(home) / "liquidnet" / digest.hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):
        return None
    return str(place) if os.access(place, os.W_OK | os.X_OK) else None


def kept(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function that Python calls, with options of `numba.njit`, when it is first called; keep its code."""
    found = _compiled(function, **options)
    if _CACHE is not None:
        # Numba tells entries apart by the function and its types, not by options: of two it would give the first.
        place = Path(_CACHE) / ("parallel" if options.get("parallel") else "one_thread")
        before, _config.CACHE_DIR = _config.CACHE_DIR, str(place)
        found.enable_caching()
        _config.CACHE_DIR = before
    return found


_CACHE = _cache_directory()
# What kernels call is not kept: taken from there it would be called, not become part of a loop, which is then scalar.
_compiled = partial(numba.njit, nogil=True, error_model="numpy")
kernel = partial(_compiled, fastmath={"contract"})
"""Compile a function that kernels call; a product and a sum may be fused."""
summing = partial(_compiled, fastmath={"contract", "reassoc"})
"""The same for a function whose sums may be taken in any order, several at a time."""
divided = partial(_compiled, parallel=True)
"""The same for a function whose `numba.prange` is divided between threads."""


def threads() -> int:
    """How many threads kernels take: PyTorch's, so far as Numba has them; one in a process that was forked."""
    if os.getpid() != _process:
        return 1
    _start()
    return min(torch.get_num_threads(), _config.NUMBA_NUM_THREADS)


@cache
def _start() -> None:
    """Numba starts a pool of as many threads as there are processors; OpenMP takes that for an order to PyTorch too.

    Where a layer for them is asked for that is not here, it takes its own choice.
    """
    before = torch.get_num_threads()
    try:
        numba.get_num_threads()
    except ValueError as error:
        asked, _config.THREADING_LAYER = _config.THREADING_LAYER, "default"
        _config.THREADING_LAYER_PRIORITY = ["tbb", "omp", "workqueue"]
        _log.warning("NUMBA_THREADING_LAYER %s is not taken: %s", asked, str(error).splitlines()[0])
        numba.get_num_threads()
    torch.set_num_threads(before)


def parallel(function: Callable[..., None]) -> Callable[..., None]:
    """`kept`, for a function whose `numba.prange` is divided between threads; one thread has no pool to wake."""
    alone, together = kept(function, fastmath={"contract"}), kept(function, parallel=True)

    def run(*arguments: Any) -> None:
        count = threads()
        if count == 1:
            alone(*arguments)
            return
        with one_at_a_time:
            numba.set_num_threads(count)
            together(*arguments)

    return run
