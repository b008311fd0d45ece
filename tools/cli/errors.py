"""Which errors end a command in one line, with which exit code; tyro's and the system's words made a sentence."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from spec.checkpoint.files import TEMPORARY_PREFIX
from spec.config import nearest

# Drawn in ASCII where the terminal knows no other.
_BOX = re.compile(r"[\u2500-\u257f]+|-{4,}|^[|+]|[|+]$", re.MULTILINE)
_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "choose a place that you may read and write",
    errno.EPERM: "choose a place that you may read and write",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EFBIG: "choose a disk, or a limit, that allows larger files",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a directory, or leave out what comes after the file",
    errno.EEXIST: "name a directory, or leave out what comes after the file",
    errno.ENOTEMPTY: "name another place, or remove what is there first",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit with `ulimit -n`",
}
_EXTRAS = {"torch": "torch", "triton": "triton", "libtpu": "tpu", "hypothesis": "parity"}
_EXTRAS |= {"numba": "cpu", "transformers": "bench"}
_EXTRAS |= dict.fromkeys(("gradio", "pandas", "PIL"), "ui")
_EXTRAS |= dict.fromkeys(("fastapi", "starlette", "pydantic", "uvicorn", "jinja2", "prometheus_client"), "serve")
_EXTRAS |= dict.fromkeys(("jax", "jaxlib", "flax", "optax", "orbax", "msgpack"), "jax")
_TYPES = {"INT": "a whole number", "FLOAT": "a number"}


def message_and_exit_code(error: Exception) -> tuple[object, int] | None:
    """What a user is told of an error, and the exit code: 2 for what they can mend, 1 for what a run came to.

    None where it is a fault of ours, whose traceback is wanted; LIQUIDNET_DEBUG asks for that of any but these few.
    """
    if is_lack_of_memory(error):
        return "not enough memory; make the batch, the window or the model smaller", 2
    if isinstance(error, ModuleNotFoundError) and (reason := missing_package_message(error)):
        return reason, 2
    if isinstance(error, (FloatingPointError, ConnectionError)):
        return error, 1
    if isinstance(error, (ValueError, OSError, NotImplementedError)) and "LIQUIDNET_DEBUG" not in os.environ:
        return (os_error_message(error) if isinstance(error, OSError) else error), 2
    if "jax" in sys.modules and "LIQUIDNET_DEBUG" not in os.environ and (reason := _lack_of_jax_devices()):
        return reason, 2
    return None


def _lack_of_jax_devices() -> str | None:
    """That JAX finds no device, where whatever was asked of it ends in an error of many kinds; None where it does."""
    from parity.proof.environment import UNUSABLE, devices

    first = devices("jax")[0]
    if not first.startswith(UNUSABLE):
        return None
    variable = next((name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if name in os.environ), None)
    if variable is None:
        return f"JAX {first}; set JAX_PLATFORMS=cpu"
    return f"JAX {first}; {variable} is {os.environ[variable]!r}: unset it, or install a JAX for that"


def short(message: str, program: str, given: Sequence[str], command: type) -> str:
    """One sentence of tyro's boxed message; the message itself, in a line, where its wording is not known.

    Args:
        message: with its box.
        program: "liquidnet" and the command.
        given: the command's arguments.
        command: its class.
    """
    line = " ".join(_BOX.sub(" ", message).split())
    known = [_flag(field) for field in fields(command)]
    for explain in (_unknown, _missing, _wrong_type, _no_choice, _no_value):
        if reason := explain(line, given, known):
            return f"{reason}; see {program} --help"
    return line


def _flag(of: Field[Any]) -> str:
    """How a field of a command is typed; one whose plain name the command has already says so."""
    own = of.metadata.get("mixer")
    return f"--{of.name.replace('_', '-')}" if own is None else own.flag


def _unknown(line: str, given: Sequence[str], known: Sequence[str]) -> str | None:
    found = re.search(r"Unrecognized options: (.*?)(?: Perhaps you meant:| For full helptext|$)", line)
    if not found:
        return None
    tokens = [token for token in given if token in found[1].split(", ")] or [found[1]]
    flag = next((token for token in tokens if token.startswith("-")), None)
    if flag is not None:
        return f"there is no flag {flag}{nearest(flag, known)}"
    reason = f"one argument too many: {tokens[0]!r}"
    if "--checkpoint" in known and "--checkpoint" not in given and Path(tokens[0]).exists():
        return f"{reason}; did you mean --checkpoint {tokens[0]}?"
    return f"{reason}; put quotes around a text with spaces" if "--prompt" in given else reason


def _missing(line: str, given: Sequence[str], known: Sequence[str]) -> str | None:
    found = re.search(r"Missing from [\w -]+: (.*) For full helptext", line)
    if not found:
        return None
    each = re.findall(r"(--[\w-]+ (?:\[\S+ \[\S+ \.\.\.\]\]|\S+)|\S+) (.*?)\.? ?\(required\)", found[1])
    return f"still needed: {', '.join(f'{name} ({help})' for name, help in each)}" if each else None


def _wrong_type(line: str, given: Sequence[str], known: Sequence[str]) -> str | None:
    found = re.search(r"Error parsing (\S+): .* Argument helptext: \S+ (\S+) ", line)
    if not found:
        return None
    names, kind = found[1].split("/"), _TYPES.get(found[2].removeprefix("{None}|").rstrip(","))
    values = [value for name, value in pairwise(given) if name in names]
    got = f", got {values[-1]!r}" if values else ""
    name = next((name for name in names if name in given), names[0])
    return f"{name} takes {kind}{got}" if kind else f"{name} was not understood{got}"


def _no_choice(line: str, given: Sequence[str], known: Sequence[str]) -> str | None:
    found = re.search(r"invalid choice (.+) for argument '(.+?)'. Expected one of \((.+?),?\)\.", line)
    if not found:
        return None
    choices = [each.strip().strip("'") for each in found[3].split(",")]
    if "None" in choices:
        # Those of a union tyro has as a set, whose order is another one in each process.
        choices = sorted({*choices} - {"None"})
    value = found[1].strip("'")
    return f"{found[2]} takes one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}"


def _no_value(line: str, given: Sequence[str], known: Sequence[str]) -> str | None:
    found = re.search(r"Missing value for argument '(\S+)'", line)
    return f"{found[1]} needs a value" if found else None


def os_error_message(error: OSError) -> str:
    """What the operating system refused, on which path, and what to do; an error of our own as it stands."""
    if error.errno is None or not error.strerror:
        return str(error)
    # A rename names what it was to become last.
    name = error.filename if error.filename2 is None else error.filename2
    path = Path(str(name)) if name is not None else None
    if path is not None and path.name.startswith(TEMPORARY_PREFIX):
        path = path.parent
    where = "" if path is None else f"{path}: "
    return f"{where}{error.strerror}{f'; {remedy}' if (remedy := _REMEDIES.get(error.errno)) else ''}"


def missing_package_message(error: ModuleNotFoundError) -> str | None:
    """Which package is not installed, and how to install it; None for a module of our own, which is a bug."""
    package = (error.name or "").split(".")[0]
    if not package or package in ("spec", "torch_impl", "jax_impl", "parity", "tools"):
        return None
    extra = _EXTRAS.get(package)
    return f"this needs {package}, which is not installed; pip install 'liquidnet-dual{f'[{extra}]' if extra else ''}'"


def is_lack_of_memory(error: Exception) -> bool:
    """Whether Python, torch or JAX has found no room; the latter two say so in an error that may mean anything."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "RESOURCE_EXHAUSTED")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def first_line(error: BaseException) -> str:
    """An error's message without the lines after the first."""
    return next(iter(str(error).splitlines()), type(error).__name__)
