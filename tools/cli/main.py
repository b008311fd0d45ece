"""`liquidnet`: an umbrella over the commands. Only what starts at once is imported here, the rest by the command."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn, Protocol

from tools.cli import signals
from tools.cli.commands import COMMANDS, show_overview


class Runnable(Protocol):
    """A command's class, made from its flags."""

    def run(self) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line on stderr and exit code 2, never in a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        _prepare_streams()
        # Else a process that is started from here would take a random.py of the working directory for Python's own.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        _run_interruptibly(given, arguments is None)
    except SystemExit as stop:
        _exit_if_distributed(int(stop.code or 0))
        ended = isinstance(stop, signals.Terminated) or stop.code in (signals.EXIT_SIGINT, signals.EXIT_SIGTERM)
        if ended and arguments is None:
            # Neither a thread of a library that is still at work, nor what it says on being ended, is of use any more;
            # nor would a second signal, which finds no handler now, be told from the first.
            os._exit(int(stop.code or 0))
        raise
    except BaseException:
        # Nobody expected it. The others must not wait for this process, whose interpreter may not come to its end.
        if any(distributed.is_initialized() for distributed in _distributed_modules()):
            traceback.print_exc()
            _exit_if_distributed(1)
        raise


def _distributed_modules() -> list[ModuleType]:
    """`training.distributed` of the backends in use."""
    return [
        sys.modules[name]
        for name in ("torch_impl.training.distributed", "jax_impl.training.distributed")
        if name in sys.modules
    ]


def _exit_if_distributed(code: int) -> None:
    for distributed in _distributed_modules():
        distributed.exit_if_initialized(code)


class _Dropping(io.FileIO):
    """A file that takes all it is given at once, and drops what cannot be written."""

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        with contextlib.suppress(OSError):
            # None: a stream that does not block has no room now, and nothing waits for its reader.
            while left and (written := super().write(left)) is not None:
                left = left[written:]
        return memoryview(data).nbytes


def _prepare_streams() -> None:
    """A stream that was closed takes what is written and drops it; a character that a stream cannot show is escaped.

    stderr may come to that at any time, with its terminal or its reader gone or its disk full; no result depends on it.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        lenient: Any = _Dropping(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(lenient, sys.stderr.encoding, write_through=True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  it lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Nobody reads stdout any more, or it cannot be written: the interpreter must not try at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_interruptibly(arguments: list[str], process_ends: bool) -> None:
    heeds_them = arguments[:1] == ["train"]
    try:
        with signals.handlers(lambda: _resume_hint(arguments), not heeds_them, process_ends):
            _run(arguments)
    except KeyboardInterrupt:
        # Before the handler was in place.
        _interrupted(arguments)


def _run(arguments: list[str]) -> None:
    try:
        _complete(arguments)
    except KeyboardInterrupt:
        _interrupted(arguments)
    except signals.Terminated as stop:
        print(f"liquidnet: stopped by {stop.signal.name}; {_resume_hint(arguments)}", file=sys.stderr)
        raise
    except Exception as error:
        # Whatever a library makes of a Ctrl-C in the middle of its import, say.
        if signals.interrupted_recently():
            _interrupted(arguments)
        _explain(error)


def _complete(arguments: list[str]) -> None:
    try:
        command = parse(arguments)
        if command is not None:
            command.run()
    finally:
        # Here an error of writing can be reported.
        sys.stdout.flush()


def _explain(error: Exception) -> None:
    """End in one line what a user can do something about; raises anything else again."""
    from tools.cli.errors import message_and_exit_code

    if isinstance(error, BrokenPipeError):
        _drop_output()
        sys.exit(141)
    known = message_and_exit_code(error)
    if known is None:
        raise error
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    fail(*known)


def _interrupted(arguments: list[str]) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"liquidnet: interrupted; {_resume_hint(arguments)}", file=sys.stderr)
    sys.exit(signals.EXIT_SIGINT)


def _resume_hint(arguments: list[str]) -> str:
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        return "nothing was done; run it again"
    hint = COMMANDS[name].after_interrupt
    if name == "train" and "--out" in arguments[:-1] and "tools.training.run_dir" in sys.modules:
        run = sys.modules["tools.training.run_dir"].RunDir(arguments[arguments.index("--out") + 1])
        return f"{run.last_good()}; {hint}"
    return hint


def parse(arguments: Sequence[str]) -> Runnable | None:
    """The command that the arguments name, ready to run, or None where they ask for what can be done."""
    name, *flags = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        show_overview()
        return None
    if name == "--version":
        from parity.proof.environment import version

        print(f"liquidnet {version('liquidnet-dual')}")
        return None
    if name not in COMMANDS:
        from spec.config import nearest

        fail(f"there is no command {name!r}; choose one of {', '.join(COMMANDS)}{nearest(name, COMMANDS)}", 2)
    return _parsed(name, flags)


def _parsed(name: str, flags: list[str]) -> Runnable:
    """An instance of a command's class from its flags; tyro's boxed message becomes one line."""
    module, _, kind = COMMANDS[name].target.partition(":")
    with signals.interrupted_at_the_end():
        import tyro

        from tools.cli.docstrings import docstring
        from tools.cli.errors import short

        command = getattr(importlib.import_module(module), kind)
    program, message = f"liquidnet {name}", io.StringIO()
    # In a narrow box words are broken: help is read in it all the same, of a message is made a line.
    wide = _columns(60 if {"--help", "-h"} & {*flags} else 1000)
    try:
        with contextlib.redirect_stderr(message), wide:
            return tyro.cli(
                command,
                prog=program,
                description=f"{docstring(command)}\n\nExample: {COMMANDS[name].example}",
                args=flags,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
            )
    except SystemExit as stop:
        if stop.code != 2:
            raise
        fail(short(message.getvalue(), program, flags, command), 2)


@contextlib.contextmanager
def _columns(least: int) -> Iterator[None]:
    """Let the terminal have so many columns at least."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(least, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})


def fail(reason: object, code: int) -> NoReturn:
    """Say why on stderr, in one line, and exit."""
    print(f"liquidnet: error: {' '.join(str(reason).split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
