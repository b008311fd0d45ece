"""Ctrl-C: a command unwinds, cleans up and says how to go on, whatever it is busy with. So it does after SIGTERM and
SIGHUP, but for a run, which they end with a checkpoint."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_SIGINT, EXIT_SIGTERM = 130, 75
TERMINATING = (signal.SIGTERM, signal.SIGHUP)
"""A scheduler's, and that of a terminal which has gone: a run that they end is to be carried on, with exit code 75."""
DEBOUNCE_SECONDS = 0.3
"""A key that is held down counts once, and does not cut short the cleaning that its first signal began."""
UNRESPONSIVE_SECONDS = 3.0
"""Seconds after which a compiler, or another call into C++, has not let Python run the signal's handler."""
_last = _raised = -math.inf
_early: list[signal.Signals] = []
_ended = False
# A forked child would send its own signals to its parent's watcher.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class Terminated(SystemExit):
    """A command is to end because of a signal, with the code that a shell gives to one which that has killed."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


def terminate(number: int, _frame: FrameType | None) -> None:
    """The handler of TERMINATING outside of a run: raises Terminated."""
    global _ended
    _ended = True
    raise Terminated(number)


def interrupted_recently() -> bool:
    """Whether Ctrl-C was pressed a moment ago: an error of a library may only be what it made of that."""
    return time.monotonic() - _raised < UNRESPONSIVE_SECONDS


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """The handler of SIGINT: raises KeyboardInterrupt, once for signals in quick succession."""
    global _raised
    if _is_new_press():
        _raised = _last
        raise KeyboardInterrupt


@contextmanager
def interrupted_at_the_end() -> Iterator[None]:
    """Have a Ctrl-C in the block interrupt at its end: an import written in C, as numpy.random's, may drop it."""
    pressed: list[int] = []
    if signal.getsignal(signal.SIGINT) is not interrupt:
        yield
        return
    with _handled((signal.SIGINT,), lambda number, _frame: pressed.append(number)):
        yield
    if pressed:
        interrupt(pressed[0], None)


def _is_new_press() -> bool:
    global _last
    before, _last = _last, time.monotonic()
    return _last - before >= DEBOUNCE_SECONDS


@contextmanager
def collected() -> Iterator[list[signal.Signals]]:
    """Collect what is to end the work of the block at the next good place; a SIGINT after it interrupts at once."""
    # What was raised where Python drops it, in a destructor or a callback, has ended nothing yet.
    caught = [*_early]

    def remember(number: int, _frame: FrameType | None) -> None:
        caught.append(signal.Signals(number))
        _is_new_press()
        signal.signal(signal.SIGINT, interrupt)
        if number == signal.SIGINT:
            text = "stopping after this step, with a checkpoint; Ctrl-C again stops at once, at the checkpoint before"
            with suppress(OSError):  # of a terminal that has gone
                os.write(2, f"\nliquidnet: {text}\n".encode())

    with _handled((*_heeded(), signal.SIGINT), remember):
        yield caught


@contextmanager
def exit_if_terminated(command: str) -> Iterator[None]:
    """End the block with EXIT_SIGTERM where it is to end before there is anything to save.

    Args:
        command: what is to be run again.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        _early.append(signal.Signals(number))
        with suppress(OSError):
            text = f"liquidnet: stopped by {_early[-1].name} before the first step; {command}\n"
            os.write(2, text.encode())
        raise SystemExit(EXIT_SIGTERM)

    _early.clear()
    with _handled(_heeded(), end):
        yield


def _heeded() -> tuple[signal.Signals, ...]:
    """TERMINATING, without a SIGHUP that nohup has had ignored."""
    return tuple(
        number for number in TERMINATING if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    )


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


@contextmanager
def handlers(resume_hint: Callable[[], str], terminating: bool, process_ends: bool = False) -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt in the block, and a second one end a process in which no Python code runs.

    Args:
        resume_hint: how to go on, for a process that ends in the middle of a call that lets no Python code run.
        terminating: have SIGTERM and SIGHUP raise Terminated, too.
        process_ends: with the block; a Ctrl-C while the interpreter is taken down then ends it without a word.
    """
    global _ended
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # As a shell without job control asks for in the background.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    handler = signal.SIG_IGN if ignored else signal.signal(signal.SIGINT, interrupt)
    _ended, hook = False, sys.unraisablehook
    near, far = socket.socketpair()
    far.setblocking(False)
    before = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
    sys.unraisablehook = lambda found: _raise_later(found.exc_value) or hook(found)
    threading.Thread(target=_watch, args=(near, resume_hint), daemon=True).start()
    try:
        with _handled(_heeded() if terminating else (), terminate):
            yield
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.SIG_DFL if process_ends and not ignored else handler)
        far.close()


def _raise_later(dropped: BaseException | None) -> bool:
    """Raise anew, a moment later, what a signal raised where Python drops it, in a destructor or a callback."""
    global _last
    if not isinstance(dropped, (KeyboardInterrupt, Terminated)):
        return False
    _last = -math.inf
    number = dropped.signal if isinstance(dropped, Terminated) else signal.SIGINT
    # To the main thread itself, which may be waiting for the system.
    threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, number)).start()
    return True


def _watch(near: socket.socket, resume_hint: Callable[[], str]) -> None:
    unhandled_since = math.inf
    with near:
        while numbers := near.recv(4096):
            for number in TERMINATING:
                if number in numbers and signal.getsignal(number) is terminate:
                    _end_unless_unwinding(number)
            if signal.SIGINT not in numbers:
                continue
            pressed = time.monotonic()
            if _last < unhandled_since < math.inf:
                # A bar, whose work goes no further, has hidden the cursor.
                shown = "\x1b[?25h" if os.isatty(2) else ""
                with suppress(OSError):
                    os.write(2, f"{shown}\nliquidnet: interrupted; {resume_hint()}\n".encode())
                os._exit(EXIT_SIGINT)
            # Signals in quick succession may be handled as one, and before this thread learns of them.
            while (
                unhandled := _last < pressed - DEBOUNCE_SECONDS
            ) and time.monotonic() < pressed + UNRESPONSIVE_SECONDS:
                time.sleep(0.01)
            unhandled_since = pressed if unhandled else math.inf
            if unhandled:
                os.write(
                    2, b"\nliquidnet: stopping as soon as the call under way returns; Ctrl-C again stops at once\n"
                )


def _end_unless_unwinding(number: signal.Signals) -> None:
    """What sends them kills next what does not end: a call that lets no Python code run is not waited for."""
    until = time.monotonic() + UNRESPONSIVE_SECONDS
    while not _ended and time.monotonic() < until:
        time.sleep(0.01)
    if not _ended:
        os._exit(128 + number)
